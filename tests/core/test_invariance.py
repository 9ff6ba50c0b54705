"""A plan means the same however a text is run: cached, in full, padded, batched, in any order.

For every operator and scope: the logits that chose each generated token, under the plan, equal
those of one full forward over the finished text (steering reference, section 3.3).
"""

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.data import Batch, batch_of
from workbench.core.operators import Operator
from workbench.core.place import At, Generated, Prompt, Scope, Window

NEW = 4
PROMPTS = ("abcde", "xy", "the cat")
SITE = "blocks.1.hook_resid_post"
HEAD = "blocks.1.attn.hook_z"
SCOPES: dict[str, Scope | None] = {
    "all": None,
    "prompt": Prompt(),
    "generated": Generated(),
    "predicting": Generated(predicting=True),
    "positions": At((1, -1)),
    "window": Window(2, 8),
    "from the end": Window(-2, None),
}


def operators(width: int) -> dict[str, Operator]:
    """One of each kind; the operand of `set` differs at every position."""
    vector = tiny.normal(width, seed=5)
    return {
        "zero": wb.ops.zero(),
        "set": wb.ops.set(tiny.normal(32, width, seed=6)),
        "mean": wb.ops.mean(vector),
        "add": wb.ops.add(3 * vector),
        "scale": wb.ops.scale(-0.5),
        "project_out": wb.ops.project_out(vector),
    }


def forced(model: wb.Model, made: wb.Generation, row: int, plan: list[wb.Intervention]) -> Tensor:
    """Log probabilities of a row's tokens in one full forward over prompt and text."""
    prompt, text = made.prompt[row], made.tokens[row]
    batch = batch_of(model, [prompt + text])
    whole = Batch(batch.tokens, None, batch.start, torch.tensor([len(prompt)]))
    optional = [one.on_rows([0], optional=True) for one in plan]
    logits = wb.run(model, whole, plan=optional).logits[0].log_softmax(-1)
    places = torch.arange(len(prompt) - 1, len(prompt) + len(text) - 1)
    return logits[places, torch.tensor(text)]


def change(name: str, model: wb.Model, scope: Scope | None) -> wb.Intervention:
    """An operator on the stream, or a change of one head."""
    if name == "one head":
        half = wb.ops.scale(0.25)
        return wb.Intervention(HEAD, half, positions=scope, heads=[1], optional=True)
    operator = operators(model.sizes.d_model)[name]
    return wb.Intervention(SITE, operator, positions=scope, optional=True)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", [*operators(1), "one head"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_cached_batched_steps_equal_one_full_forward(kind: str, name: str, scope: str) -> None:
    model = tiny.model(kind)
    plan = [change(name, model, SCOPES[scope])]
    together = wb.generate(model, PROMPTS, plan=plan, max_new_tokens=NEW)
    for row, prompt in enumerate(PROMPTS):
        alone = wb.generate(model, prompt, plan=plan, max_new_tokens=NEW)
        full = wb.generate(model, prompt, plan=plan, max_new_tokens=NEW, use_cache=False)
        assert together.tokens[row] == alone.tokens[0] == full.tokens[0]
        said = torch.tensor(together.log_probabilities[row])
        tiny.close(said, forced(model, together, row, plan), 1e-5)
        tiny.close(said, torch.tensor(full.log_probabilities[0]), 1e-5)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_open_attention_sites_mean_the_same_with_a_cache(kind: str) -> None:
    model = tiny.model(kind)
    plan = [
        wb.Intervention("blocks.0.attn.hook_attn_scores", wb.ops.scale(0.5), heads=[0]),
        wb.Intervention("blocks.1.attn.hook_pattern", wb.ops.scale(0.5), positions="generated"),
        wb.Intervention("blocks.2.attn.hook_result", wb.ops.zero(), heads=[1]),
        wb.Intervention("blocks.2.attn.hook_k", wb.ops.scale(2.0), positions=[0, 1]),
    ]
    together = wb.generate(model, PROMPTS, plan=plan, max_new_tokens=NEW)
    for row in range(len(PROMPTS)):
        said = torch.tensor(together.log_probabilities[row])
        tiny.close(said, forced(model, together, row, plan), 1e-5)


@pytest.mark.parametrize("site", ["attn.hook_attn_scores", "attn.hook_pattern"])
@pytest.mark.parametrize("name", ["zero", "set", "mean", "add", "scale"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_no_change_of_attention_lets_anyone_look_ahead(kind: str, name: str, site: str) -> None:
    model, operator = tiny.model(kind), operators(1)[name]
    if name == "set":
        operator = wb.ops.set(torch.tensor(0.2))
    plan = [wb.Intervention(f"blocks.*.{site}", operator)]
    together = wb.generate(model, PROMPTS, plan=plan, max_new_tokens=NEW)
    assert 0 < together.receipts[0].change < float("inf")
    for row in range(len(PROMPTS)):
        said = torch.tensor(together.log_probabilities[row])
        tiny.close(said, forced(model, together, row, plan), 1e-5)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_rows_of_a_batch_may_have_plans_of_their_own(kind: str) -> None:
    model = tiny.model(kind)
    vectors = tiny.normal(3, model.sizes.d_model, seed=7)
    plans = [[wb.Intervention(SITE, wb.ops.add(2 * v), positions="generated")] for v in vectors]
    mixed = [one.on_rows([row]) for row, plan in enumerate(plans) for one in plan]
    together = wb.generate(model, PROMPTS, plan=mixed, max_new_tokens=NEW)
    permuted = wb.generate(
        model,
        PROMPTS[::-1],
        plan=[one.on_rows([2 - row]) for row, plan in enumerate(plans) for one in plan],
        max_new_tokens=NEW,
    )
    for row, prompt in enumerate(PROMPTS):
        alone = wb.generate(model, prompt, plan=plans[row], max_new_tokens=NEW)
        assert together.tokens[row] == alone.tokens[0] == permuted.tokens[2 - row]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_an_unsteered_row_is_bit_exact_beside_a_steered_one(kind: str) -> None:
    model = tiny.model(kind)
    push = wb.Intervention(SITE, wb.ops.add(tiny.normal(model.sizes.d_model)), rows=[1])
    steered = wb.run(model, ["abcd", "abcd"], plan=[push]).logits
    plain = wb.run(model, ["abcd", "abcd"]).logits
    assert tiny.same_bytes(steered[0], plain[0])
    assert not torch.equal(steered[1], plain[1])


def test_a_rows_draws_do_not_depend_on_its_neighbours() -> None:
    model = tiny.model("llama")
    together = wb.generate(model, PROMPTS, temperature=1.0, seed=[4, 5, 6], max_new_tokens=NEW)
    alone = wb.generate(model, PROMPTS[1], temperature=1.0, seed=5, max_new_tokens=NEW)
    again = wb.generate(model, PROMPTS, temperature=1.0, seed=4, max_new_tokens=NEW)
    assert together.tokens[1] == alone.tokens[0]
    assert together.tokens == again.tokens  # an integer seed counts up by row
