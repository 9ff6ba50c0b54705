"""Generation: the cache, the batch and the stream change nothing; every end is the right one."""

from dataclasses import dataclass
from typing import Any, final

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import (
    CancelledError,
    EmptySelectionError,
    NeverActedError,
    NonFiniteError,
    OptionError,
    PromptError,
)

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
PROMPTS = ["abcdef", "xy", "mno"]
POST = "blocks.1.hook_resid_post"
PLAN = [
    wb.Intervention(POST, wb.ops.add(tiny.normal(24)), positions="generated", strength=2.0),
    wb.Intervention("blocks.0.attn.hook_z", wb.ops.zero(), heads=[1]),
    wb.Intervention("blocks.2.hook_mlp_out", wb.ops.scale(0.5), positions=[0, -1]),
]
SAMPLED: Any = {"temperature": 1.5, "top_k": 50, "top_p": 0.95}


def forced(text: str) -> wb.Intervention:
    """A plan that makes a model write `text`, whatever it was asked, by its last logits."""
    ids, place = [*text.encode(), tiny.EOS], iter(range(10**6))

    def say(logits: Tensor) -> Tensor:
        new = torch.zeros_like(logits)
        new[..., ids[min(next(place), len(ids) - 1)]] = 50.0
        return new

    return wb.Intervention("hook_unembed", say)


def said(text: str, **options: Any) -> wb.Generation:
    """A generation that writes `text` and ends."""
    return wb.generate(
        tiny.model(), "q", plan=[forced(text)], max_new_tokens=len(text.encode()) + 1, **options
    )


# --- the cache ----------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("plan", [[], PLAN], ids=["plain", "steered"])
@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_the_cache_changes_no_token(
    kind: str, plan: list[wb.Intervention], options: dict[str, Any]
) -> None:
    model = tiny.model(kind)
    for prompt in ("abcdef", PROMPTS):
        cached = wb.generate(model, prompt, plan=plan, max_new_tokens=8, seed=3, **options)
        full = wb.generate(
            model, prompt, plan=plan, max_new_tokens=8, seed=3, use_cache=False, **options
        )
        assert cached.tokens == full.tokens
        assert cached.texts == full.texts
        for one, other in zip(cached.log_probabilities, full.log_probabilities, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
        for one, other in zip(cached.receipts, full.receipts, strict=True):
            assert one.tokens == other.tokens
            assert one.change == pytest.approx(other.change, rel=1e-4)


@kinds
def test_a_generation_without_new_tokens_in_its_scope_is_the_plain_one(kind: str) -> None:
    model = tiny.model(kind)
    still = [wb.Intervention(POST, wb.ops.add(tiny.normal(24)), strength=0.0)]
    plain = wb.generate(model, PROMPTS, max_new_tokens=6)
    steered = wb.generate(model, PROMPTS, plan=still, max_new_tokens=6)
    assert steered.tokens == plain.tokens
    assert steered.log_probabilities == plain.log_probabilities  # to the bit


@kinds
def test_generated_leaves_the_first_choice_alone_and_predicting_does_not(kind: str) -> None:
    model = tiny.model(kind)
    plain = wb.generate(model, "abc", max_new_tokens=3).log_probabilities[0]

    def steered(positions: str) -> tuple[float, ...]:
        push = wb.Intervention(POST, wb.ops.add(3 * tiny.normal(24)), positions=positions)
        return wb.generate(model, "abc", plan=[push], max_new_tokens=3).log_probabilities[0]

    assert steered("generated")[0] == plain[0]
    assert steered("generated")[1] != plain[1]
    assert steered("predicting")[0] != plain[0]


# --- rows ---------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_never_depends_on_its_neighbours(kind: str, options: dict[str, Any]) -> None:
    model = tiny.model(kind)
    together = wb.generate(model, PROMPTS, max_new_tokens=8, seed=[7, 8, 9], **options)
    counted = wb.generate(model, PROMPTS, max_new_tokens=8, seed=7, **options)
    turned = wb.generate(model, PROMPTS[::-1], max_new_tokens=8, seed=[9, 8, 7], **options)
    assert together.tokens == counted.tokens == turned.tokens[::-1]
    for row, prompt in enumerate(PROMPTS):
        alone = wb.generate(model, prompt, max_new_tokens=8, seed=7 + row, **options)
        assert alone.tokens[0] == together.tokens[row]
        assert alone.texts[0] == together.texts[row]


@kinds
def test_rows_of_other_lengths_and_ends_change_no_row(kind: str) -> None:
    """One row ends early, one fills the context, one goes on."""
    model = tiny.model(kind)
    prompts = ["a" * 29, "bc", "def"]
    first = wb.generate(model, "def", max_new_tokens=12).text
    together = wb.generate(model, prompts, max_new_tokens=12, stop=[first[1:3]])
    for row, prompt in enumerate(prompts):
        alone = wb.generate(model, prompt, max_new_tokens=12, stop=[first[1:3]])
        assert together.tokens[row] == alone.tokens[0]
        assert together.texts[row] == alone.texts[0]
        assert together.finish[row] == alone.finish[0]
    assert len(together.tokens[0]) == 3  # 32 - 29


def test_rows_that_have_ended_are_touched_no_more() -> None:
    model = tiny.model()
    push = [wb.Intervention(POST, wb.ops.add(tiny.normal(24)), positions="generated")]
    for use_cache in (True, False):
        made = wb.generate(model, ["a" * 29, "b"], plan=push, max_new_tokens=9, use_cache=use_cache)
        assert [len(row) for row in made.tokens] == [3, 9]
        assert made.receipts[0].tokens == 2 + 8  # the last token of a row is never run


# --- how it ends --------------------------------------------------------------------------------


@kinds
def test_the_context_is_filled_to_the_last_position(kind: str) -> None:
    model = tiny.model(kind)
    for room in (1, 2):
        made = wb.generate(model, "a" * (32 - room), max_new_tokens=40)
        assert len(made.tokens[0]) == room
        assert made.finish == ("context",)
    with pytest.raises(PromptError, match="Prompt 1 fills the whole context of 32 tokens"):
        wb.generate(model, ["b", "a" * 32])
    with pytest.raises(PromptError, match="has 33 tokens"):
        wb.generate(model, "a" * 33)


def test_it_ends_at_an_end_token_which_is_no_text() -> None:
    made = said("hello")
    assert made.text == "hello"
    assert made.finish == ("stop",)
    assert made.tokens[0] == (*b"hello", tiny.EOS)


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("lo w", "hel"),
        (["world", "o"], "hell"),
        ("h", ""),
        (("xyz", "d"), "hello worl"),
        ("xyz", "hello world"),
        ([], "hello world"),
        ("hello world", ""),
    ],
)
def test_a_stop_string_is_left_out_however_tokens_fall(stop: Any, text: str) -> None:
    made = said("hello world", stop=stop)
    assert made.text == text
    assert made.finish == ("stop",)
    pieces = list(said_pieces("hello world", stop=stop))
    assert "".join(map(str, pieces)) == text


