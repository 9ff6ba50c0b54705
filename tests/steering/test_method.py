"""A direction is the exact difference of means, and is added in the units that it says."""

from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import EmptySelectionError, OptionError, UnknownNameError
from workbench.core.harvest import harvest
from workbench.steering import METHODS, Direction

METHOD = METHODS["mean_difference"]
SITE = "blocks.1.hook_resid_post"
YES = ["good day", "fine", "so glad!", "well done", "what joy"]
NO = ["bad", "awful day", "so sad", "oh dear no", "grim"]
kinds = pytest.mark.parametrize("kind", tiny.KINDS)


def made(kind: str = "llama", dtype: torch.dtype = torch.float32) -> Direction:
    return METHOD(tiny.model(kind, dtype), positive=YES, negative=NO, site=SITE)


def rows(kind: str, texts: list[str]) -> Tensor:
    """One run per text."""
    model = tiny.model(kind, torch.float64)
    return torch.stack([wb.run(model, text, record=[SITE])[SITE][0, -1] for text in texts])


@kinds
def test_it_is_the_difference_of_means(kind: str) -> None:
    found = made(kind, torch.float64)
    yes, no = rows(kind, YES), rows(kind, NO)
    exact = yes.mean(0) - no.mean(0)
    tiny.close(found.vector.double(), exact, 1e-5)  # kept in float32
    unit = exact / exact.norm()
    both = torch.cat([yes, no])
    assert found.gap == pytest.approx(float(exact.norm()), rel=1e-5)
    around = torch.cat([yes - yes.mean(0), no - no.mean(0)]) @ unit  # each about its own mean
    within = (around.square().sum() / (len(both) - 2)).sqrt()
    assert found.sigma == pytest.approx(float(within), rel=1e-5)
    assert found.norm == pytest.approx(float(both.norm(dim=1).mean()), rel=1e-5)
    assert str(found.site) == SITE


@kinds
@pytest.mark.parametrize("position", ["last", "first", "mean", 2, -2])
def test_it_reads_where_it_is_told(kind: str, position: str | int) -> None:
    model = tiny.model(kind)
    found = METHOD(model, positive=YES, negative=NO[1:], site=SITE, position=position)  # pyright: ignore[reportArgumentType]
    read = harvest(model, [*YES, *NO[1:]], SITE, position=position).rows[found.site]  # pyright: ignore[reportArgumentType]
    tiny.close(found.vector, read[:5].mean(0) - read[5:].mean(0), 1e-5)


@kinds
def test_a_planted_vector_is_found(kind: str) -> None:
    """Each text with a vector added, and without it: only the vector is between them."""
    model = tiny.model(kind)
    planted = tiny.normal(24, seed=1)
    change = wb.Intervention(SITE, wb.ops.add(4 * planted / planted.norm()))
    texts = [f"text {i} {'.' * (i % 3)}" for i in range(12)]
    plain = harvest(model, texts, SITE).rows[wb.Site.parse(SITE)]
    moved = harvest(model, texts, SITE, plan=[change]).rows[wb.Site.parse(SITE)]
    noise = 0.05 * tiny.normal(*plain.shape, seed=2)
    found = METHOD.vector(moved + noise, plain)
    assert float(torch.cosine_similarity(found, planted, dim=0)) > 0.99


@kinds
def test_strength_0_is_the_plain_run_to_the_bit(kind: str) -> None:
    model, direction = tiny.model(kind), made(kind)
    for unit in ("raw", "gap", "sigma", "norm"):
        steered = wb.run(model, "hello", plan=[direction.at(0.0, unit=unit)])
        assert tiny.same_bytes(steered.logits, wb.run(model, "hello").logits)


@pytest.mark.parametrize("unit", ["raw", "gap", "sigma", "norm"])
def test_units_are_the_lengths_they_name(unit: str) -> None:
    model, direction = tiny.model("gpt2", torch.float64), made("gpt2", torch.float64)
    lengths = {"raw": float(direction.vector.norm()), **vars(direction)}
    step = direction.at(1.5, unit=unit)  # pyright: ignore[reportArgumentType]
    assert step.unit == unit
    plain = wb.run(model, "hello", record=[SITE])[SITE]
    moved = wb.run(model, "hello", plan=[step], record=[SITE])[SITE] - plain
    expected = 1.5 * lengths[unit] * direction.unit_vector.double()
    tiny.close(moved, expected.expand_as(moved), 1e-6)  # the vector is kept in float32


