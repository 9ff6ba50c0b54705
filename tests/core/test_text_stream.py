"""What is shown is never taken back, adds up to the text, and ends before a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import BOS, EOS, Bytes
from workbench.core.text_stream import TextStream


def shown(ids: bytes | list[int], stop: list[str] | None = None) -> tuple[list[str], TextStream]:
    """The pieces of a text, one token at a time, and what the end brings."""
    stream = TextStream(Bytes(), stop or [])
    return [*(stream.push(token) for token in ids), stream.flush()], stream


def test_a_character_comes_when_its_last_byte_has() -> None:
    assert shown("aé🙂".encode())[0] == ["a", "", "é", "", "", "", "🙂", ""]


def test_an_unfinished_character_comes_at_the_end_as_broken() -> None:
    assert shown("a🙂".encode()[:-1])[0] == ["a", "", "", "", "\ufffd"]


@given(st.text(max_size=30))
def test_pieces_add_up_to_the_text(text: str) -> None:
    assert "".join(shown(text.encode())[0]) == text


@given(st.lists(st.integers(0, EOS), max_size=30))
def test_no_bytes_are_lost_though_they_be_no_text(ids: list[int]) -> None:
    whole = Bytes().decode(ids, skip_special=True)
    pieces = "".join(shown(ids)[0])
    assert pieces.replace("\ufffd", "") == whole.replace("\ufffd", "")


def test_special_tokens_are_left_out() -> None:
    assert "".join(shown([BOS, 97, EOS, 98])[0]) == "ab"


def test_it_ends_before_a_stop_string() -> None:
    pieces, stream = shown(b"one END two", ["END"])
    assert "".join(pieces) == "one "
    assert stream.stopped


def test_what_may_become_a_stop_string_is_held_back_and_given_when_it_does_not() -> None:
    pieces, stream = shown(b"aENb", ["END"])
    assert pieces == ["a", "", "", "ENb", ""]
    assert not stream.stopped
    assert shown(b"aEN", ["END"])[0] == ["a", "", "", "EN"]


def test_the_first_stop_string_to_be_complete_wins() -> None:
    assert "".join(shown(b"abcd", ["bcd", "c"])[0]) == "ab"
    assert "".join(shown(b"aab", ["ab"])[0]) == "a"


@given(
    st.text("abé", max_size=25),
    st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_cut_as_if_characters_came_one_by_one(text: str, stop: list[str]) -> None:
    expected = text
    for end in range(len(text) + 1):
        hits = [text[:end].find(one) for one in stop if one in text[:end]]
        if hits:
            expected = text[: min(hits)]
            break
    pieces, stream = shown(text.encode(), stop)
    assert "".join(pieces) == expected
    assert stream.stopped == any(one in text for one in stop)


def test_after_a_stop_nothing_more_comes() -> None:
    stream = TextStream(Bytes(), ["."])
    assert [stream.push(token) for token in b"a.b"] == ["a", "", ""]
    assert stream.flush() == ""