def said_pieces(text: str, **options: Any) -> Any:
    """The same as a stream."""
    return wb.generate(
        tiny.model(),
        "q",
        plan=[forced(text)],
        max_new_tokens=len(text.encode()) + 1,
        stream=True,
        **options,
    )


# --- streaming ----------------------------------------------------------------------------------


def test_characters_of_several_bytes_come_whole() -> None:
    text = "añ東🙂é"
    pieces = list(said_pieces(text))
    assert "".join(map(str, pieces)) == text
    assert [str(piece) for piece in pieces] == [
        "a",
        "",
        "ñ",
        "",
        "",
        "東",
        "",
        "",
        "",
        "🙂",
        "",
        "é",
        "",
    ]
    assert "\ufffd" not in "".join(map(str, pieces))


def test_an_unfinished_character_is_shown_when_nothing_follows() -> None:
    made = wb.generate(tiny.model(), "q", plan=[forced("a東")], max_new_tokens=3)
    assert made.text == "a\ufffd"
    assert made.finish == ("length",)


def test_a_stop_string_that_only_the_last_flush_completes_is_a_stop() -> None:
    made = wb.generate(tiny.model(), "q", plan=[forced("a東")], max_new_tokens=3, stop="\ufffd")
    assert made.text == "a"
    assert made.finish == ("stop",)


