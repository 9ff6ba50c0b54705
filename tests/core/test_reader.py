"""How texts are batched, and how their tokens are told from others."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.core.buckets import PADS, batches
from workbench.core.errors import NotRecordedError
from workbench.core.reader import reader_of, tokens_digest
from workbench.core.reading import reading_of


@pytest.mark.parametrize("max_tokens", [1, 10, 64, 500, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_batches_hold_every_text_once_within_their_budgets(max_tokens: int, seed: int) -> None:
    lengths = tiny.tokens(200, seed=seed, high=60).add(1).tolist()
    asked = range(20, 200)
    found = list(batches(lengths, asked, max_tokens))
    assert sorted(text for batch in found for text in batch) == list(asked)
    for batch in found:
        padded = len(batch) * max(lengths[text] for text in batch)
        pads = padded - sum(lengths[text] for text in batch)
        assert len(batch) == 1 or padded <= max_tokens
        assert pads <= max_tokens // PADS


def test_texts_of_one_length_fill_their_batches() -> None:
    assert [len(batch) for batch in batches([5] * 9, range(9), 20)] == [4, 4, 1]
    assert list(batches([5], [], 20)) == []


def test_where_one_text_ends_and_another_begins_is_in_the_digest() -> None:
    texts = [[[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]], [[1, 2], [3], []], [[2, 1], [3]]]
    assert len({tokens_digest(ids) for ids in texts}) == len(texts)
    assert tokens_digest(((1, 2), (3,))) == tokens_digest(texts[0])


def test_a_site_that_is_never_passed_is_an_error() -> None:
    reader = reader_of(tiny.model(), [[65, 66]], "blocks.0.hook_resid_post")
    ghost = wb.Site.parse("blocks.9.hook_resid_post")
    fields: dict[str, Any] = {**vars(reader), "sites": (*reader.sites, ghost)}
    with pytest.raises(NotRecordedError, match=r"never passed blocks\.9\.hook_resid_post"):
        next(type(reader)(**fields).chunks())


def test_a_range_is_kept_as_one_where_no_token_is_left_out() -> None:
    at = reading_of("all", [[1, 2, 3], [9, 2, 3], [1, 9, 3], [9]], 9).at
    assert [type(one) for one in at] == [range, range, tuple, range]
    assert list(map(list, at)) == [[0, 1, 2], [1, 2], [0, 2], [0]]


def test_threads_share_a_model() -> None:
    model, site = tiny.model("llama", torch.float64), "blocks.2.hook_resid_post"
    texts = [[65 + i] * (1 + i % 7) for i in range(12)]
    plans = [[], [wb.Intervention("blocks.0.hook_mlp_out", wb.ops.zero())]]
    with tiny.unchecked():
        one, other = (wb.harvest(model, texts, site, plan=plan).rows for plan in plans)
        with ThreadPoolExecutor(6) as pool:
            jobs = [
                pool.submit(wb.harvest, model, texts, site, plan=plans[i % 2]) for i in range(8)
            ]
            for i, job in enumerate(jobs):
                for place, rows in job.result().rows.items():
                    assert torch.equal(rows, (one, other)[i % 2][place])
