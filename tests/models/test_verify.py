"""Verification: what is right passes, and each thing that is wrong fails the check it is of."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor
from typing_extensions import override

import workbench as wb
from tests import tiny
from tests.families import EXAMPLES
from tests.two_stacks import TWO_STACKS
from workbench.core.errors import FormatError, MemoryLimitError, OptionError
from workbench.core.sites import Site
from workbench.core.tap import Tap
from workbench.models import verify as module
from workbench.models.layers.block import AnyBlock
from workbench.models.layers.context import Pass
from workbench.models.transformer import Transformer
from workbench.models.verification.identities import Sum, sums_of
from workbench.models.verification.parity import worst
from workbench.models.verification.report import Measured, Report, Row, read_report
from workbench.models.verify import CHECKS

Step = Callable[[AnyBlock, Tensor, Tap, Pass], Tensor]
TOLD = {"memory", "speed"}


@final
class Spoilt(AnyBlock):
    """A block that does something else with another one."""

    def __init__(self, inner: AnyBlock, step: Step) -> None:
        super().__init__()
        self.inner, self.sites, self.otherwise = inner, inner.sites, step

    @override
    def step(self, resid: Tensor, tap: Tap, now: Pass) -> Tensor:
        return self.otherwise(self.inner, resid, tap, now)


@final
class Halved(Tap):
    """Halves what every tap left at a site, unseen by it."""

    def __init__(self, tap: Tap, short: str) -> None:
        self.tap, self.short = tap, short

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        value = self.tap(site, value)
        return value / 2 if site.short == self.short else value

    @override
    def wants(self, site: Site) -> bool:
        return self.tap.wants(site)


def spoilt(step: Step) -> Transformer:
    """A tiny Llama whose second block does `step`."""
    model = wb.load(tiny.hf("llama", attention_bias=True), tokenizer=tiny.Bytes())
    inner = model.stack.blocks[1]
    assert isinstance(inner, AnyBlock)
    model.stack.blocks[1] = Spoilt(inner, step)
    return Transformer(model.stack, name="spoilt", fingerprint="0", tokenizer=tiny.Bytes())


def failed(report: Report) -> set[str]:
    """The checks that did not pass."""
    return {row.name for row in report.rows if not row.passed}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of tests are kept among the tests' files."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


# --- what is right passes ---------------------------------------------------------------------


def forms() -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """How to build one model of each family, of one stack or two, and one with each head."""
    found: dict[str, tuple[Any, Mapping[str, Any]]] = {}
    for name, example in {**EXAMPLES, **TWO_STACKS}.items():
        found[name] = example.build, {}
        for variant, changes in example.variants.items():
            if "head" in changes or "own_unembedding" in changes:
                found[f"{name}: {variant}"] = example.build, changes
    return found


FORMS = forms()


@pytest.mark.parametrize("form", FORMS)
def test_every_family_passes(form: str, unchecked: None) -> None:
    build, changes = FORMS[form]
    theirs = build(**changes)
    report = wb.verify(wb.load(theirs, tokenizer=tiny.Bytes()), theirs=theirs)
    assert report.passed, str(report)
    judged = {row.name for row in report.rows if row.allowed is not None}
    everywhere = {"logits", "hidden states", "attentions"}
    assert judged >= {f"{what} = transformers" for what in everywhere}
    assert judged >= {"streams add up", "padded = alone", "gradients = differences"}
    assert set(report.left_out) <= {"tokens = transformers", "cached = uncached"}
    assert {row.name for row in report.rows} | report.left_out.keys() == CHECKS.keys()
    assert {row.name for row in report.rows if row.allowed is None} <= TOLD


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_folder_is_compared_with_what_transformers_reads_from_it(
    kind: str, dtype: torch.dtype, tmp_path: Path, unchecked: None
) -> None:
    tiny.hf(kind).save_pretrained(tmp_path / "model")
    model = wb.load(tmp_path / "model", dtype=dtype)
    report = wb.verify(model)
    assert report.passed, str(report)
    assert report["logits = transformers"].allowed is not None
    assert set(report.left_out) == {"tokens = transformers", "tokens and back"}


def test_a_model_from_nowhere_is_not_compared_and_says_why(unchecked: None) -> None:
    report = wb.verify(tiny.model())
    assert report.passed
    assert "pass transformers' own model as theirs=" in report.left_out["logits = transformers"]
    assert "not checked: logits = transformers" in str(report)


def test_the_model_stays_as_it_is(unchecked: None) -> None:
    model = tiny.model()
    before = tiny.digest(model)
    wb.verify(model)
    assert tiny.digest(model) == before
    assert all(p.grad is None and not p.requires_grad for p in model.stack.parameters())


# --- what is wrong fails ----------------------------------------------------------------------


def detached(block: AnyBlock, resid: Tensor, tap: Tap, now: Pass) -> Tensor:
    return block.step(resid.detach(), tap, now) + 0 * resid


def scaled(block: AnyBlock, resid: Tensor, tap: Tap, now: Pass) -> Tensor:
    return 1.5 * block.step(resid, tap, now)


def seeing_pads(block: AnyBlock, resid: Tensor, tap: Tap, now: Pass) -> Tensor:
    whole = now.cache is None
    return block.step(
        resid, tap, dataclasses.replace(now, visible=None, causal=True) if whole else now
    )


def forgetful(block: AnyBlock, resid: Tensor, tap: Tap, now: Pass) -> Tensor:
    if now.cache is None or resid.shape[1] > 1:
        return block.step(resid, tap, now)
    return block.step(resid, tap, dataclasses.replace(now, cache=None, visible=None))


def writing_half(block: AnyBlock, resid: Tensor, tap: Tap, now: Pass) -> Tensor:
    return block.step(resid, Halved(tap, "hook_attn_out"), now)


def half_heads(block: AnyBlock, resid: Tensor, tap: Tap, now: Pass) -> Tensor:
    return block.step(resid, Halved(tap, "attn.hook_result"), now)


@pytest.mark.parametrize(
    ("step", "check"),
    [
        (detached, "gradients = differences"),
        (scaled, "blocks hand streams on"),
        (seeing_pads, "padded = alone"),
        (forgetful, "cached = uncached"),
        (writing_half, "streams add up"),
        (half_heads, "heads add up"),
    ],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_what_is_wrong_fails_the_check_it_is_of(step: Step, check: str, unchecked: None) -> None:
    assert failed(wb.verify(spoilt(step))) == {check}


def test_another_models_weights_are_not_transformers(unchecked: None) -> None:
    theirs = tiny.randomised(tiny.hf("llama"), seed=5)
    report = wb.verify(wb.load(tiny.hf("llama")), theirs=theirs)
    told = {"logits = transformers", "hidden states = transformers", "attentions = transformers"}
    assert failed(report) == told
    assert "FAILED" in str(report)


def test_a_tokenizer_that_loses_text_fails_the_round_trip(unchecked: None) -> None:
    @final
    @dataclasses.dataclass(frozen=True)
    class Shift:
        bos_id: int | None = None
        eos_ids: tuple[int, ...] = ()

        def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
            return tuple(text.encode())

        def decode(self, ids: Any, *, skip_special: bool = False) -> str:
            return bytes(ids[1:]).decode(errors="replace")

        def token_text(self, token: int) -> str:
            return str(token)

        def single(self, text: str) -> int:
            return ord(text)

    row = wb.verify(wb.load(tiny.hf("llama"), tokenizer=Shift()))["tokens and back"]
    assert not row.passed
    assert row.measured == 5


def test_what_does_not_fit_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    def refuse(*_: object) -> Measured:
        message = "9 GB"
        raise MemoryLimitError(message)

    monkeypatch.setattr(module, "CHECKS", {"logits = transformers": refuse})
    report = wb.verify(tiny.model())
    assert report.left_out == {"logits = transformers": "9 GB"}


def test_a_check_that_raises_a_typed_error_failed(
    monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    def refuse(*_: object) -> Measured:
        raise OptionError("x", "a", "b")

    monkeypatch.setattr(module, "CHECKS", {"padded = alone": refuse})
    report = wb.verify(tiny.model())
    assert not report.passed
    assert report["padded = alone"].note == "x must be a, got 'b'."


def test_the_worst_pair_is_told_and_nan_is_never_within() -> None:
    one, nan = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert worst([(one, one)], "u") == Measured(0.0, 1e-5, "u", "equal bit for bit")
    assert worst([(one, one + 1), (one, one)], "u").value == 1
    for pairs in ([(nan, one), (one, one)], [(one, one), (one, nan)]):
        assert not Row("x", *worst(pairs, "u")[:3], 0.0, "").passed
    assert worst([(one, torch.ones(3))], "u").value == float("inf")


@pytest.mark.parametrize("value", [3, None, "", tiny.Bytes()], ids=["3", "None", "empty", "Bytes"])
def test_what_is_no_model_is_refused(value: Any, unchecked: None) -> None:
    with pytest.raises((OptionError, KeyError)):
        wb.verify(value)


# --- the form of each block -------------------------------------------------------------------


def form(*shorts: str) -> tuple[dict[str, tuple[str, ...]], str]:
    """What adds up in a block with these sites, in short."""
    sums, last = sums_of(tuple(Site(f"blocks.{{}}.{short}", 0) for short in shorts))
    assert last is not None
    assert all(isinstance(one, Sum) for one in sums)
    return {s.total.short: tuple(part.short for part in s.parts) for s in sums}, last.short


def test_the_form_of_a_block_is_read_off_its_sites() -> None:
    pre, mid, post = "hook_resid_pre", "hook_resid_mid", "hook_resid_post"
    attn, mlp = "hook_attn_out", "hook_mlp_out"
    ln1, ln2, z = "ln1.hook_normalized", "ln2.hook_normalized", "attn.hook_z"
    assert form(pre, ln1, z, attn, mid, ln2, mlp, post) == (
        {mid: (pre, attn), post: (mid, mlp)},
        post,
    )
    assert form(pre, ln1, z, attn, ln2, mlp, post) == ({post: (pre, attn, mlp)}, post)  # parallel
    assert form(pre, z, attn, mid, ln2, mlp, post) == (  # a first block whose input is normalised
        {mid: (pre, attn), post: (mid, mlp)},
        post,
    )
    assert form(pre, ln1, z, attn, post) == ({post: (pre, attn)}, post)  # no feed-forward
    assert form(pre, z, attn, mid, ln1, mlp, post, ln2) == (  # norms come after
        {mid: (pre, attn), post: (ln1, mlp)},
        ln2,
    )
    last = "hook_normalized_resid_post"
    assert form(pre, z, attn, mid, ln1, mlp, post, ln2, last)[1] == last


# --- reports ----------------------------------------------------------------------------------


def test_a_report_is_kept_and_read_again(tmp_path: Path, unchecked: None) -> None:
    model = tiny.model("gpt2")
    assert wb.verified(model) is None
    report = wb.verify(model)
    assert wb.verified(model) == report
    assert read_report(report.save(tmp_path / "own.json")) == report


def test_numbers_that_json_lacks_are_kept_too(tmp_path: Path) -> None:
    rows = (
        Row("a", float("inf"), 1.0, "u", 0.1, "n"),
        Row("b", None, None, "", 0.1, "it raised"),
        Row("c", 0.0, 0.0, "u", 0.1, ""),
    )
    report = Report("m", "f", rows, {"d": "no such thing"})
    assert read_report(report.save(tmp_path / "r.json")) == report
    assert failed(report) == {"a", "b"}


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"rows": 3},
        {"rows": [3]},
        {"rows": [{}]},
        {"left_out": []},
        {
            "rows": [
                {"name": "a", "measured": "x", "allowed": 1, "unit": "", "seconds": 0, "note": ""}
            ]
        },
    ],
    ids=["format", "no rows", "odd row", "empty row", "odd left out", "odd number"],
)
def test_a_damaged_report_is_a_typed_error(change: dict[str, Any], tmp_path: Path) -> None:
    file = Report("m", "f", (), {}).save(tmp_path / "r.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(FormatError):
        read_report(file)


@pytest.mark.asset("all-minilm-l6-v2")
def test_the_sentence_encoder_passes(unchecked: None) -> None:
    report = wb.verify(wb.load("all-minilm-l6-v2"), keep=False)
    assert report.passed, str(report)
    assert set(report.left_out) == {"cached = uncached"}


@pytest.mark.asset
def test_the_default_model_passes(default_model: Transformer, unchecked: None) -> None:
    report = wb.verify(default_model, keep=False)
    assert report.passed, str(report)
    assert not report.left_out
