"""What a lens is, and what it reads: tokens and their probabilities at every layer and position."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import Logits, Resid
from workbench.core.data import Batch, Prompt, answer_ids, batch_of
from workbench.core.errors import OptionError
from workbench.core.modes import forward_only, outside_inference
from workbench.core.options import count, iterated
from workbench.core.plan import Interventions
from workbench.core.protocols import Model
from workbench.core.provenance import Provenance, hyper_parameters, provenance
from workbench.core.registry import discover
from workbench.core.request import Columns
from workbench.core.result import Axis, Check, Result, Table
from workbench.core.run import Check as Cancel
from workbench.core.run import run
from workbench.core.sites import Selector, Site, Sites, select

STREAMS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
NORMED = ("hook_resid_pre", "hook_normalized_resid_post")  # of blocks whose norms come after


@final
@dataclass(frozen=True, eq=False, repr=False)
class LensReading(Result):
    """What a lens sees in one prompt, by site (from low layers to high) and position.

    `top_tokens` and `top_probabilities` hold the likeliest tokens, `entropy` is in nats, `kl` is
    KL(model's output || lens) in nats, `watched` and `ranks` the probability and rank (0: first)
    of each watched token.
    """

    top_tokens: Int[Tensor, "site pos k"]
    top_probabilities: Float[Tensor, "site pos k"]
    entropy: Float[Tensor, "site pos"]
    kl: Float[Tensor, "site pos"]
    watched: Float[Tensor, "site pos token"]
    ranks: Int[Tensor, "site pos token"]
    tokens: tuple[int, ...]  # the watched ones
    prompt: tuple[int, ...]
    axes: tuple[Axis, ...]
    unit: str
    checks: tuple[Check, ...]
    provenance: Provenance

    @override
    def values(self) -> Mapping[str, Tensor]:
        return {
            "top_probabilities": self.top_probabilities,
            "top_tokens": self.top_tokens,
            "entropy": self.entropy,
            "kl": self.kl,
            "watched": self.watched,
            "ranks": self.ranks,
        }

    @override
    def details(self) -> Mapping[str, Any]:
        return {"tokens": list(self.tokens), "prompt": list(self.prompt)}

    @override
    def table(self) -> Table:
        sites, positions = self.axes[0].labels, self.axes[1].labels
        count = (len(sites), len(positions))
        return Table(
            {
                "site": [site for site in sites for _ in positions],
                "pos": list(positions) * count[0],
                "token": self.top_tokens[..., 0].flatten().tolist(),
                "probability": self.top_probabilities[..., 0].flatten().tolist(),
                "entropy": self.entropy.flatten().tolist(),
                "kl": self.kl.flatten().tolist(),
            }
        )


class LensMethod(ABC):
    """One lens; its fields are its hyper-parameters."""

    source: ClassVar[str]

    @abstractmethod
    def logits(self, model: Model, site: Site, resid: Resid) -> Logits:
        """What the model would say from the stream at this site."""

    @outside_inference
    def __call__(  # noqa: PLR0913 - what to read and what to watch
        self,
        model: Model,
        prompt: Prompt | Batch,
        *,
        sites: Selector = "blocks.*.hook_resid_post",
        plan: Interventions = (),
        positions: Columns = None,
        top_k: int = 5,
        watch: str | Sequence[str] | Sequence[int] = (),
        check: Cancel | None = None,
    ) -> LensReading:
        """Reads one prompt at every site and position, or at the `positions` asked for.

        Costs one forward and, for each site, one unembedding of the positions read.

        Raises:
            OptionError: If there are several prompts, a site is not the residual stream's, or
                `top_k` is below 1.
            TokenError: If a watched text is not one token.
        """
        batch = prompt if isinstance(prompt, Batch) else batch_of(model, prompt)
        if len(batch.tokens) != 1:
            raise OptionError("prompt", "a single one", f"{len(batch.tokens)} prompts")
        wanted = _streams(select(sites, model.sites), model)
        count("top_k", top_k)
        watched = (watch,) if isinstance(watch, str) else iterated("watch", watch)
        tokens = tuple(token for one in watched for token in answer_ids(model, one, 1))
        trace = run(model, batch, plan=plan, record=wanted, positions=positions, check=check)
        ids = tuple(batch.tokens[0].tolist())
        read = list(range(len(ids))) if trace.columns is None else trace.columns[0].tolist()
        said = trace.logits[0].float().log_softmax(-1)
        k = min(top_k, said.shape[-1])
        rows = [_row(self, model, s, trace[s][:, read], said, k, tokens, check) for s in wanted]
        columns = [torch.stack(parts) for parts in zip(*rows, strict=True)]
        return LensReading(
            *columns,
            tokens=tokens,
            prompt=ids,
            axes=(
                Axis("site", tuple(map(str, wanted))),
                Axis("pos", tuple(map(str, read))),
                Axis("rank", tuple(map(str, range(k)))),
            ),
            unit="probability",
            checks=(_last_layer(model, wanted, columns[3]),),
            provenance=provenance(
                model,
                method=type(self).__name__,
                source=self.source,
                data=list(ids),
                parameters={
                    **hyper_parameters(self),
                    "sites": list(map(str, wanted)),
                    "plan": list(map(str, trace.plan)),
                },
            ),
        )


def _streams(sites: Sites, model: Model) -> Sites:
    if model.sizes.output.columns != "vocabulary":
        raise OptionError("model", "one whose logits are of its vocabulary", model.name)
    normed = any(site.short == NORMED[-1] for site in model.sites)
    streams = NORMED if normed else STREAMS
    for site in sites:
        if site.short not in streams:
            raise OptionError("sites", f"places in the residual stream: {' '.join(streams)}", site)
    return sites


def _row(  # noqa: PLR0913 - one site of a reading
    lens: LensMethod,
    model: Model,
    site: Site,
    resid: Resid,
    said: Float[Tensor, "pos d_vocab"],
    k: int,
    tokens: tuple[int, ...],
    check: Cancel | None,
) -> tuple[Tensor, ...]:
    if check is not None:
        check()
    with forward_only():
        seen = lens.logits(model, site, resid)[0].float().log_softmax(-1)  # pos d_vocab
    top = seen.topk(k)
    chances = seen.exp()
    watched = seen[:, list(tokens)]
    ranks = torch.stack([(seen > w[:, None]).sum(-1) for w in watched.T], -1) if tokens else watched
    entropy = -(chances * seen).sum(-1)
    kl = (said.exp() * (said - seen)).sum(-1)
    return top.indices, top.values.exp(), entropy, kl, watched.exp(), ranks.long()


def _last_layer(model: Model, sites: Sites, kl: Float[Tensor, "site pos"]) -> Check:
    """At the last block the lens must say what the model says."""
    last = next(site for site in reversed(model.sites) if site.layer is not None)
    value = float(kl[sites.index(last)].abs().max()) if last in sites else float("nan")
    return Check("KL at the last layer", value, "nats", "0: there the lens is the model itself")


METHODS = discover("workbench.lenses.methods", "METHOD", LensMethod)
