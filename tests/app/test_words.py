import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.views.words import literal, percent, plain, round_ticks, shown, signed, times, tiny, typed


@pytest.mark.parametrize(
    ("token", "visible"),
    [(" Mary", "·Mary"), ("Mary", "Mary"), ("\n", "↵"), ("  x", "··x"), ("\t", "⇥"), ("", "∅")],
)
def test_a_token_is_made_visible(token, visible):
    assert shown(token) == visible


@given(st.text(st.characters(exclude_characters="·↵∅\t\r\u00a0"), min_size=1))
def test_what_is_shown_can_be_typed_back(token):
    assert typed(shown(token)) == token


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (3.412, "+3.41"),
        (-1.07, "−1.07"),
        (0.0, "0.00"),
        (-0.0, "0.00"),
        (12.34, "+12.3"),
        (-123.4, "−123"),
        (0.0123, "+0.012"),
        (float("inf"), "∞"),
        (float("nan"), "undefined"),
    ],
)
def test_a_signed_number_has_its_sign_and_few_digits(value, told):
    assert signed(value) == told


def test_units_follow_numbers():
    assert signed(1, "logits") == "+1.00 logits"
    assert plain(0.5, "bits") == "0.50 bits"
    assert times(1, "layer") == "1 layer"
    assert times(3, "layer") == "3 layers"


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (0.92, "92 %"),
        (0.0412, "4.1 %"),
        (0.002, "0.20 %"),
        (0.00001, "< 0.01 %"),
        (0, "0 %"),
        (1, "100 %"),
        (0.9999, "100 %"),
    ],
)
def test_shares_are_per_cent(share, told):
    assert percent(share) == told


@pytest.mark.parametrize(
    ("value", "told"), [(0, "0"), (1.04e-6, "1.0 × 10⁻⁶"), (0.25, "0.25"), (-3e-7, "−3.0 × 10⁻⁷")]
)
def test_rounding_errors_are_powers_of_ten(value, told):
    assert tiny(value) == told


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (-7.2, 6.9, (-10, -5, 0, 5, 10)),
        (0, 5.99, (0, 2, 4, 6)),
        (0, 0, (0, 0.0002)),
        (0.11, 0.19, (0.1, 0.12, 0.14, 0.16, 0.18, 0.2)),
    ],
)
def test_ticks_are_round_and_hold_the_range(low, high, ticks):
    assert round_ticks(low, high) == pytest.approx(ticks)


@given(st.floats(-1e4, 1e4), st.floats(0, 1e4))
def test_ticks_hold_any_range(low, span):
    ticks = round_ticks(low, low + span)
    assert ticks[0] <= low + 1e-6
    assert ticks[-1] >= low + span - 1e-6
    assert 2 <= len(ticks) <= 9


def test_a_label_shows_a_name_as_it_is():
    assert literal("my_model") == "my\\_model"


def test_large_numbers_have_separators():
    assert plain(1045634.2) == "1,045,634"
    assert signed(-28685) == "−28,685"
