"""Classic hooks: order, levels, copies, contexts and gradients, and none of it on the model."""

from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.compat.classic import IDS, fresh, logits, raw
from workbench.compat.transformer_lens.hooked_transformer import HookedTransformer
from workbench.core.errors import EmptySelectionError, OptionError, ShapeError, UnknownNameError

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
SITE = "blocks.1.hook_resid_post"


def double(value: Tensor, hook: Any) -> Tensor:
    """Twice the value."""
    return value * 2


def hooked(facade: HookedTransformer, *pairs: Any, **options: Any) -> Tensor:
    """The logits of a run with hooks."""
    return torch.as_tensor(facade.run_with_hooks(IDS, fwd_hooks=list(pairs), **options))


def native(kind: str, site: str, operator: Any, **options: Any) -> Tensor:
    """The logits of the same change as an intervention."""
    change = wb.Intervention(site, operator, **options)
    return wb.run(tiny.model(kind), IDS, plan=[change]).logits


@kinds
@pytest.mark.parametrize(
    "site", [SITE, "blocks.1.attn.hook_result", "blocks.0.hook_v_input", "blocks.2.hook_mlp_in"]
)
def test_a_hook_is_the_intervention_of_its_function(kind: str, site: str) -> None:
    expected = native(kind, site, wb.ops.scale(2.0))
    tiny.close(hooked(raw(kind), (site, double)), expected, 1e-5)


@kinds
def test_zeroing_a_head_s_result_is_zeroing_its_z(kind: str) -> None:
    def cut(value: Tensor, hook: Any) -> None:
        value[:, :, 1] = 0

    pair = [hooked(raw(kind), (f"blocks.1.attn.hook_{name}", cut)) for name in ("result", "z")]
    tiny.close(pair[0], pair[1], 1e-5)
    assert not torch.allclose(pair[0], logits(raw(kind)))


@kinds
def test_an_edit_in_place_counts_at_every_site_and_nowhere_else(kind: str) -> None:
    facade, model = raw(kind, torch.float64), tiny.model(kind, torch.float64)
    before = tiny.digest(model)
    base = logits(facade)
    for site in map(str, model.sites):

        def write(value: Tensor, hook: Any) -> None:
            value.mul_(0.5)

        def give(value: Tensor, hook: Any) -> Tensor:
            return value * 0.5

        written = facade.run_with_hooks(IDS, fwd_hooks=[(site, write)])
        given = facade.run_with_hooks(IDS, fwd_hooks=[(site, give)])
        assert tiny.same_bytes(torch.as_tensor(written), torch.as_tensor(given)), site
        assert not torch.equal(torch.as_tensor(written), base), site
    assert tiny.digest(model) == before
    assert tiny.same_bytes(logits(facade), base)


def test_the_next_hook_sees_what_the_one_before_left_in_the_order_they_were_added() -> None:
    facade, seen = fresh(), list[str]()

    def named(name: str) -> Any:
        def note(value: Tensor, hook: Any) -> None:
            seen.append(name)

        return note

    facade.add_hook(SITE, named("first"))
    facade.add_hook(SITE, named("prepended"), prepend=True)
    with facade.hooks([(SITE, named("in the block"))]):
        facade.add_hook(SITE, named("added in the block"))
        facade(IDS)
    assert seen == ["prepended", "first", "in the block", "added in the block"]
    tiny.close(
        hooked(raw("gpt2"), (SITE, double), (SITE, double)),
        native("gpt2", SITE, wb.ops.scale(4.0)),
        1e-5,
    )


def test_blocks_nest_and_end_also_by_an_exception() -> None:
    facade, base = fresh(), logits(raw("gpt2"))
    once = hooked(raw("gpt2"), (SITE, double))
    with facade.hooks([(SITE, double)]):
        assert facade.context_level == 1
        with facade.hooks([("hook_embed", double)]):
            assert facade.context_level == 2
        assert torch.equal(logits(facade), once)
    assert torch.equal(logits(facade), base)

    def fail() -> None:
        with facade.hooks([(SITE, double)]):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert facade.context_level == 0
    assert torch.equal(logits(facade), base)


