"""Every rule reads of each text what a run of that text alone gives, whatever the batches."""

from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.attribution.known_truth import induction
from workbench.core.errors import AlignmentError, EmptySelectionError, OptionError
from workbench.core.reader import Reader, reader_of
from workbench.core.reading import one_per_text

SITES = ["blocks.0.attn.hook_z", "blocks.1.hook_resid_post"]
TEXTS = [[7, 8, 9, 10, 11], [tiny.BOS, 65, 66], [5, 4, 3], [tiny.BOS, 70, tiny.BOS, 71, 72, 73]]
INSIDE = tuple((i % 2, len(row) - 1) for i, row in enumerate(TEXTS))
# by rule: the positions of each text it reads, and how they are pooled
RULES: dict[str, tuple[Any, list[list[int]], str | None]] = {
    "last": ("last", [[4], [2], [2], [5]], None),
    "first": ("first", [[0], [0], [0], [0]], None),
    "index": (1, [[1], [1], [1], [1]], None),
    "from the end": (-3, [[2], [0], [0], [3]], None),
    "several": ([2, 0, -2], [[2, 0, 3], [2, 0, 1], [2, 0, 1], [2, 0, 4]], None),
    "all": ("all", [[0, 1, 2, 3, 4], [1, 2], [0, 1, 2], [1, 3, 4, 5]], None),
    "mean": ("mean", [[0, 1, 2, 3, 4], [1, 2], [0, 1, 2], [1, 3, 4, 5]], "mean"),
    "max": ("max", [[0, 1, 2, 3, 4], [1, 2], [0, 1, 2], [1, 3, 4, 5]], "max"),
    "spans": (wb.Spans(INSIDE, "all"), [[0, 1, 2, 3], [1], [0, 1], [1, 2, 3, 4]], None),
    "mean of spans": (wb.Spans(INSIDE), [[0, 1, 2, 3], [1], [0, 1], [1, 2, 3, 4]], "mean"),
    "max of spans": (wb.Spans(INSIDE, "max"), [[0, 1, 2, 3], [1], [0, 1], [1, 2, 3, 4]], "max"),
    "start of spans": (wb.Spans(INSIDE, "first"), [[0], [1], [0], [1]], None),
    "end of spans": (wb.Spans(INSIDE, "last"), [[3], [1], [1], [4]], None),
}


def alone(kind: str, site: wb.Site, at: list[list[int]], pool: str | None) -> Tensor:
    """The rows from runs of each text on its own."""
    model = tiny.model(kind, torch.float64)
    rows: list[Tensor] = []
    for ids, positions in zip(TEXTS, at, strict=True):
        read = wb.run(model, ids, record=[site])[site][0].flatten(1)[positions]
        pooled = {"mean": read.mean(0, keepdim=True), "max": read.amax(0, keepdim=True)}
        rows.append(read if pool is None else pooled[pool])
    return torch.cat(rows)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_rows_are_those_of_single_runs(rule: str, kind: str) -> None:
    position, at, pool = RULES[rule]
    exact = {site: alone(kind, wb.Site.parse(site), at, pool) for site in SITES}
    model = tiny.model(kind, torch.float64)
    for side in ("right", "left"):
        for max_tokens in (1, 9, 2048):
            found = wb.harvest(
                model,
                TEXTS,
                SITES,
                position=position,
                padding_side=side,
                max_tokens=max_tokens,
            )
            for site, rows in found.rows.items():
                tiny.close(rows, exact[str(site)])


@pytest.mark.parametrize("rule", RULES)
def test_every_row_says_where_it_was_read(rule: str) -> None:
    position, at, pool = RULES[rule]
    where = wb.harvest(tiny.model(), TEXTS, SITES, position=position, max_tokens=9).where
    told = list(zip(where.text.tolist(), where.pos.tolist(), where.token.tolist(), strict=True))
    places = [[-1]] * len(TEXTS) if pool else at
    assert told == [
        (text, pos, -1 if pool else TEXTS[text][pos])
        for text, positions in enumerate(places)
        for pos in positions
    ]
    assert where.row.tolist() == list(range(len(told)))


