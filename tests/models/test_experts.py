"""Experts: the brick is its formula, computes no more than was chosen, and loads either layout."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.families import hf
from workbench.core.errors import OptionError, WeightsError
from workbench.core.tap import UNTAPPED
from workbench.models.layers.context import in_block
from workbench.models.layers.experts import (
    Choice,
    Experts,
    GatedExpert,
    of_all,
    of_all_normalised,
    of_chosen,
)
from workbench.models.load import assemble

AT = in_block(0)
X = tiny.normal(2, 5, 6, dtype=torch.float64)
SPARSE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
CHOICES: dict[str, Choice] = {
    "of all": of_all,
    "normalised": of_all_normalised,
    "of chosen": of_chosen,
}


def experts(choose: Choice, k: int = 2) -> Experts:
    """Four small ones, every weight drawn."""
    made = Experts(6, [GatedExpert(6, 7, F.silu) for _ in range(4)], AT, k=k, choose=choose)
    draws = torch.Generator().manual_seed(0)
    for weight in made.parameters():
        weight.data = torch.randn(weight.shape, generator=draws, dtype=torch.float64)
    return made.requires_grad_(requires_grad=False)


def each(made: Experts) -> Tensor:
    """What every expert would write for every token; batch pos expert d_model."""
    parts = [part.write(X.flatten(0, 1)) for part in made.experts if isinstance(part, GatedExpert)]
    return torch.stack(parts, 1).unflatten(0, (2, 5))


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_experts_are_their_formula(choose: str, k: int) -> None:
    made, spy = experts(CHOICES[choose], k), tiny.Spy()
    scores = X @ made.router.weight.T
    best = scores >= scores.sort(-1, descending=True).values[..., k - 1 : k]
    weights = scores.softmax(-1) * best
    if choose != "of all":
        weights = weights / weights.sum(-1, keepdim=True)
    expected = torch.einsum("bpe,bped->bpd", weights, each(made))
    tiny.close(made.feed(X, UNTAPPED), expected)
    tiny.close(made.feed(X, spy), expected)
    assert spy.fired == [(site, (2, 5, k)) for site in made.sites]


def test_only_chosen_experts_are_computed() -> None:
    """One that nobody chose may hold anything."""
    made, x = experts(of_chosen, 1), X[:, :1]
    chosen = set((x @ made.router.weight.T).argmax(-1).unique().tolist())
    plain, idle = made.feed(x, UNTAPPED), set(range(4)) - chosen
    assert idle
    for index in idle:
        for weight in made.experts[index].parameters():
            weight.data.fill_(float("nan"))
    assert torch.equal(made.feed(x, UNTAPPED), plain)


def test_more_experts_a_token_than_there_are_is_refused() -> None:
    with pytest.raises(OptionError, match="experts per token must be at most 4, got 5"):
        experts(of_all, 5)


# --- in models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SPARSE, "gpt_oss"])
def test_an_intervention_chooses_other_experts(name: str) -> None:
    model, ids = wb.load(hf(name)), tiny.tokens(1, 6)
    site = "blocks.1.mlp.hook_expert_indices"
    chosen = wb.run(model, ids, record=site)[site]
    others = (chosen + 1) % 5
    changed = wb.run(model, ids, record=site, plan=[wb.Intervention(site, lambda _: others)])
    assert torch.equal(changed[site], others)
    assert not torch.allclose(changed.logits, wb.run(model, ids).logits)
    with pytest.raises(OptionError, match=r"hook_expert_indices must be within 0…4, got \[7\]"):
        wb.run(model, ids, plan=[wb.Intervention(site, lambda x: torch.full_like(x, 7))])


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_weights_of_the_chosen_sum_to_1(name: str) -> None:
    model = wb.load(hf(name))
    trace = wb.run(model, tiny.tokens(2, 7), record="blocks.*.mlp.hook_expert_weights")
    for layer in range(3):
        weights = trace[f"blocks.{layer}.mlp.hook_expert_weights"]
        tiny.close(weights.sum(-1), torch.ones(2, 7), 1e-6)
        assert torch.equal(weights, weights.sort(-1, descending=True).values)


def on_disk(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as files have them: a matrix for each expert, by the names of each family."""
    found = dict[str, Tensor]()
    letters = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"} if name == "mixtral" else {}
    for key, weight in weights.items():
        layer, joint, kind = key.partition(".mlp.experts.")
        parts = {"down_proj": weight}
        if kind == "gate_up_proj":
            parts = dict(zip(("gate_proj", "up_proj"), weight.chunk(2, 1), strict=True))
        if not joint:
            gate = key.replace(".mlp.gate.", ".block_sparse_moe.gate.")
            found[gate if letters else key] = weight
            continue
        folder = "block_sparse_moe" if letters else "mlp"
        for part, stacked in parts.items():
            for index, matrix in enumerate(stacked):
                found[f"{layer}.{folder}.experts.{index}.{letters.get(part, part)}.weight"] = matrix
    return found


@pytest.mark.parametrize("name", SPARSE)
def test_experts_load_from_one_tensor_or_one_by_one(name: str) -> None:
    theirs: Any = hf(name)
    config, weights = theirs.config.to_dict(), dict(theirs.state_dict())
    apart = on_disk(name, weights)
    assert len(apart) > len(weights)
    model = assemble(config, apart, name=name, rearrange=False)
    ids = tiny.tokens(2, 6)
    assert torch.equal(wb.run(model, ids).logits, wb.run(wb.load(theirs), ids).logits)
    lost = next(key for key in apart if ".experts.3." in key)
    with pytest.raises(WeightsError, match=r"missing: blocks\.0\.mlp\.experts\.3"):
        assemble(config, {k: v for k, v in apart.items() if k != lost}, name=name)


@pytest.mark.parametrize("name", SPARSE)
def test_joint_experts_are_shared_not_copied(name: str) -> None:
    theirs: Any = hf(name)
    memory = {weight.untyped_storage().data_ptr() for weight in theirs.state_dict().values()}
    ours = wb.load(theirs).stack.named_parameters()
    assert all(weight.untyped_storage().data_ptr() in memory for _, weight in ours)