@kinds
@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_pieces_are_the_generation(kind: str, options: dict[str, Any]) -> None:
    model = tiny.model(kind)
    whole = wb.generate(model, PROMPTS, plan=PLAN, max_new_tokens=8, seed=1, **options)
    pieces = list(
        wb.generate(model, PROMPTS, plan=PLAN, max_new_tokens=8, seed=1, stream=True, **options)
    )
    for row in range(3):
        own = [piece for piece in pieces if piece.row == row]
        assert "".join(map(str, own)) == whole.texts[row]
        assert tuple(piece.token for piece in own) == whole.tokens[row]
        assert tuple(piece.log_probability for piece in own) == whole.log_probabilities[row]
        assert [piece.done for piece in own] == [False] * (len(own) - 1) + [True]
    assert whole.prompt == tuple(tuple(prompt.encode()) for prompt in PROMPTS)
    assert tuple(whole.plan) == tuple(PLAN)


def test_text_is_what_the_vocabulary_reads_in_the_tokens() -> None:
    made = wb.generate(tiny.model(), PROMPTS, temperature=3.0, max_new_tokens=12)
    for text, ids in zip(made.texts, made.tokens, strict=True):
        assert text == tiny.Bytes().decode(ids, skip_special=True)


def test_log_probabilities_are_the_steered_model_s_own() -> None:
    model = tiny.model()
    made = wb.generate(model, "abc", plan=PLAN[:1], max_new_tokens=5, **SAMPLED)
    ids = torch.tensor([made.prompt[0] + made.tokens[0]])
    batch = tiny.batch(ids.tolist(), [3])
    chances = wb.run(model, batch, plan=PLAN[:1]).logits[0].log_softmax(-1)
    expected = [float(chances[2 + i, token]) for i, token in enumerate(made.tokens[0])]
    assert list(made.log_probabilities[0]) == pytest.approx(expected, abs=1e-5)


# --- seeds --------------------------------------------------------------------------------------


