"""Patching: TransformerLens 2.18's numbers, and equal to one whole forward per cell."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.compat.standin import BOTH, LN, RMS, Golden, Hooked, Point, Standin, close
from workbench.compat.transformer_lens import patching
from workbench.compat.transformer_lens.names import get_act_name
from workbench.core.errors import OptionError, ShapeError, UnknownNameError

EACH = pytest.mark.parametrize("gold", BOTH, ids=["ln", "rms"])
READY: dict[str, Callable[..., Tensor]] = {
    "resid_pre": patching.get_act_patch_resid_pre,
    "resid_mid": patching.get_act_patch_resid_mid,
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
    "attn_head_out_by_pos": patching.get_act_patch_attn_head_out_by_pos,
    "attn_head_q_by_pos": patching.get_act_patch_attn_head_q_by_pos,
    "attn_head_k_by_pos": patching.get_act_patch_attn_head_k_by_pos,
    "attn_head_v_by_pos": patching.get_act_patch_attn_head_v_by_pos,
    "attn_head_pattern_by_pos": patching.get_act_patch_attn_head_pattern_by_pos,
    "attn_head_pattern_dest_src_pos": patching.get_act_patch_attn_head_pattern_dest_src_pos,
    "attn_head_out_all_pos": patching.get_act_patch_attn_head_out_all_pos,
    "attn_head_q_all_pos": patching.get_act_patch_attn_head_q_all_pos,
    "attn_head_k_all_pos": patching.get_act_patch_attn_head_k_all_pos,
    "attn_head_v_all_pos": patching.get_act_patch_attn_head_v_all_pos,
    "attn_head_pattern_all_pos": patching.get_act_patch_attn_head_pattern_all_pos,
    "attn_head_all_pos_every": patching.get_act_patch_attn_head_all_pos_every,
    "attn_head_by_pos_every": patching.get_act_patch_attn_head_by_pos_every,
    "block_every": patching.get_act_patch_block_every,
}
AT_POS, AT_POS_HEAD = patching.layer_pos_patch_setter, patching.layer_pos_head_vector_patch_setter
KINDS: dict[str, tuple[Any, Sequence[int]]] = {  # activation: setter, and how far its indices run
    "resid_pre": (AT_POS, (2, 6)),
    "pre": (AT_POS, (2, 6)),
    "k": (AT_POS_HEAD, (2, 6, 2)),
    "rot_k": (AT_POS_HEAD, (2, 6, 2)),
    "z": (AT_POS_HEAD, (2, 6, 4)),
    "result": (patching.layer_head_vector_patch_setter, (2, 4)),
    "attn_scores": (patching.layer_head_pos_pattern_patch_setter, (2, 4, 6)),
    "pattern": (patching.layer_head_dest_src_pos_pattern_patch_setter, (2, 2, 6, 6)),
}


NO_SITE = (LN, "rot_k")


def difference(logits: Tensor) -> Tensor:
    """What the golden sweeps measured."""
    return (logits[:, -1, 3] - logits[:, -1, 7]).mean()


def everything(logits: Tensor) -> Tensor:
    """A metric that reads every logit of every position."""
    return (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()


@EACH
@pytest.mark.parametrize("name", READY)
def test_sweeps_are_those_of_the_classic(gold: Golden, name: str) -> None:
    values = READY[name](gold.model, gold.tokens["corrupt"], gold.cache(), difference)
    assert values.dtype == torch.float32
    close(values, gold.expected("patch")[name], 1e-4)


def test_every_ready_made_sweep_is_compared() -> None:
    made = {name for name in patching.__all__ if name.startswith("get_act_patch_")}
    direct = {"get_act_patch_direct_path", "get_act_patch_direct_path_all_sources"}
    assert made - direct == {f"get_act_patch_{name}" for name in READY}
    assert set(READY) == set(LN.expected("patch"))


@cache
def recorded(gold: Golden) -> dict[str, Tensor]:
    """Every activation of the clean run, as the engine has them."""
    trace = wb.run(gold.model.engine, gold.tokens["clean"], record="*")
    return {str(site): value for site, value in trace.items()}


def by_hand(gold: Golden, tokens: Tensor, name: str, setter: Any, index: list[int]) -> Tensor:
    """The metric of one cell by a whole forward."""
    full = get_act_name(name, index[0])
    clean = recorded(gold)[full]

    def hook(value: Tensor, hook: object) -> Tensor:
        return setter(value, index, clean)

    return everything(wb.run(gold.model.engine, tokens, tap=Hooked([(full, hook)])).logits)


@pytest.mark.parametrize(
    ("gold", "name"), [(gold, name) for gold in BOTH for name in KINDS if (gold, name) != NO_SITE]
)
@pytest.mark.parametrize("shared", [0, 3, 6])
def test_cells_are_whole_forwards(gold: Golden, name: str, shared: int) -> None:
    """With prompts alike in the first positions, where cells need not be run, or not at all."""
    tokens = torch.cat([gold.tokens["clean"][:, :shared], gold.tokens["corrupt"][:, shared:]], 1)
    setter, ranges = KINDS[name]
    cells = patching.make_df_from_ranges(ranges, list("abcd")[: len(ranges)]).to_numpy()[::13]
    frame, clean = pd.DataFrame(cells), recorded(gold)
    with tiny.unchecked():
        values = patching.generic_activation_patch(
            gold.model, tokens, clean, everything, setter, name, index_df=frame
        )
        hand = [by_hand(gold, tokens, name, setter, cell) for cell in cells.tolist()]
    close(values, torch.stack(hand), 5e-4)  # a sum of 480 logits


def test_any_setter_may_be_used_and_gets_its_own_copy() -> None:
    tokens = RMS.tokens["corrupt"]
    before = {name: value.clone() for name, value in recorded(RMS).items()}
    clean = recorded(RMS)

    def mixed(corrupted: Tensor, index: Sequence[int], clean: Tensor) -> Tensor | None:
        layer, pos = index
        if pos % 2:
            return (corrupted + clean * (layer + 1)) / 2
        corrupted[:, pos] = 0.0
        return None  # an edit in place counts

    values = patching.generic_activation_patch(
        RMS.model, tokens, clean, everything, mixed, "mlp_out", ("layer", "pos")
    )
    for layer in range(2):
        for pos in range(6):
            own = mixed(clean[f"blocks.{layer}.hook_mlp_out"].clone(), [layer, pos], torch.ones(()))
            assert own is None or own.shape == (2, 6, 32)

            def hook(value: Tensor, hook: object, index: tuple[int, int] = (layer, pos)) -> Tensor:
                new = mixed(value, index, clean[f"blocks.{index[0]}.hook_mlp_out"])
                return value if new is None else new

            tap = Hooked([(f"blocks.{layer}.hook_mlp_out", hook)])
            close(
                values[layer, pos],
                everything(wb.run(RMS.model.engine, tokens, tap=tap).logits),
                5e-4,
            )
    assert all(tiny.same_bytes(clean[name], before[name]) for name in before)


def test_many_batches_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (LN.model, LN.tokens["corrupt"], LN.cache(), everything)
    one = patching.get_act_patch_attn_head_pattern_dest_src_pos(*arguments)
    monkeypatch.setattr("workbench.compat.transformer_lens._cells._TOKENS", 30)
    monkeypatch.setattr("workbench.compat.transformer_lens._cells._AHEAD", 2)
    close(patching.get_act_patch_attn_head_pattern_dest_src_pos(*arguments), one, 5e-4)


def test_where_the_model_looks_ahead_all_positions_run() -> None:
    """A cell that differs late changes what comes before it, if the model is not causal."""
    weights, cfg = LN.weights, replace(LN.model.cfg, attention_dir="bidirectional")
    model = Standin(weights, cfg, LN.model.engine)
    base = patching.get_act_patch_resid_pre(model, LN.tokens["corrupt"], LN.cache(), everything)
    close(
        base,
        patching.get_act_patch_resid_pre(LN.model, LN.tokens["corrupt"], LN.cache(), everything),
        5e-4,
    )


def test_pads_are_masked_as_the_facade_says() -> None:
    model = Standin(LN.weights, LN.model.cfg, LN.model.engine)
    model.mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    tokens, cache = LN.tokens["corrupt"], LN.cache()
    values = patching.get_act_patch_attn_head_out_all_pos(model, tokens, cache, difference)
    rows = [tokens[0, 2:].tolist(), tokens[1].tolist()]
    for head in range(4):

        def hook(value: Tensor, hook: object, head: int = head) -> Tensor:
            value[:, :, head] = cache["z", 1][:, :, head]
            return value

        tap = Hooked([("blocks.1.attn.hook_z", hook)])
        trace = wb.run(LN.model.engine, rows, tap=tap, padding_side="left")
        close(values[1, head], difference(trace.logits), 1e-4)


def test_hooks_that_stand_on_the_model_act_in_every_cell() -> None:
    model = Standin(LN.weights, LN.model.cfg, LN.model.engine)
    seen: list[tuple[int, ...]] = []

    def halve(value: Tensor, hook: object) -> Tensor:
        seen.append(tuple(value.shape))
        return value / 2

    model.hook_dict = {"blocks.0.hook_mlp_out": Point((halve,))}
    tokens, cache = LN.tokens["corrupt"], LN.cache()
    values = patching.get_act_patch_attn_head_out_all_pos(model, tokens, cache, difference)
    assert seen == [(2, 6, 32)] * 8

    def patch(value: Tensor, hook: object) -> Tensor:
        value[:, :, 2] = cache["z", 1][:, :, 2]
        return value

    tap = Hooked([("blocks.0.hook_mlp_out", halve), ("blocks.1.attn.hook_z", patch)])
    close(values[1, 2], difference(wb.run(LN.model.engine, tokens, tap=tap).logits), 1e-4)
    with pytest.raises(OptionError, match="reset_hooks"):
        patching.get_act_patch_direct_path(model, tokens, cache, cache, difference, 0, 0)


def test_indices_come_back_as_a_frame() -> None:
    arguments = (LN.model, LN.tokens["corrupt"], LN.cache(), difference)
    values, frame = patching.get_act_patch_attn_head_out_all_pos(*arguments, return_index_df=True)
    assert list(frame.columns) == ["layer", "head"]
    assert frame.to_numpy().tolist() == [[n, h] for n in range(2) for h in range(4)]
    setter = patching.layer_head_vector_patch_setter
    some = frame.iloc[[5, 2]]
    flat, same = patching.generic_activation_patch(
        *arguments, setter, "z", index_df=some, return_index_df=True
    )
    assert same is some
    close(flat, torch.stack([values[1, 1], values[0, 2]]))


def test_wrong_calls_are_refused() -> None:
    model, tokens, cache = LN.model, LN.tokens["corrupt"], LN.cache()
    generic, setter = patching.generic_activation_patch, patching.layer_pos_patch_setter
    with pytest.raises(OptionError, match="index_axis_names and index_df"):
        generic(model, tokens, cache, difference, setter, "resid_pre")
    with pytest.raises(UnknownNameError, match="No axis named 'position'"):
        generic(model, tokens, cache, difference, setter, "resid_pre", ("layer", "position"))
    with pytest.raises(UnknownNameError, match=r"blocks\.0\.hook_resid_pro"):
        generic(model, tokens, cache, difference, setter, "resid_pro", ("layer", "pos"))
    with pytest.raises(OptionError, match="the metric must be one number"):
        generic(model, tokens, cache, lambda x: x[:, -1, 0], setter, "resid_pre", ("layer", "pos"))
    with pytest.raises(ShapeError, match=r"hook_resid_pre: expected \(2, 6, 32\)"):
        generic(
            model, tokens, cache, difference, lambda x, i, c: x[:1], "resid_pre", ("layer", "pos")
        )


@EACH
@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_direct_paths_are_those_of_hooks_on_one_input(gold: Golden, component: Any) -> None:
    """With grouped attention too, which 4.x refuses: a path ends in one head."""
    corrupt = wb.run(gold.model.engine, gold.tokens["corrupt"], record="*")
    caches = gold.cache(), {str(site): value for site, value in corrupt.items()}
    arguments = (gold.model, gold.tokens["corrupt"], *caches, difference)
    every = patching.get_act_patch_direct_path_all_sources(*arguments, component)
    close(every, gold.expected("direct")[component], 1e-4)
    one = patching.get_act_patch_direct_path(*arguments, 0, 2, component)
    close(one, every[0, 2])
    assert not patching.get_act_patch_direct_path(*arguments, 1, 0, component).any()


def test_direct_paths_of_no_such_head_are_refused() -> None:
    arguments = (LN.model, LN.tokens["corrupt"], LN.cache(), LN.cache(), difference)
    for wrong, said in (((2, 0), "src_layer"), ((0, 4), "src_head"), ((0, -1), "src_head")):
        with pytest.raises(OptionError, match=said):
            patching.get_act_patch_direct_path(*arguments, *wrong)
    with pytest.raises(OptionError, match="component"), tiny.unchecked():
        patching.get_act_patch_direct_path(*arguments, 0, 0, "z")  # pyright: ignore[reportArgumentType]
