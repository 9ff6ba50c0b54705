"""What gradients, sweeps and generations are said to take is near what they take."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.core.counting import Counting
from tests.core.peaks import peak_of
from workbench.core import estimate as estimate_file
from workbench.core import generate as generate_file
from workbench.core import gradients as gradients_file
from workbench.core import sweep as sweep_file
from workbench.core.errors import MemoryLimitError
from workbench.core.guards import Need

LOW, HIGH = 0.85, 1.5
IDS = tiny.tokens(4, 192)
METRIC = wb.metrics.logit(wb.Contrast(IDS.tolist(), IDS.tolist(), 3, 7))
SIZES: dict[str, Any] = {"llama": {"hidden_size": 128, "intermediate_size": 320, "head_dim": 32}}
MODELS = {
    "llama": wb.load(
        tiny.hf_llama(
            **SIZES["llama"], max_position_embeddings=256, vocab_size=2000, num_hidden_layers=4
        )
    ),
    "gpt2": wb.load(
        tiny.hf_gpt2(n_embd=128, n_inner=512, n_head=4, n_positions=256, vocab_size=1000, n_layer=5)
    ),
}
STREAM, LATE = "blocks.*.hook_resid_post", "blocks.2.hook_resid_post"
ONE, MANY = tiny.normal(4, 192, 128), tiny.normal(6, 4, 192, 128)


def last(model: wb.Model) -> str:
    return f"blocks.{model.sizes.n_layers - 1}.hook_resid_post"


Work = Callable[[wb.Model], object]
GRADIENTS: dict[str, Work] = {
    "of the embedding": lambda m: wb.gradients(m, IDS, "hook_embed", METRIC),
    "of all streams": lambda m: wb.gradients(m, IDS, STREAM, METRIC),
    "of a late one": lambda m: wb.gradients(m, IDS, LATE, METRIC),
    "of neurons": lambda m: wb.gradients(m, IDS, "blocks.*.mlp.hook_post", METRIC),
    "of patterns": lambda m: wb.gradients(m, IDS, "blocks.*.attn.hook_pattern", METRIC),
    "of a pattern": lambda m: wb.gradients(m, IDS, "blocks.1.attn.hook_pattern", METRIC),
    "of results": lambda m: wb.gradients(m, IDS, "blocks.*.attn.hook_result", METRIC),
    "vjp": lambda m: wb.vjp(m, IDS, "hook_embed", {last(m): ONE}),
    "vjp, many": lambda m: wb.vjp(m, IDS, "hook_embed", {last(m): MANY}, batched=True),
    "vjp of logits": lambda m: wb.vjp(
        m, IDS, "hook_embed", logits=torch.ones(4, 192, m.sizes.d_vocab)
    ),
    "jvp of a metric": lambda m: wb.jvp(m, IDS, {"hook_embed": ONE}, metric=METRIC),
    "jvp": lambda m: wb.jvp(m, IDS, {"hook_embed": ONE}, STREAM),
    "jvp, many": lambda m: wb.jvp(m, IDS, {"hook_embed": MANY}, last(m), batched=True),
    "jvp of logits": lambda m: wb.jvp(m, IDS, {LATE: ONE}, logits=True),
}
CELLS = [
    wb.Intervention(f"blocks.{layer}.hook_resid_pre", wb.ops.scale(0.5), positions=position)
    for layer in range(4)
    for position in range(0, 192, 24)
]
SWEEPS: dict[str, Work] = {
    "small batches": lambda m: wb.sweep(m, IDS, CELLS, METRIC, max_tokens=192, verify=0),
    "large ones": lambda m: wb.sweep(m, IDS, CELLS, METRIC, max_tokens=8192, verify=0),
    "a budget": lambda m: wb.sweep(
        m, IDS, CELLS, METRIC, max_tokens=10**6, max_bytes=2**23, verify=0
    ),
}
PATTERNS = [
    wb.Intervention("blocks.1.attn.hook_pattern", wb.ops.scale(0.5), heads=head)
    for head in range(4)
]
GLOB = [
    wb.Intervention("blocks.*.attn.hook_attn_scores", wb.ops.scale(0.5), rows=row) for row in (0, 1)
]
SWEEPS["scores"] = lambda m: wb.sweep(m, IDS, GLOB, METRIC, max_tokens=8192, verify=0)
SWEEPS["patterns"] = lambda m: wb.sweep(m, IDS, PATTERNS, METRIC, max_tokens=8192, verify=0)
GENERATIONS: dict[str, Work] = {
    "cached": lambda m: wb.generate(m, IDS, max_new_tokens=40),
    "in chunks": lambda m: wb.generate(m, IDS, max_new_tokens=40, prefill_chunk=16),
    "under a pattern": lambda m: wb.generate(
        m,
        IDS,
        plan=[wb.Intervention("blocks.1.attn.hook_pattern", wb.ops.scale(0.5))],
        max_new_tokens=8,
    ),
    "anew": lambda m: wb.generate(m, IDS, max_new_tokens=3, use_cache=False),
    "recorded": lambda m: wb.generate(m, IDS, max_new_tokens=8, record="blocks.*.mlp.*"),
    "sampled": lambda m: wb.generate(m, IDS, max_new_tokens=8, temperature=1.0, top_k=5),
}


def needed(file: Any, work: Work, model: wb.Model, patch: pytest.MonkeyPatch) -> Need:
    found: list[Need] = []
    patch.setattr(file, "check_need", lambda need, model: found.append(need))
    work(model)
    return found[0]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("case", GRADIENTS)
def test_derivatives_take_about_what_they_are_said_to(
    kind: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, work = MODELS[kind], GRADIENTS[case]
    told = needed(gradients_file, work, model, monkeypatch).total
    measured = peak_of(lambda: work(model))
    assert LOW * measured <= told <= HIGH * measured


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("case", SWEEPS)
def test_sweeps_take_about_what_they_are_said_to(
    kind: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, work = MODELS[kind], SWEEPS[case]
    told = needed(sweep_file, work, model, monkeypatch).total
    measured = peak_of(lambda: work(model))
    assert LOW * measured <= told <= HIGH * measured


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("case", GENERATIONS)
def test_generations_take_about_what_they_are_said_to(
    kind: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, work = MODELS[kind], GENERATIONS[case]
    told = needed(generate_file, work, model, monkeypatch).total
    measured = peak_of(lambda: work(model))
    assert LOW * measured <= told <= HIGH * measured


REFUSED: dict[str, tuple[Work, tuple[str, ...]]] = {
    "gradients": (
        GRADIENTS["of the embedding"],
        (r"^The gradient would take \d+\.\d MiB: graph", "fewer rows than 4", "later blocks only"),
    ),
    "jvp": (
        GRADIENTS["jvp, many"],
        ("^The product would take", "fewer directions than 6", "a metric instead of record="),
    ),
    "sweep": (
        SWEEPS["large ones"],
        ("^The sweep would take", "a smaller max_tokens= or max_bytes=", "fewer blocks than 4"),
    ),
    "generate": (
        GENERATIONS["recorded"],
        ("^The generation would take", "below 8", "prefill_chunk=", "fewer sites in record="),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_fit_is_refused_before_it_runs(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, messages = REFUSED[case]
    model = Counting(MODELS["llama"])
    monkeypatch.setattr(estimate_file, "UNASKED", 0)
    monkeypatch.setattr(estimate_file, "available_memory", lambda _: 2**20)
    with pytest.raises(MemoryLimitError) as caught:
        work(model)
    assert (model.blocks, model.embedded) == ([], 0)
    for message in (*messages, r"; 1\.0 MiB available\. Less is taken by"):
        assert re.search(message, str(caught.value))


def test_what_fits_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_file, "UNASKED", 0)
    for free in (2**40, None):
        monkeypatch.setattr(estimate_file, "available_memory", lambda _, free=free: free)
        assert wb.generate(MODELS["gpt2"], IDS[:1], max_new_tokens=1).tokens
        assert wb.gradients(MODELS["gpt2"], IDS, "hook_embed", METRIC)


def test_what_would_make_it_fit_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["llama"]

    def need(file: Any, work: Work) -> int:
        with monkeypatch.context() as patch:
            return needed(file, work, model, patch).total

    rows = wb.metrics.logit(wb.Contrast(IDS[:2].tolist(), IDS[:2].tolist(), 3, 7))
    whole = need(gradients_file, GRADIENTS["of the embedding"])
    assert need(gradients_file, lambda m: wb.gradients(m, IDS[:2], "hook_embed", rows)) < whole
    assert need(gradients_file, GRADIENTS["of a late one"]) < whole
    many = need(gradients_file, GRADIENTS["jvp, many"])
    assert need(gradients_file, GRADIENTS["jvp of a metric"]) < many
    assert need(sweep_file, SWEEPS["small batches"]) < need(sweep_file, SWEEPS["large ones"])
    cached = need(generate_file, GENERATIONS["cached"])
    assert need(generate_file, GENERATIONS["in chunks"]) < cached
    assert cached < need(generate_file, lambda m: wb.generate(m, IDS, max_new_tokens=60))