def test_the_order_of_texts_orders_the_rows_and_nothing_else() -> None:
    model = tiny.model("llama", torch.float64)
    plain = wb.harvest(model, TEXTS, SITES, position="all")
    turned = wb.harvest(model, TEXTS[::-1], SITES, position="all")
    order = torch.cat([(plain.where.text == i).nonzero()[:, 0] for i in (3, 2, 1, 0)])
    for site, rows in turned.rows.items():
        tiny.close(rows, plain.rows[site][order])


def test_a_text_of_nothing_but_bos_is_read_whole() -> None:
    for position in ("all", "mean", "max"):
        found = wb.harvest(tiny.model(), [[tiny.BOS]], SITES, position=position)
        assert len(found.where) == 1


def test_pools_of_half_precision_are_single_precision() -> None:
    model = tiny.model("llama", torch.bfloat16)
    for position, dtype in (("mean", torch.float32), ("max", torch.float32), ("all", None)):
        found = wb.harvest(model, TEXTS, SITES[1:], position=position)  # pyright: ignore[reportArgumentType]
        rows = next(iter(found.rows.values()))
        assert rows.dtype == (dtype or torch.bfloat16)


def test_characters_name_the_tokens_they_touch() -> None:
    class Words:
        """Words as tokens, with their places."""

        bos_id, eos_ids = None, ()

        def encode_with_offsets(self, text: str, *, special: bool = True) -> Any:
            ends = [i for i, sign in enumerate(text + " ") if sign == " "]
            starts = [0, *(end + 1 for end in ends)]
            return tuple(range(len(ends))), tuple(zip(starts, ends, strict=False))

    class Located:
        name, tokenizer = "words", Words()

    model: Any = Located()
    texts = ["see the red cat", "a dog ran"]
    with tiny.unchecked():
        found = wb.Spans.of_characters(model, texts, [(8, 11), (1, 5)], read="last")
        assert found == wb.Spans(((2, 3), (1, 2)), "last")
        assert wb.Spans.of_characters(model, texts, [(6, 9), (0, 9)]).spans == ((1, 3), (0, 3))
        with pytest.raises(EmptySelectionError, match="No token of 'a dog ran' touches 1…2"):
            wb.Spans.of_characters(model, texts, [(0, 1), (1, 2)])
        with pytest.raises(AlignmentError, match="1 spans for 2 texts"):
            wb.Spans.of_characters(model, texts, [(0, 1)])
        with pytest.raises(OptionError, match="whose tokenizer has offsets"):
            wb.Spans.of_characters(induction.build().model, ["abc"], [(0, 1)])


def test_what_names_no_token_is_refused() -> None:
    model = tiny.model()
    cases: list[tuple[Any, type[Exception], str]] = [
        ([0, 3], OptionError, r"position must be within 3 tokens, got \[0, 3\]"),
        ([], EmptySelectionError, "position is empty"),
        (wb.Spans(((0, 1),)), AlignmentError, "1 spans for 4 texts"),
        (wb.Spans(((0, 6), *INSIDE[1:])), OptionError, "a stretch of the 5 tokens of text 0"),
        (wb.Spans(((2, 2), *INSIDE[1:])), OptionError, "a stretch of the 5 tokens of text 0"),
    ]
    with tiny.unchecked():
        middle: Any = "middle"
        cases.append((wb.Spans(INSIDE, middle), OptionError, "read must be"))
        for position, error, told in cases:
            with pytest.raises(error, match=told):
                wb.harvest(model, TEXTS, SITES, position=position)


def test_what_needs_one_row_per_text_refuses_several() -> None:
    assert [one_per_text(rule) for rule in ("last", "max", -1)] == ["last", "max", -1]
    several: list[Any] = ["all", [0, 1], wb.Spans(INSIDE), "middle"]
    for rule in several:
        with tiny.unchecked(), pytest.raises(OptionError, match="position must be"):
            one_per_text(rule)


def test_the_number_of_rows_is_known_before_anything_runs() -> None:
    def reader(position: Any) -> Reader:
        return reader_of(tiny.model(), TEXTS, SITES, position=position)

    assert [reader(rule).n_rows for rule, _, _ in RULES.values()] == [
        len(TEXTS) if pool else sum(map(len, at)) for _, at, pool in RULES.values()
    ]
