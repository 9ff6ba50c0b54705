"""What ends a generation: tokens of the model's or the caller's, and the caller, in mid-stream."""

import gc
from threading import Event, Thread
from typing import Any

import pytest

import workbench as wb
from tests import tiny
from tests.core.test_generate import forced
from workbench.core.errors import OptionError, UnfinishedError
from workbench.core.generation.writer import Writer


def said(text: str, **options: Any) -> wb.Generation:
    """A generation that is made to say the text, and then its end token for ever."""
    return wb.generate(tiny.model(), "q", plan=[forced(text)], max_new_tokens=6, **options)


def test_an_end_token_may_be_ignored() -> None:
    usual, on = said("abc"), said("abc", ignore_eos=True)
    assert usual.tokens[0] == (*b"abc", tiny.EOS)
    assert on.tokens[0] == (*b"abc", *[tiny.EOS] * 3)
    assert (usual.finish, on.finish) == (("stop",), ("length",))
    assert usual.text == on.text == "abc"  # special tokens are no text


def test_tokens_of_the_caller_s_end_a_row_and_are_left_out_of_its_text() -> None:
    made = said("abc", stop_token_ids=[ord("c"), ord("z")])
    assert made.tokens[0] == tuple(b"abc")
    assert (made.text, made.finish) == ("ab", ("stop",))
    assert said("abc", stop_token_ids=[ord("c")], ignore_eos=True).tokens == made.tokens
    pieces = list(
        wb.generate(tiny.model(), "q", plan=[forced("abc")], stop_token_ids=[ord("b")], stream=True)
    )
    assert [(piece.text, piece.done) for piece in pieces] == [("a", False), ("", True)]


def test_each_row_has_ends_of_its_own() -> None:
    model, prompts = tiny.model(), ["abcdef", "xy", "mno"]
    long = wb.generate(model, prompts, max_new_tokens=8, ignore_eos=True)
    ends = [[long.tokens[0][2]], [], [long.tokens[2][0]]]
    ignore = [True, True, False]
    made = wb.generate(model, prompts, max_new_tokens=8, stop_token_ids=ends, ignore_eos=ignore)
    for row, (prompt, own) in enumerate(zip(prompts, ends, strict=True)):
        alone = wb.generate(
            model, prompt, max_new_tokens=8, stop_token_ids=own, ignore_eos=ignore[row]
        )
        assert made.tokens[row] == alone.tokens[0]
    assert made.tokens[0][-1] == ends[0][0]
    assert len(made.tokens[1]) == 8
    assert len(made.tokens[2]) == 1


def test_a_model_without_a_tokenizer_ends_at_the_caller_s_tokens() -> None:
    model = wb.load(tiny.hf("gpt2"))
    token = wb.generate(model, [1, 2], max_new_tokens=3).tokens[0][1]
    made = wb.generate(model, [1, 2], max_new_tokens=3, stop_token_ids=[token])
    assert made.tokens[0][-1] == token
    assert made.finish == ("stop",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_token_ids": [258]}, r"stop_token_ids must be token ids within 0…257, got 258"),
        ({"stop_token_ids": [-1]}, r"stop_token_ids must be 0 or more, got -1"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"stop_token_ids": [[1], [2]]}, "stop_token_ids must be one value, or 1, one per row"),
        ({"ignore_eos": "no"}, "ignore_eos must be True or False"),
    ],
)
def test_wrong_ends_are_refused(options: Any, message: str) -> None:
    with tiny.unchecked(), pytest.raises(OptionError, match=message):
        wb.generate(tiny.model(), "q", **options)


def test_a_closed_stream_runs_no_further_and_has_no_result() -> None:
    model = tiny.model()
    seen = list[int]()
    options: Any = {"max_new_tokens": 5, "ignore_eos": True, "stream": True}
    options["check"] = lambda: seen.append(0)  # at each site that is passed
    with wb.generate(model, "abc", **options) as stream:
        first = [next(stream), next(stream)]
        ran = len(seen)
    assert ran > 0
    assert list(stream) == []
    stream.close()
    assert len(seen) == ran
    with pytest.raises(UnfinishedError, match=r"or close\(\) ended"):
        stream.result()
    whole = list(wb.generate(model, "abc", max_new_tokens=5, ignore_eos=True, stream=True))
    assert first == whole[:2]

    unread = wb.generate(model, "abc", **options)
    unread.close()
    assert list(unread) == []
    assert len(seen) == ran  # nothing at all was run
    with wb.generate(model, "abc", max_new_tokens=2, stream=True) as read:
        list(read)
    assert len(read.result().tokens[0]) == 2  # one that was read to its end keeps its result


def test_closing_gives_the_cache_back() -> None:
    others = set(map(id, writers()))
    stream = wb.generate(tiny.model(), "abc", max_new_tokens=5, ignore_eos=True, stream=True)
    next(stream)
    assert len([one for one in writers() if id(one) not in others]) == 1
    stream.close()
    assert not [one for one in writers() if id(one) not in others]


def writers() -> list[Writer]:
    """Those that are alive, each with the cache of its generation."""
    return [one for one in gc.get_objects() if type(one) is Writer]


def test_another_thread_may_close_a_stream() -> None:
    model, inside, closed = tiny.model(), Event(), Event()

    def check() -> None:
        inside.set()
        assert closed.wait(20)

    stream = wb.generate(model, "abc", max_new_tokens=5, ignore_eos=True, stream=True, check=check)
    pieces = list[wb.Piece]()
    reader = Thread(target=lambda: pieces.extend(stream))
    reader.start()
    assert inside.wait(20)
    stream.close()  # while the first piece is made
    closed.set()
    reader.join(20)
    assert not reader.is_alive()
    assert len(pieces) == 1