def test_one_gap_takes_one_mean_to_the_other() -> None:
    direction = made("gpt2", torch.float64)
    yes, no = rows("gpt2", YES), rows("gpt2", NO)
    moved = no + direction.gap * direction.unit_vector.double()
    tiny.close(moved.mean(0), yes.mean(0), 1e-5)


@kinds
def test_two_steps_are_one_of_their_sum(kind: str) -> None:
    model, direction = tiny.model(kind, torch.float64), made(kind, torch.float64)
    twice = wb.run(model, "hello", plan=[direction.at(0.75), direction.at(-2.0)]).logits
    tiny.close(twice, wb.run(model, "hello", plan=[direction.at(-1.25)]).logits, 1e-9)


def test_erasing_leaves_nothing_along_it() -> None:
    model, direction = tiny.model("gpt2", torch.float64), made("gpt2", torch.float64)
    stream = wb.run(model, "hello", plan=[direction.erase()], record=[SITE])[SITE]
    along = stream @ direction.unit_vector.double()
    tiny.close(along, torch.zeros_like(along), 1e-6)


def test_texts_may_be_token_ids() -> None:
    ids = [[list(text.encode()) for text in side] for side in (YES, NO)]
    found = METHOD(tiny.model(), positive=ids[0], negative=ids[1], site=SITE)
    assert torch.equal(found.vector, made().vector)


def test_sides_may_be_of_different_sizes() -> None:
    found = METHOD(tiny.model(), positive=YES[:2], negative=NO, site=SITE)
    assert found.gap > 0


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_a_single_text_is_refused(side: str) -> None:
    sides = {"positive": YES, "negative": NO}
    model = tiny.model()
    call: Any = METHOD
    for text, told in (("good day", "'good day'"), (list(b"good"), r"\[103, ")):
        refused = pytest.raises(OptionError, match=f"{side} must be a list of texts, got {told}")
        with tiny.unchecked(), refused:
            call(model, **{**sides, side: text}, site=SITE)
    with pytest.raises(EmptySelectionError, match="needs 2 texts or more, got"):
        METHOD(model, **{**sides, side: ["alone"]}, site=SITE)  # pyright: ignore[reportArgumentType]


def test_equal_means_are_refused() -> None:
    with pytest.raises(OptionError, match="texts whose activations differ, got 'equal means'"):
        METHOD(tiny.model(), positive=["ab", "cd"], negative=["ab", "cd"], site=SITE)


def test_an_unknown_unit_is_refused() -> None:
    at: Any = made().at
    told = "unit must be one of raw, gap, sigma, norm, got 'std'"
    with tiny.unchecked(), pytest.raises(OptionError, match=told):
        at(1.0, unit="std")


@pytest.mark.parametrize(
    ("site", "error", "message"),
    [
        ("blocks.9.hook_resid_post", UnknownNameError, "No site named 'blocks.9.hook_resid_post'"),
        ("resid_post", UnknownNameError, "No site named 'resid_post'"),
        ("blocks.*.hook_resid_post", EmptySelectionError, "names 3 sites where one is needed"),
        ("blocks.1.attn.hook_z", OptionError, "site must be one with a single vector per token"),
        ("blocks.1.attn.hook_pattern", OptionError, "site must be one with a single vector"),
    ],
)
def test_a_site_that_will_not_do_is_refused(
    site: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        METHOD(tiny.model(), positive=YES, negative=NO, site=site)


def test_who_watches_is_told_and_may_stop_it() -> None:
    seen: list[tuple[int, int]] = []
    METHOD(
        tiny.model(), positive=YES, negative=NO, site=SITE,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (10, 10)

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        METHOD(tiny.model(), positive=YES, negative=NO, site=SITE, check=stop)
