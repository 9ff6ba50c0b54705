"""Runs: slices equal the whole, an early stop is one, and what went wrong is named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typing_extensions import override

import workbench as wb
from tests import tiny
from workbench.attribution import METHODS as ATTRIBUTION
from workbench.core.data import Batch
from workbench.core.errors import (
    CancelledError,
    EmptySelectionError,
    InPlaceEditError,
    NeverActedError,
    NonFiniteError,
    NotRecordedError,
    OptionError,
    PromptError,
    ShapeError,
    UnknownNameError,
)
from workbench.core.run import not_finite
from workbench.core.sites import Site
from workbench.core.tap import Tap
from workbench.lenses import METHODS as LENSES

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [10]]
VECTOR = tiny.normal(24)


# --- what is unembedded -------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("late", [True, False])
@given(
    positions=st.sampled_from([None, "last", 0, -1, [0], [-1, 0, -1]]),
    vocabulary=st.none() | st.lists(st.integers(0, 257), min_size=1, max_size=4),
)
@settings(max_examples=15)
def test_restricted_logits_are_slices_of_all_logits(
    kind: str, side: Any, late: bool, positions: Any, vocabulary: list[int] | None
) -> None:
    model = tiny.model(kind, torch.float64)
    full = wb.run(model, ROWS, padding_side=side)
    record = "ln_final.hook_normalized" if late else ()
    some = wb.run(
        model,
        ROWS,
        padding_side=side,
        positions=positions,
        vocabulary=vocabulary,
        record=record,
    )
    expected = full.logits if vocabulary is None else full.logits[..., vocabulary]
    if positions is None:
        tiny.close(some.logits, expected)
        return
    indices = {"last": [-1], "0": [0], "-1": [-1]}.get(str(positions)) or list(positions)
    for row, ids in enumerate(ROWS):
        begins = int(full.batch.last[row]) + 1 - len(ids)
        columns = [begins + (i if i >= 0 else len(ids) + i) for i in indices]
        tiny.close(some.logits[row], expected[row, columns])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": 6}, "positions must be below 6, got"),
        ({"positions": [0, -7]}, "positions must be below 6"),
        ({"vocabulary": [258]}, r"vocabulary must be token ids in 0…257, got \[258\]"),
        ({"vocabulary": [-1]}, "token ids in 0…257"),
    ],
)
def test_what_cannot_be_unembedded_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        wb.run(tiny.model(), [ROWS[0]], **options)


def test_positions_must_exist_in_every_row() -> None:
    with pytest.raises(OptionError, match="below 1"):
        wb.run(tiny.model(), ROWS, positions=2)
    with pytest.raises(EmptySelectionError, match="positions is empty"):
        wb.run(tiny.model(), ROWS, positions=[])


# --- how far it runs ----------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_without_logits_the_run_ends_at_the_last_block_that_is_asked_for(
    kind: str, layer: int
) -> None:
    model, spy = tiny.model(kind), tiny.Spy(lambda site: False)
    site = f"blocks.{layer}.hook_resid_post"
    trace = wb.run(model, ROWS, record=site, logits=False, tap=spy)
    assert max(site.layer for site in spy.sites if site.layer is not None) == layer
    assert Site("hook_unembed") not in spy.sites
    assert tiny.same_bytes(trace[site], wb.run(model, ROWS, record=site)[site])
    with pytest.raises(NotRecordedError, match="stopped before the logits; leave out logits=False"):
        _ = trace.logits


def test_the_embedding_alone_runs_no_block() -> None:
    spy = tiny.Spy(lambda site: False)
    wb.run(tiny.model(), ROWS, record="hook_embed", logits=False, tap=spy)
    assert spy.sites == [Site("hook_embed")]


@kinds
@pytest.mark.parametrize(
    "site", ["ln_final.hook_scale", "ln_final.hook_normalized", "hook_unembed"]
)
def test_sites_behind_the_blocks_have_every_position_whatever_is_unembedded(
    kind: str, site: str
) -> None:
    model = tiny.model(kind)
    whole = wb.run(model, ROWS, record=site)
    for options in ({"positions": "last"}, {"vocabulary": [3]}, {"logits": False}):
        trace = wb.run(model, ROWS, record=site, **options)  # pyright: ignore[reportArgumentType]
        assert tiny.same_bytes(trace[site], whole[site])


def test_a_plan_behind_the_blocks_acts_at_its_positions_however_much_is_unembedded() -> None:
    model = tiny.model()
    for site in ("ln_final.hook_normalized", "hook_unembed"):
        cut = [wb.Intervention(site, wb.ops.scale(0.5), positions=1)]
        plain, whole = wb.run(model, [ROWS[0]]), wb.run(model, [ROWS[0]], plan=cut)
        last = wb.run(model, [ROWS[0]], plan=cut, positions="last")
        tiny.close(last.logits, plain.logits[:, -1:], 1e-6)
        assert not torch.allclose(whole.logits[:, 1], plain.logits[:, 1])


def test_nothing_asked_for_is_an_error() -> None:
    with pytest.raises(EmptySelectionError, match="Nothing is asked for: record a site"):
        wb.run(tiny.model(), ROWS, logits=False)


def test_an_intervention_beyond_the_end_of_the_run_never_acts() -> None:
    cut = wb.Intervention("blocks.2.hook_mlp_out", wb.ops.zero())
    with pytest.raises(NeverActedError) as caught:
        wb.run(tiny.model(), ROWS, plan=[cut], record="blocks.0.hook_resid_post", logits=False)
    assert str(caught.value) == (
        "plan[0], zero at blocks.2.hook_mlp_out, never acted: the run ended before block 1. "
        "Mark it optional if that is meant."
    )


# --- recording ----------------------------------------------------------------------------------


@kinds
def test_what_is_asked_for_is_recorded_in_forward_order(kind: str) -> None:
    model = tiny.model(kind)
    wanted = ["blocks.2.hook_resid_post", "hook_embed", "blocks.*.attn.hook_z"]
    trace = wb.run(model, ROWS, record=wanted)
    assert list(trace) == [
        site for site in model.sites if str(site) in wanted[:2] or site.short == "attn.hook_z"
    ]
    every = wb.run(model, ROWS, record=lambda site: True)
    assert list(every) == list(model.sites)


def test_recording_sees_what_the_plan_and_the_tap_left() -> None:
    site = Site("blocks.{}.hook_resid_post", 1)

    class Double(Tap):
        @override
        def __call__(self, site: Site, value: Tensor) -> Tensor:
            return 2 * value if site == Site("blocks.{}.hook_resid_post", 1) else value

        @override
        def wants(self, site: Site) -> bool:
            return False

    plan = [wb.Intervention(site, wb.ops.set(VECTOR))]
    trace = wb.run(tiny.model(), [ROWS[0]], plan=plan, tap=Double(), record=[site])
    assert tiny.same_bytes(trace[site], (2 * VECTOR).expand(1, 6, 24).contiguous())


def test_unknown_sites_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Nearest of \d+: .*blocks\.2\.attn\.hook_z"):
        wb.run(tiny.model(), ROWS, record="blocks.2.attn.z")
    with pytest.raises(UnknownNameError, match=r"'blocks\.3\.attn\.hook_z'"):
        wb.run(tiny.model(), ROWS, plan=[wb.Intervention("blocks.3.attn.hook_z", wb.ops.zero())])


# --- what goes wrong ----------------------------------------------------------------------------


class Planted(Tap):
    """Writes one bad number at a site."""

    def __init__(self, site: str, bad: float = float("nan")) -> None:
        self.site, self.bad = Site.parse(site), bad

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        if site != self.site:
            return value
        value = value.clone()
        value.view(-1)[0] = self.bad
        return value

    @override
    def wants(self, site: Site) -> bool:
        return site == self.site


@kinds
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "site",
    [
        "hook_embed",
        "blocks.0.attn.hook_v",
        "blocks.1.attn.hook_pattern",
        "blocks.1.hook_resid_mid",
        "blocks.2.mlp.hook_post",
        "ln_final.hook_normalized",
        "hook_unembed",
    ],
)
def test_a_number_that_is_not_finite_is_named_where_it_first_appears(
    kind: str, site: str, bad: float
) -> None:
    with pytest.raises(NonFiniteError) as caught:
        wb.run(tiny.model(kind), [ROWS[0]], tap=Planted(site, bad))
    assert str(caught.value.where) == site
    assert caught.value.bad == 1
    assert str(caught.value).startswith(f"{site}: 1 of ")


@kinds
def test_a_plan_that_makes_a_nan_is_named_by_its_site(kind: str) -> None:
    broken = wb.Intervention("blocks.1.hook_mlp_out", lambda x: x / 0 * 0)
    with pytest.raises(NonFiniteError, match=r"blocks\.1\.hook_mlp_out: \d+ of \d+ values"):
        wb.run(tiny.model(kind), ROWS, plan=[broken])


def test_large_numbers_are_finite_though_their_sum_is_not() -> None:
    assert not_finite(torch.full((9,), 3e38)) == 0
    assert not_finite(torch.full((99,), 6e4, dtype=torch.float16)) == 0
    assert not_finite(torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])) == 3


class InPlace(Tap):
    """What a tap must not do."""

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        return value.add_(1) if site.short == "hook_mlp_out" else value

    @override
    def wants(self, site: Site) -> bool:
        return False


@kinds
def test_a_tap_must_not_write_into_an_activation(kind: str) -> None:
    with pytest.raises(InPlaceEditError, match=r"at blocks\.0\.hook_mlp_out; return a copy"):
        wb.run(tiny.model(kind), ROWS, tap=InPlace())
    edit = wb.Intervention("blocks.1.hook_resid_mid", lambda x: x.zero_())
    with pytest.raises(InPlaceEditError, match=r"at blocks\.1\.hook_resid_mid"):
        wb.run(tiny.model(kind), ROWS, plan=[edit])


def test_a_tap_must_return_a_tensor_like_the_one_it_got() -> None:
    class Short(Tap):
        @override
        def __call__(self, site: Site, value: Tensor) -> Tensor:
            return value[:, :1]

        @override
        def wants(self, site: Site) -> bool:
            return False

    with pytest.raises(ShapeError) as caught:
        wb.run(tiny.model(), [ROWS[0]], tap=Short())
    assert str(caught.value) == (
        "hook_embed: expected (1, 6, 24) (batch pos d_model), torch.float32, cpu, "
        "got (1, 1, 24), torch.float32, cpu."
    )


def test_a_check_is_called_at_every_site_and_may_cancel() -> None:
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 20:
            raise CancelledError("enough")

    with pytest.raises(CancelledError, match="enough"):
        wb.run(tiny.model(), ROWS, check=check)
    assert len(calls) == 20
    spy = tiny.Spy(lambda site: False)
    calls.clear()
    wb.run(tiny.model(), [ROWS[2]], check=lambda: calls.append(1), tap=spy)
    assert len(calls) == len(spy.fired)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "Prompt 0 is empty; it needs at least one token"),
        ([], "There is no prompt; pass a text"),
        (["ab", ""], "Prompt 1 is empty"),
        ([[]], "Prompt 0 is empty"),
        ([[1, 258]], r"Prompt 0 has ids outside 0…257: \[258\]"),
        ([[1, -1]], "ids outside"),
        ([[2**60]], "ids outside"),
        ("x" * 33, "Prompt 0 has 33 tokens; llama reads at most 32. Shorten it by 1"),
        (torch.zeros(1, 1, 1, dtype=torch.long), r"got \(1, 1, 1\)"),
        (torch.zeros((0, 4), dtype=torch.long), "There is no prompt"),
        (torch.zeros((2, 0), dtype=torch.long), "Prompt 0 is empty"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_prompt_that_cannot_be_run_is_an_error_that_says_why(prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        wb.run(tiny.model(), prompt)


def test_a_model_without_a_tokenizer_takes_ids_only() -> None:
    model = wb.load(tiny.hf("gpt2"))
    with pytest.raises(PromptError, match="gpt2 has no tokenizer: pass token ids, or load it with"):
        wb.run(model, "hello")
    assert wb.run(model, [1, 2, 3]).logits.shape == (1, 3, 258)


@pytest.mark.parametrize(
    "prompt",
    [
        "abc",
        ["abc"],
        [97, 98, 99],
        [[97, 98, 99]],
        torch.tensor([97, 98, 99]),
        torch.tensor([[97, 98, 99]]),
    ],
    ids=str,
)
def test_a_prompt_may_be_written_in_many_ways(prompt: Any) -> None:
    model = tiny.model()
    assert tiny.same_bytes(wb.run(model, prompt).logits, wb.run(model, "abc").logits)


def test_a_batch_may_be_given() -> None:
    batch = Batch(torch.tensor([[97, 98]]), None, torch.tensor([0]), torch.tensor([2]))
    assert torch.equal(wb.run(tiny.model(), batch).logits, wb.run(tiny.model(), "ab").logits)


MISSPELT: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (wb.run, (tiny.model(), "a"), {"plans": []}),
    (wb.generate, (tiny.model(), "a"), {"max_tokens": 3}),
    (wb.gradients, (tiny.model(), "a", [], None), {"plans": []}),
    (wb.sweep, (tiny.model(), "a", [], None), {"chunk": 1}),
    (wb.load, ("induction",), {"dtpye": torch.float32}),
    (wb.load_result, ("x",), {"strict": True}),
    (wb.Intervention, ("hook_embed", wb.ops.zero()), {"head": [1]}),
    (wb.Contrast, ("a", "b", "c", "d"), {"foils": "d"}),
    (wb.Plan.load, ("x",), {"strict": True}),
    (wb.ops.project_out, (VECTOR,), {"centre": VECTOR}),
    (wb.metrics.logit_difference, ("x",), {"contrasts": 1}),
]


@pytest.mark.parametrize(("function", "arguments", "misspelt"), MISSPELT)
def test_a_misspelt_argument_is_a_type_error(
    function: Any, arguments: tuple[Any, ...], misspelt: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(misspelt))}'"):
        function(*arguments, **misspelt)


# --- nothing is left behind ---------------------------------------------------------------------


@kinds
def test_nothing_changes_the_weights_or_the_global_generator(kind: str) -> None:
    model = tiny.model(kind)
    contrast = wb.Contrast(clean="abcd", corrupt="abxd", target="e", foil="f")
    metric = wb.metrics.logit_difference(contrast)
    cut = wb.Intervention("blocks.1.hook_mlp_out", wb.ops.zero())
    before, state = tiny.digest(model), torch.get_rng_state()
    wb.run(model, "abcd", plan=[cut], record=model.sites)
    wb.gradients(model, "abcd", model.sites, metric)
    wb.sweep(model, "abcd", [cut], metric)
    wb.generate(model, "abcd", plan=[cut], temperature=1.0, max_new_tokens=3)
    assert tiny.digest(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.stack.parameters())
    assert not any(weight.requires_grad for weight in model.stack.parameters())


def test_what_is_recorded_carries_no_graph() -> None:
    with torch.enable_grad():
        trace = wb.run(tiny.model(), "ab", record=lambda site: True)
    assert not any(value.requires_grad for value in (trace.logits, *trace.values()))


# --- whatever mode the caller is in -------------------------------------------------------------


@kinds
def test_inference_mode_around_a_call_changes_nothing(kind: str) -> None:
    model, site = tiny.model(kind), wb.Site.parse("blocks.1.hook_resid_post")
    contrast = wb.Contrast(clean="abcd", corrupt="abXd", target="x", foil="y")
    metric = wb.metrics.logit_difference(contrast)
    calls: list[Callable[[], Tensor]] = [
        lambda: wb.gradients(model, "abcd", site, metric)[site],
        lambda: wb.run(model, "abcd", plan=[wb.Intervention(site, lambda x: x.tanh())]).logits,
        lambda: ATTRIBUTION["direct_logit_attribution"](model, contrast).per_example,
        lambda: ATTRIBUTION["activation_patching"](model, contrast).per_example,
        lambda: LENSES["logit_lens"](model, "abcd").kl,
    ]
    for call in calls:
        plain = call()
        with torch.inference_mode():
            inside = call()
            assert torch.is_inference_mode_enabled()
        assert tiny.same_bytes(inside, plain)
        assert not inside.is_inference()
    said = wb.generate(model, "ab", plan=[wb.Intervention(site, lambda x: x.tanh())])
    with torch.inference_mode():
        again = wb.generate(model, "ab", plan=[wb.Intervention(site, lambda x: x.tanh())])
    assert again.log_probabilities == said.log_probabilities


@kinds
def test_an_operand_made_in_inference_mode_can_be_differentiated_through(kind: str) -> None:
    contrast = wb.Contrast(clean="abcd", corrupt="abXd", target="x", foil="y")
    with torch.inference_mode():
        operators = [wb.ops.project_out(tiny.normal(24).clone()), wb.ops.add(tiny.normal(24) + 0)]
    plan = [wb.Intervention("blocks.1.hook_resid_pre", one) for one in operators]
    slopes = wb.gradients(
        tiny.model(kind), "abcd", "hook_embed", wb.metrics.logit_difference(contrast), plan=plan
    )
    assert float(next(iter(slopes.values())).abs().sum()) > 0


def test_a_tap_that_writes_where_torch_does_not_count_reaches_only_its_copy() -> None:
    class Sly(Tap):
        @override
        def __call__(self, site: Site, value: Tensor) -> Tensor:
            out = value.clone()
            value.data.zero_()
            return out

        @override
        def wants(self, site: Site) -> bool:
            return False

    model = tiny.model()
    assert tiny.same_bytes(wb.run(model, ROWS, tap=Sly()).logits, wb.run(model, ROWS).logits)


def test_logits_is_a_flag_also_where_something_is_recorded() -> None:
    run: Any = wb.run
    with tiny.unchecked(), pytest.raises(OptionError, match="logits must be True or False"):
        run(tiny.model(), "ab", record="hook_embed", logits="no")


def test_positions_of_a_finished_text_are_not_beyond_its_prompt() -> None:
    """A batch may hold more than prompts; what is beyond all of it is still refused."""
    batch = tiny.batch([[1, 2, 3, 4, 5], [1, 2, 3]], [2, 2])
    site = "blocks.1.hook_resid_post"
    for pos in (2, 4):
        plan = [wb.Intervention(site, wb.ops.zero(), positions=pos)]
        assert wb.run(tiny.model(), batch, plan=plan).receipts[0].tokens == 2 - (pos > 2)
    with pytest.raises(EmptySelectionError, match=r"positions \[5\] are beyond the 5 tokens"):
        wb.run(tiny.model(), batch, plan=[wb.Intervention(site, wb.ops.zero(), positions=[0, 5])])