def test_reset_removes_all_but_permanent_hooks_those_of_open_blocks_too() -> None:
    facade, base = fresh(), logits(raw("gpt2"))
    facade.add_perma_hook("hook_embed", double)
    permanent = logits(facade)
    facade.add_hook(SITE, double)
    with facade.hooks([(SITE, double)]):
        facade.reset_hooks()
        assert torch.equal(logits(facade), permanent)
    facade.reset_hooks(including_permanent=True)
    assert torch.equal(logits(facade), base)


@pytest.mark.parametrize("options", [{"direction": "bwd"}, {"level": 7}, {}])
def test_a_block_ends_also_where_hooks_were_removed_in_it(options: dict[str, Any]) -> None:
    facade, base = fresh(), logits(raw("gpt2"))
    with facade.hooks([("hook_embed", double)]), facade.hooks([(SITE, double)]):
        facade.reset_hooks(**options)
        assert facade.context_level == 2
    assert facade.context_level == 0
    assert torch.equal(logits(facade), base)
    with facade.hooks([(SITE, double)], reset_hooks_end=False):
        facade.reset_hooks()
    assert torch.equal(logits(facade), base)  # what was removed is not kept


def test_a_point_removes_its_own_hooks_only() -> None:
    facade = fresh()
    facade.add_hook(lambda name: name.endswith("resid_post"), double)
    facade.add_perma_hook(SITE, double)
    facade.hook_dict[SITE].remove_hooks()
    assert len(facade.hook_dict[SITE].fwd_hooks) == 1  # the permanent one
    assert len(facade.hook_dict["blocks.0.hook_resid_post"].fwd_hooks) == 1
    facade.hook_dict[SITE].remove_hooks(including_permanent=True)
    expected = [("blocks.0.hook_resid_post", double), ("blocks.2.hook_resid_post", double)]
    tiny.close(logits(facade), hooked(raw("gpt2"), *expected))


def test_hooks_that_are_kept_stay_after_their_run() -> None:
    facade = fresh()
    once = hooked(facade, (SITE, double), reset_hooks_end=False)
    assert torch.equal(logits(facade), once)
    assert len(facade.hook_dict[SITE].fwd_hooks) == 1
    facade.reset_hooks(level=1)
    assert torch.equal(logits(facade), logits(raw("gpt2")))


def test_the_caller_s_hooks_are_the_same_after_every_call() -> None:
    facade = fresh()
    facade.add_hook(SITE, double)
    own = facade.hook_dict[SITE].fwd_hooks
    facade.run_with_cache(IDS, fwd_hooks=[(SITE, double)])
    with pytest.raises(ShapeError):
        hooked(facade, ("hook_embed", lambda value, hook: value[:1]))
    assert facade.hook_dict[SITE].fwd_hooks == own


def test_a_hook_knows_where_it_is_and_keeps_what_it_likes() -> None:
    facade, seen = fresh(), dict[str, Any]()

    def note(value: Tensor, hook: Any) -> None:
        hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1
        seen.update(name=hook.name, layer=hook.layer(), positions=hook.positions.tolist())

    for _ in range(2):
        hooked(facade, (SITE, note))
    assert seen == {"name": SITE, "layer": 1, "positions": [list(range(7))] * 2}
    assert facade.hook_dict[SITE].ctx == {"calls": 2}
    hooked(facade, (SITE, note), clear_contexts=True)
    assert facade.hook_dict[SITE].ctx == {}
    hooked(facade, (SITE, note))
    facade.reset_hooks()
    assert facade.hook_dict[SITE].ctx == {}
    with pytest.raises(OptionError, match=r"hook.layer\(\) must be asked inside a block"):
        facade.hook_dict["hook_embed"].layer()


