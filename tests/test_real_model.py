"""The default model against transformers, and what it must do; needs the asset."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import workbench as wb
from workbench.attribution import METHODS as ATTRIBUTION
from workbench.core.data import batch_of
from workbench.models.checkpoint import resolve
from workbench.models.transformer import Transformer
from workbench.steering import METHODS as STEERING

pytestmark = pytest.mark.asset
unchecked = pytest.mark.usefixtures("unchecked")  # what tiny models show of shapes holds here too
PROMPTS = (
    "The capital of France is",
    "When Mary and John went to the store, John gave a drink to",
    "a",
    "\n",
    " ",
    "1 + 1 = 2, 2 + 2 = 4, 3 + 3 =",
    "3.14159265358979323846",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "SELECT name FROM users WHERE age > 30 ORDER BY",
    '{"key": [1, 2, {"nested": null}], "other":',
    "<p>Hello &amp; <b>world</b></p>",
    "<script>alert(1)</script>",
    "Ünïcödé – “quotes” … ‽",
    "東京は日本の首都です。",
    "Привет, мир! Как дела?",
    "🙂🙃🚀👩‍👩‍👧‍👦",
    "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "The quick brown fox jumps over the lazy dog. " * 12,
    "To be, or not to be, that is the question:\n\tWhether 'tis nobler in the mind",
)
CONTRAST = wb.Contrast(
    clean="When Mary and John went to the store, John gave a drink to",
    corrupt="When Mary and John went to the store, Mary gave a drink to",
    target=" Mary",
    foil=" John",
)
VECTOR = torch.randn(576, generator=torch.Generator().manual_seed(0))
TOLERANCE = 1e-4  # float32; measured: 0.0 for single prompts


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The same weights in transformers."""
    from transformers import AutoModelForCausalLM

    folder = resolve("smollm2-135m-instruct")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def expected(default_model: Transformer, theirs: Any) -> Sequence[torch.Tensor]:
    """Their logits of every prompt, each alone."""
    with torch.no_grad():
        ids = [batch_of(default_model, prompt).tokens for prompt in PROMPTS]
        return [theirs(row).logits[0] for row in ids]


def test_logits_equal_those_of_transformers(
    default_model: Transformer, expected: Sequence[torch.Tensor]
) -> None:
    assert len(PROMPTS) == 20
    for prompt, logits in zip(PROMPTS, expected, strict=True):
        worst = (wb.run(default_model, prompt).logits[0] - logits).abs().max()
        assert float(worst) <= TOLERANCE, prompt


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_single_prompts(
    default_model: Transformer, expected: Sequence[torch.Tensor], side: Any
) -> None:
    order = sorted(range(20), key=lambda i: len(expected[i]))
    extremes, middle = [order[0], order[-1]], order[1:-1]
    for some in (extremes, *(middle[i : i + 6] for i in range(0, 18, 6))):
        trace = wb.run(default_model, [PROMPTS[i] for i in some], padding_side=side)
        assert trace.batch.real is not None
        for row, i in enumerate(some):
            mine = trace.logits[row][trace.batch.real[row]]
            assert float((mine - expected[i]).abs().max()) <= TOLERANCE, PROMPTS[i]


def test_greedy_text_equals_that_of_transformers(default_model: Transformer, theirs: Any) -> None:
    ids = batch_of(default_model, "My day was").tokens
    made = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=32,
        do_sample=False,
        pad_token_id=0,
    )
    ours = wb.generate(default_model, "My day was", max_new_tokens=32)
    assert list(ours.tokens[0]) == made[0, ids.shape[1] :].tolist()


@unchecked
def test_the_cache_changes_no_token(default_model: Transformer) -> None:
    push = wb.Intervention(
        "blocks.14.hook_resid_post", wb.ops.add(3 * VECTOR), positions="generated"
    )
    prompts = ["My day was", "The capital of France is the city of"]
    for plan in ([], [push]):
        cached = wb.generate(default_model, prompts, plan=plan, max_new_tokens=12)
        full = wb.generate(default_model, prompts, plan=plan, max_new_tokens=12, use_cache=False)
        assert cached.tokens == full.tokens


def test_direct_logit_attribution_sums_to_the_logit_difference(default_model: Transformer) -> None:
    scores = ATTRIBUTION["direct_logit_attribution"](default_model, CONTRAST)
    exact = wb.metrics.logit_difference(CONTRAST)(wb.run(default_model, CONTRAST.clean))
    assert float(exact) == pytest.approx(6.12, abs=0.01)
    assert abs(float(scores.scores.sum() - exact)) < 1e-3


def test_the_clean_residual_everywhere_restores_the_clean_metric_exactly(
    default_model: Transformer,
) -> None:
    metric = wb.metrics.logit_difference(CONTRAST)
    for layer in (0, 11, 29):
        site = f"blocks.{layer}.hook_resid_pre"
        clean = wb.run(default_model, CONTRAST.clean, record=site)
        patch = wb.Intervention(site, wb.ops.set(clean[site]))
        patched = wb.run(default_model, CONTRAST.corrupt, plan=[patch])
        assert torch.equal(metric(patched), metric(clean))


@unchecked
def test_patching_finds_the_name_and_the_last_token(default_model: Transformer) -> None:
    effect = ATTRIBUTION["activation_patching"](
        default_model, CONTRAST, sites="blocks.*.hook_resid_pre", axes=("layer", "pos")
    )
    assert effect.scores.shape == (30, 14)
    changed = effect.scores.abs() > 1e-3
    assert changed[0].nonzero().flatten().tolist() == [9]  # where the prompts differ
    total = float((effect.donor - effect.base)[0])
    assert float(effect.scores[0, 9]) == pytest.approx(total, abs=1e-3)


def test_strength_zero_is_bit_exact(default_model: Transformer) -> None:
    happy = STEERING["mean_difference"](
        default_model,
        positive=["I love this.", "I am so happy."],
        negative=["I hate this.", "I am so sad."],
        site="blocks.14.hook_resid_post",
    )
    plain = wb.run(default_model, "My day was").logits
    still = wb.run(default_model, "My day was", plan=[happy.at(0.0)]).logits
    moved = wb.run(default_model, "My day was", plan=[happy.at(1.0)]).logits
    assert torch.equal(plain.view(torch.int32), still.view(torch.int32))
    assert not torch.equal(plain, moved)


@unchecked
def test_eight_threads_with_different_plans(default_model: Transformer) -> None:
    plans = [
        [wb.Intervention("blocks.23.attn.hook_z", wb.ops.zero(), heads=[head])] for head in range(8)
    ]
    alone = [wb.run(default_model, PROMPTS[1], plan=plan).logits for plan in plans]
    with ThreadPoolExecutor(8) as pool:
        turns = [which % 8 for which in range(64)]
        made = pool.map(lambda i: wb.run(default_model, PROMPTS[1], plan=plans[i]).logits, turns)
        wrong = [i for i, logits in zip(turns, made, strict=True) if not close(logits, alone[i])]
    assert wrong == []
    assert not close(alone[3], alone[4])


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for the order of sums, which torch's own threads may change."""
    return float((one - other).abs().max()) < TOLERANCE
