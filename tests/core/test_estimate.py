"""The estimate before a run: near what the run takes, and an error where it would not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.core.peaks import peak_of
from workbench.core import estimate as estimate_file
from workbench.core.errors import EmptySelectionError, MemoryLimitError
from workbench.core.estimate import available_memory

MODEL = wb.load(
    tiny.hf_llama(
        hidden_size=128,
        intermediate_size=320,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        vocab_size=4000,
    )
)
MODELS = {
    "llama": MODEL,
    "gpt2": wb.load(
        tiny.hf_gpt2(n_embd=128, n_inner=512, n_head=4, n_positions=256, vocab_size=1000)
    ),
}
IDS = tiny.tokens(4, 192)
CASES: dict[str, dict[str, Any]] = {
    "logits": {},
    "last logits": {"positions": "last"},
    "few words": {"vocabulary": [1, 2, 3]},
    "lazy": {"record": "all"},
    "streams": {"record": "blocks.*.hook_resid_post", "logits": False},
    "neurons": {"record": "blocks.*.mlp.*", "logits": False},
    "heads": {"record": ["blocks.*.attn.hook_q", "blocks.*.attn.hook_z"], "positions": "last"},
    "a pattern": {"record": "blocks.1.attn.hook_pattern", "logits": False},
    "patterns": {"record": "blocks.*.attn.hook_pattern", "positions": "last"},
    "results": {"record": "blocks.*.attn.hook_result", "positions": "last"},
    "head inputs": {"record": "blocks.*.hook_q_input", "positions": "last"},
    "everything": {"record": "*", "positions": "last"},
    "a mask of each head": {
        "attention_mask": tiny.tokens(4, 4, 192, 192, high=8) > 0,
        "positions": "last",
    },
}


RAGGED = [IDS[i % 4, : 20 + 12 * i].tolist() for i in range(12)]
BUCKETS: dict[str, dict[str, Any]] = {
    "logits": {},
    "lazy": {"record": "all", "positions": "last"},
    "streams": {"record": "blocks.*.hook_resid_post", "logits": False},
    "patterns": {"record": "blocks.*.attn.hook_pattern", "positions": "last"},
    "everything": {"record": "*", "vocabulary": [1, 2]},
}


def peak(model: wb.Model, options: dict[str, Any], prompt: Any = IDS) -> int:
    """The most that a run had allocated at once."""
    return peak_of(lambda: wb.run(model, prompt, **options))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_near_the_measured_peak(kind: str, case: str) -> None:
    model, options = MODELS[kind], CASES[case]
    told, measured = wb.estimate(model, IDS, **options).total, peak(model, options)
    assert 0.9 * measured <= told <= 1.5 * measured


@pytest.mark.parametrize("max_tokens", [200, 800])
@pytest.mark.parametrize("case", BUCKETS)
def test_batches_by_length_are_estimated_as_near(case: str, max_tokens: int) -> None:
    options: dict[str, Any] = {**BUCKETS[case], "max_tokens": max_tokens}
    told, measured = wb.estimate(MODEL, RAGGED, **options), peak(MODEL, options, RAGGED)
    assert 0.9 * measured <= told.total <= 1.5 * measured
    if case != "logits":  # which are padded in either case, and here a batch's own come on top
        assert told.total < wb.estimate(MODEL, RAGGED, **BUCKETS[case]).total


def test_what_stays_is_counted_exactly() -> None:
    for record in (
        "blocks.*.hook_mlp_out",
        "blocks.*.attn.hook_[kz]",
        "blocks.*.attn.hook_pattern",
    ):
        trace = wb.run(MODEL, IDS, record=record, positions=[0, -1], vocabulary=[1, 2, 3])
        told = wb.estimate(MODEL, IDS, record=record, positions=[0, -1], vocabulary=[1, 2, 3])
        assert told.activations == sum(value.nbytes for value in trace.values())
        assert told.logits == trace.logits.nbytes


def test_everything_kept_lazily_costs_the_streams() -> None:
    told = wb.estimate(MODEL, IDS, record="all").activations
    trace = wb.run(MODEL, IDS, record="all")
    storages = {v.untyped_storage().data_ptr(): v.nbytes for v in trace.activations.values()}
    assert told == sum(storages.values()) == 4 * IDS.numel() * 128 * 4
    assert wb.estimate(MODEL, IDS, record="*").activations > 10 * told
    assert wb.estimate(
        MODEL, IDS, record="all", start=(2, tiny.normal(4, 192, 128))
    ).activations == (told // 2)


def test_spilling_leaves_one_stream_in_memory() -> None:
    told = wb.estimate(MODEL, IDS, record="all", spilled=True)
    assert told.activations == IDS.numel() * 128 * 4


def test_a_run_that_would_not_fit_is_refused_before_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate_file, "UNASKED", 0)
    monkeypatch.setattr(estimate_file, "available_memory", lambda _: 10 * 2**20)
    spy = tiny.Spy(lambda site: False)
    with pytest.raises(MemoryLimitError, match=r"10\.0 MiB available\. Less is taken by") as caught:
        wb.run(MODEL, IDS, record="*", tap=spy)
    assert spy.fired == []
    for advice in ('record="all"', "spill=", "fewer rows than 4"):
        assert advice in str(caught.value)
    assert any("positions=" in advice for advice in wb.estimate(MODEL, IDS).advice)
    assert not any("record=" in advice for advice in wb.estimate(MODEL, IDS, record="all").advice)
    told = wb.estimate(MODEL, IDS, record="*")
    assert not told.fits
    assert wb.estimate(MODEL, IDS[:1], record="all").fits
    wb.run(MODEL, IDS[:1], record="all")


def test_what_would_make_it_fit_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_file, "UNASKED", 0)
    sizes = [
        wb.estimate(MODEL, IDS, record="*"),
        wb.estimate(MODEL, IDS, record="all"),
        wb.estimate(MODEL, IDS, record="all", positions="last"),
        wb.estimate(MODEL, IDS[:1], record="all", positions="last"),
    ]
    totals = [one.total for one in sizes]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == 4


def test_it_reads_as_a_sentence() -> None:
    told = wb.estimate(MODEL, IDS, record="all")
    assert str(told) == "14.3 MiB: activations 1.5 MiB, logits 11.7 MiB, working 1.1 MiB"
    assert told.available is None  # too small to ask


def test_nothing_asked_for_is_an_error_here_too() -> None:
    with pytest.raises(EmptySelectionError, match="Nothing is asked for"):
        wb.estimate(MODEL, IDS, logits=False)


def test_this_machine_says_what_is_free() -> None:
    free = available_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert available_memory(torch.device("meta")) is None


def test_a_container_s_limit_counts_without_the_files_it_has_cached(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\nactive_file 100\ninactive_file 250\n")
    assert estimate_file._free_of_group(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert estimate_file._free_of_group(tmp_path) is None
    assert estimate_file._free_of_group(tmp_path / "none") is None
