"""Hook points in a module of the user's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from tests import tiny
from workbench.compat.transformer_lens import HookedRootModule, HookPoint
from workbench.core.errors import EmptySelectionError, OptionError, ShapeError, UnknownNameError

X = tiny.normal(3, 4)


class Twice(HookedRootModule):
    """y = 2 (x + shift), with a point before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([HookPoint()])
        self.hook_out = HookPoint()
        self.shift = nn.Parameter(torch.zeros(4))
        self.setup()

    @override
    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        """The output."""
        return self.hook_out(self.blocks[0](x + self.shift) * scale)


def add_one(value: Tensor, hook: Any) -> None:
    """In place."""
    value += 1


def test_functions_act_where_they_hang_and_edits_in_place_count() -> None:
    model = Twice()
    assert list(model.hook_dict) == ["blocks.0", "hook_out"]
    assert torch.equal(model(X), 2 * X)
    found = model.run_with_hooks(X, fwd_hooks=[("blocks.0", add_one), ("hook_out", add_one)])
    tiny.close(found, 2 * (X + 1) + 1, 1e-6)
    assert torch.equal(model.run_with_hooks(X, model_kwargs={"scale": 3.0}), 3 * X)
    model.add_hook("hook_out", add_one)
    model.add_perma_hook(lambda name: name == "blocks.0", add_one)
    tiny.close(model(X), 2 * (X + 1) + 1, 1e-6)
    model.reset_hooks()
    tiny.close(model(X), 2 * (X + 1), 1e-6)
    model.reset_hooks(including_permanent=True)
    assert torch.equal(model(X), 2 * X)


def test_a_cache_holds_values_and_gradients_and_no_parameter_gets_one() -> None:
    model = Twice()
    output, cache = model.run_with_cache(X)
    assert torch.equal(output, cache["hook_out"])
    assert set(cache) == {"blocks.0", "hook_out"}
    total = Total()
    total(X).backward()
    assert total.inner.shift.grad is not None
    total.zero_grad()
    _, cache = total.run_with_cache(X, names_filter=["inner.blocks.0"], incl_bwd=True)
    assert torch.equal(cache["inner.blocks.0_grad"], torch.full_like(X, 2.0))
    assert total.inner.shift.grad is None


class Total(HookedRootModule):
    """The sum of another's output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Twice()
        self.setup()

    @override
    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        return self.inner(x).sum()


def test_backward_functions_see_and_replace_gradients() -> None:
    total, seen = Total(), list[Tensor]()

    def note(gradient: Tensor, hook: Any) -> Tensor:
        seen.append(gradient)
        return gradient * 10

    out = total.run_with_hooks(X, bwd_hooks=[("inner.blocks.0", note)])
    out.backward()
    assert torch.equal(seen[0], torch.full_like(X, 2.0))
    assert torch.equal(torch.as_tensor(total.inner.shift.grad), torch.full((4,), 60.0))


def test_points_know_their_names_and_layers_and_keep_contexts() -> None:
    model = Twice()

    def count(value: Tensor, hook: HookPoint) -> None:
        hook.ctx["calls"] = hook.ctx.get("calls", 0) + hook.layer() + 1

    model.run_with_hooks(X, fwd_hooks=[("blocks.0", count)])
    assert model.hook_dict["blocks.0"].ctx == {"calls": 1}
    model.clear_contexts()
    assert model.hook_dict["blocks.0"].ctx == {}
    with pytest.raises(OptionError, match="asked inside a numbered block, got 'hook_out'"):
        model.hook_dict["hook_out"].layer()
    lone = HookPoint()
    lone.add_hook(add_one)
    assert torch.equal(lone(X), X + 1)


def test_names_that_are_none_are_refused() -> None:
    model: Any = Twice()
    with pytest.raises(UnknownNameError, match="No site named 'hook_in'"):
        model.add_hook("hook_in", add_one)
    with pytest.raises(UnknownNameError, match="No hook point named 'hook_in'"):
        model.run_with_cache(X, names_filter="hook_in")
    with pytest.raises(EmptySelectionError, match="names_filter"):
        model.run_with_cache(X, names_filter=lambda name: False)
    with pytest.raises(TypeError, match="fwd_hook"):
        model.run_with_hooks(X, fwd_hook=[])


def test_a_cache_is_cut_and_no_row_is_lost() -> None:
    model, rows = Twice(), tiny.normal(1, 5, 4)
    _, cache = model.run_with_cache(rows, pos_slice=(1, 3), remove_batch_dim=True)
    assert torch.equal(cache["hook_out"], 2 * rows[0, 1:3])
    _, cache = model.run_with_cache(rows, pos_slice=-1)
    assert cache["hook_out"].shape == (1, 1, 4)
    with pytest.raises(ShapeError, match=r"remove_batch_dim at blocks\.0: expected a single row"):
        model.run_with_cache(X, remove_batch_dim=True)


def test_caching_hooks_fill_a_dictionary_run_by_run() -> None:
    model = Twice()
    cache = model.add_caching_hooks("hook_out", incl_bwd=True)
    model(X).sum().backward()
    assert torch.equal(cache["hook_out"], 2 * X)
    assert torch.equal(cache["hook_out_grad"], torch.ones_like(X))
    model.remove_all_hook_fns()
    found, forward, backward = model.get_caching_hooks(pos_slice=(0, 2))
    model.run_with_hooks(X, fwd_hooks=forward, bwd_hooks=backward)
    assert set(found) == {"blocks.0", "hook_out"}
    assert torch.equal(found["hook_out"], 2 * X[:2])
    assert backward == []
    model.hook_dict["hook_out"].add_hook(add_one)
    model.hook_dict["hook_out"].remove_hooks("both")
    assert torch.equal(model(X), 2 * X)
