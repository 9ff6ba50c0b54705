"""What each part adds to target - foil, by the library's direct logit attribution."""

import numpy as np

import workbench as wb
from app.host import Job
from app.jobs._bench import Bench, answer, prompt_ids, until
from app.jobs._table import Answers
from app.results import ComponentScores
from app.specs import Components
from workbench.attribution import METHODS as ATTRIBUTION
from workbench.attribution import Attribution

METHOD = "direct_logit_attribution"


def components(bench: Bench, spec: Components, job: Job) -> ComponentScores:
    """Scores of the run under the plan; three forwards."""
    model = bench.model(spec.model)
    shown = until(prompt_ids(model, spec.prompt), spec.pos)
    said = bench.said(spec.model, shown, job)
    texts, target, foil = answer(model, said, spec.target, spec.foil)
    plan = bench.plan(spec.model, spec.plan, job)
    contrast = wb.Contrast(clean=[shown], corrupt=[shown], target=target, foil=foil)
    scores = ATTRIBUTION[METHOD](model, contrast, plan=plan)
    names, layers, heads, values = _flat(scores)
    return ComponentScores(
        answer=texts,
        names=names,
        layers=layers,
        heads=heads,
        values=np.asarray(values),
        total=float(np.sum(values)),
        metric=float(scores.base[0]),
        source=ATTRIBUTION[METHOD].source,
    )


def _flat(
    scores: Attribution,
) -> tuple[tuple[str, ...], tuple[int | None, ...], tuple[int | None, ...], list[float]]:
    """Every head, and of the other parts those with a score, by name, layer and head."""
    kinds, layers = (axis.labels for axis in scores.axes)
    found: list[tuple[str, int | None, int | None, float]] = []
    for row, kind in enumerate(kinds):
        for layer in range(len(layers)):
            value = float(scores.scores[row, layer])
            if value == 0.0 and not kind.startswith("H"):
                continue
            found.append((*_named(kind, layer), value))
    names, places, heads, values = zip(*found, strict=True)
    return names, places, heads, list(values)


def _named(kind: str, layer: int) -> tuple[str, int | None, int | None]:
    if kind.startswith("H"):
        return f"L{layer}{kind}", layer, int(kind[1:])
    if kind == "mlp":
        return f"L{layer} MLP", layer, None
    if kind == "attn_bias":
        return f"L{layer} attention bias", None, None
    if kind == "plan":
        return f"the plan at L{layer}", None, None
    return {"embed": "embedding", "constant": "output bias"}.get(kind, kind), None, None


ANSWERS = Answers({Components: components})