@kinds
def test_a_seed_decides_the_text(kind: str) -> None:
    model = tiny.model(kind)
    texts = [
        wb.generate(model, "abc", max_new_tokens=8, temperature=2.0, seed=seed).tokens
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_greedy_needs_no_seed_and_top_k_1_is_greedy() -> None:
    model = tiny.model()
    greedy = wb.generate(model, "abc", max_new_tokens=8).tokens
    assert wb.generate(model, "abc", max_new_tokens=8, seed=99).tokens == greedy
    assert wb.generate(model, "abc", max_new_tokens=8, temperature=1.0, top_k=1).tokens == greedy
    assert wb.generate(model, "abc", max_new_tokens=8, temperature=1e-40).tokens == greedy


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, got 0"),
        ({"temperature": -0.1}, "temperature must be 0 or more"),
        ({"temperature": float("nan")}, "temperature must be a finite number, got nan"),
        ({"top_k": 0}, "top_k must be 1 or more"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"seed": [1, 2]}, "seed must be an integer or 1 integers, one per row"),
        ({"seed": -1}, "seed must be within"),
        ({"stop": ""}, "stop must be texts that are not empty"),
        ({"stop": ["a", ""]}, "stop must be texts that are not empty"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_options_out_of_range_are_refused_before_anything_runs(
    options: dict[str, Any], message: str, stream: bool
) -> None:
    with pytest.raises(OptionError, match=message):
        wb.generate(tiny.model(), "abc", stream=stream, **options)  # not even iterated


def test_a_model_that_reads_both_ways_is_refused() -> None:
    model = wb.load(tiny.hf("llama"))  # one of our own, as it is changed
    model.stack.causal = False
    with pytest.raises(OptionError, match="model must be causal: one that reads both ways"):
        wb.generate(model, [1, 2, 3])


def test_a_model_without_a_vocabulary_gives_tokens_and_no_text() -> None:
    model = wb.load(tiny.hf("llama"))
    made = wb.generate(model, [1, 2, 3], max_new_tokens=4)
    assert made.tokens == wb.generate(tiny_ids(), [1, 2, 3], max_new_tokens=4).tokens
    assert made.texts == ("",)
    with pytest.raises(OptionError, match="stop must be left out: this model has no tokenizer"):
        wb.generate(model, [1], stop="a")


def tiny_ids() -> wb.Model:
    """The same weights with a vocabulary that never ends a text."""
    return wb.load(tiny.hf("llama"), tokenizer=tiny.Bytes(eos_ids=()))


def test_the_text_of_several_rows_must_be_chosen() -> None:
    made = wb.generate(tiny.model(), PROMPTS, max_new_tokens=2)
    with pytest.raises(OptionError, match=r"use texts\[0…2\]"):
        _ = made.text
    assert wb.generate(tiny.model(), "abc", max_new_tokens=2).text


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_plan_that_the_text_never_reaches_is_refused(use_cache: bool) -> None:
    model = tiny.model()
    late = [wb.Intervention(POST, wb.ops.zero(), positions=20)]
    with pytest.raises(EmptySelectionError, match=r"positions \[20\] are beyond the 5 tokens"):
        wb.generate(model, "abc", plan=late, max_new_tokens=3, use_cache=use_cache)
    never = [wb.Intervention(POST, wb.ops.zero(), positions="generated")]
    with pytest.raises(NeverActedError, match="no token that the generation reached"):
        wb.generate(model, "abc", plan=never, max_new_tokens=1, use_cache=use_cache)
    with pytest.raises(NeverActedError):
        list(
            wb.generate(
                model, "abc", plan=never, max_new_tokens=1, use_cache=use_cache, stream=True
            )
        )
    reached = [wb.Intervention(POST, wb.ops.zero(), positions=4)]
    made = wb.generate(model, "abc", plan=reached, max_new_tokens=3, use_cache=use_cache)
    assert made.receipts[0].tokens == 1


def test_logits_that_are_not_finite_end_it() -> None:
    broken = wb.Intervention("blocks.2.hook_resid_post", lambda x: x * torch.inf, positions=4)
    for use_cache in (True, False):
        with pytest.raises(NonFiniteError, match=r"^blocks\.2\.hook_resid_post: 24 of "):
            wb.generate(tiny.model(), "abc", plan=[broken], max_new_tokens=6, use_cache=use_cache)


def test_a_negative_position_counts_from_the_prompt_in_a_run_and_in_a_generation() -> None:
    cut = wb.Intervention(POST, wb.ops.zero(), positions=[-1, -6])
    with pytest.raises(EmptySelectionError, match=r"\[-6\] are beyond the 5 tokens"):
        wb.run(tiny.model(), "abcde", plan=[cut])
    with pytest.raises(EmptySelectionError, match=r"positions \[-6\] are beyond"):
        wb.generate(tiny.model(), "abcde", plan=[cut], max_new_tokens=4)


def test_a_check_may_cancel_between_any_two_sites() -> None:
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 100:
            raise CancelledError("enough")

    pieces = []
    with pytest.raises(CancelledError):
        pieces.extend(wb.generate(tiny.model(), "abc", max_new_tokens=20, check=check, stream=True))
    assert len(calls) == 100


def test_a_stream_may_be_left() -> None:
    model = tiny.model()
    stream = wb.generate(model, "abc", max_new_tokens=20, stream=True)
    first = next(iter(stream))
    assert first.token == wb.generate(model, "abc", max_new_tokens=1).tokens[0][0]


@final
@dataclass(frozen=True)
class Merging:
    """A vocabulary of a few long tokens, whose texts run into one another."""

    texts: tuple[str, ...]
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """The first token that is the text."""
        return (self.texts.index(text),)

    def decode(self, ids: Any, *, skip_special: bool = False) -> str:
        """Their texts, one after another."""
        return "".join(self.texts[i] for i in ids)

    def token_text(self, token: int) -> str:
        """Its text."""
        return self.texts[token]

    def single(self, text: str) -> int:
        """Its index."""
        return self.texts.index(text)


def test_a_stop_string_may_begin_and_end_within_tokens() -> None:
    words = Merging(("q", "one t", "wo th", "ree four") + ("?",) * 254)
    model = wb.load(tiny.hf("llama"), tokenizer=words)
    ids = iter((1, 2, 3))

    def say(logits: Tensor) -> Tensor:
        new = torch.zeros_like(logits)
        new[..., next(ids)] = 50.0
        return new

    plan = [wb.Intervention("hook_unembed", say)]
    pieces = list(wb.generate(model, "q", plan=plan, max_new_tokens=3, stop="three", stream=True))
    assert [str(piece) for piece in pieces] == ["one ", "two ", ""]


def test_a_row_that_fills_the_context_says_so() -> None:
    model = tiny.model("llama")
    prompt = "a" * (model.sizes.n_ctx - 4)
    made = wb.generate(model, [prompt] * 3, max_new_tokens=[3, 4, 5])
    assert [len(row) for row in made.tokens] == [3, 4, 4]
    assert made.finish == ("length", "length", "context")