def test_a_predicate_chooses_what_the_flags_enable_or_else_from_all_sites() -> None:
    facade, seen = fresh(), list[str]()

    def note(value: Tensor, hook: Any) -> None:
        seen.append(hook.name)

    hooked(facade, (lambda name: "1.attn.hook_q" in name or "1.hook_q" in name, note))
    assert seen == ["blocks.1.attn.hook_q"]
    hooked(facade, (lambda name: "1.hook_q_input" in name, note))
    assert seen[1:] == ["blocks.1.hook_q_input"]
    with pytest.raises(EmptySelectionError, match="the predicate is true of no site"):
        hooked(facade, (lambda name: False, note))


def test_names_that_are_none_and_shapes_that_differ_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"No site named 'blocks.0.hook_resid'. Nearest"):
        hooked(raw("gpt2"), ("blocks.0.hook_resid", double))
    with pytest.raises(KeyError):
        fresh().add_hook("blocks.9.hook_resid_pre", double)
    with pytest.raises(ShapeError, match=r"blocks.1.hook_resid_post: expected \(2, 7, 24\)"):
        hooked(raw("gpt2"), (SITE, lambda value, hook: value[:1, :1]))
    with pytest.raises(ShapeError, match=r"torch\.float64"):
        hooked(raw("gpt2"), (SITE, lambda value, hook: value.double()))


@kinds
def test_changes_of_a_head_s_input_and_of_its_norm_are_refused_looking_is_not(kind: str) -> None:
    pairs: list[Any] = [("blocks.1.hook_q_input", double)]
    norm = "blocks.1.ln1.hook_normalized"
    looked = hooked(raw(kind), *pairs, (norm, lambda value, hook: None))
    tiny.close(looked, hooked(raw(kind), *pairs), 1e-5)
    with pytest.raises(OptionError, match=r"a hook that changes blocks.1.ln1.hook_normalized"):
        hooked(raw(kind), *pairs, (norm, double))


# --- gradients ------------------------------------------------------------------------------------


@kinds
def test_a_backward_hook_sees_the_gradient_and_may_replace_it(kind: str) -> None:
    facade = raw(kind, torch.float64)
    first, second = "blocks.0.hook_resid_post", SITE
    cached = facade.run_with_cache(
        IDS, return_type="loss", incl_bwd=True, names_filter=[first, second]
    )[1]
    seen = dict[str, Tensor]()

    def note(gradient: Tensor, hook: Any) -> None:
        seen[hook.name] = gradient

    def twice(gradient: Tensor, hook: Any) -> tuple[Tensor]:
        return (gradient * 2,)

    loss: Any = facade.run_with_hooks(
        IDS, return_type="loss", bwd_hooks=[(first, note), (second, note), (second, twice)]
    )
    torch.autograd.backward(loss)
    tiny.close(seen[second], cached[f"{second}_grad"])
    tiny.close(seen[first], 2 * cached[f"{first}_grad"])
    assert all(weight.grad is None for weight in facade.engine.stack.parameters())


def test_a_backward_hook_that_was_added_fires_in_later_runs() -> None:
    facade, seen = fresh(), list[str]()

    def note(gradient: Tensor, hook: Any) -> None:
        seen.append(hook.name)

    facade.add_hook(SITE, note, dir="bwd")
    loss: Any = facade(IDS, return_type="loss")
    torch.autograd.backward(loss)
    assert seen == [SITE]
    facade.reset_hooks(direction="fwd")
    assert facade.hook_dict[SITE].bwd_hooks
    facade.reset_hooks(direction="bwd")
    assert not facade.hook_dict[SITE].bwd_hooks


def test_caching_hooks_fill_a_dictionary_of_the_caller_s() -> None:
    facade = fresh()
    cache = facade.add_caching_hooks(["hook_embed", SITE])
    facade(IDS)
    assert set(cache) == {"hook_embed", SITE}
    found, forward, backward = facade.get_caching_hooks(SITE, incl_bwd=True, pos_slice=-1)
    facade.run_with_hooks(IDS, fwd_hooks=forward)
    assert found[SITE].shape == (2, 1, 24)
    assert [name for name, _ in backward] == [SITE]
