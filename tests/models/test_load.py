"""Loading: nothing copied, nothing drawn, and what does not fit is said in one message."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import (
    FormatError,
    NonFiniteError,
    OptionError,
    UnknownConfigKeyError,
    UnknownNameError,
    WeightsError,
)
from workbench.models.load import assemble
from workbench.models.views.stacks import words_of

kinds = pytest.mark.parametrize("kind", tiny.KINDS)
IDS = tiny.tokens(2, 6)


@pytest.fixture(params=tiny.KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A saved tiny model."""
    tiny.hf(request.param).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Changes the weights of a folder."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def reconfigure(folder: Path, **changes: Any) -> None:
    """Changes the config of a folder."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# --- sources ------------------------------------------------------------------------------------


@kinds
def test_a_model_in_memory_shares_its_weights(kind: str) -> None:
    theirs = tiny.hf(kind)
    ours = wb.load(theirs)
    there = {tensor.untyped_storage().data_ptr() for tensor in theirs.state_dict().values()}
    here = {w.untyped_storage().data_ptr() for w in ours.stack.parameters()}
    assert here <= there
    assert all(weight.requires_grad for weight in theirs.parameters())  # left as they are


def test_a_folder_gives_the_model_that_was_saved(folder: Path) -> None:
    ours = wb.load(folder)
    assert ours.name == "model"
    assert ours.tokenizer is None
    kind = "gpt2" if "n_embd" in (folder / "config.json").read_text() else "llama"
    assert torch.equal(wb.run(ours, IDS).logits, wb.run(wb.load(tiny.hf(kind)), IDS).logits)


def test_a_folder_is_found_from_within(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert wb.load(".").name == "model"


def test_a_folder_s_weights_are_mapped_not_copied(folder: Path) -> None:
    ours = wb.load(folder)
    mapped = [
        line.split()[0].split("-")
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("model.safetensors")
    ]
    assert mapped, "the file is not mapped"
    ranges = [(int(start, 16), int(stop, 16)) for start, stop in mapped]
    for name, weight in ours.stack.named_parameters():
        at = weight.data_ptr()
        assert any(start <= at < stop for start, stop in ranges), name


@kinds
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_is_a_copy_in_that_dtype(kind: str, dtype: torch.dtype) -> None:
    theirs = tiny.hf(kind)
    ours = wb.load(theirs, dtype=dtype, device="cpu")
    assert ours.dtype is dtype
    assert ours.device == torch.device("cpu")
    assert all(weight.dtype is dtype for weight in ours.stack.parameters())
    assert theirs.dtype is torch.float32
    assert wb.run(ours, IDS).logits.dtype is dtype


@kinds
def test_the_same_dtype_copies_nothing(kind: str) -> None:
    theirs = tiny.hf(kind)
    there = {tensor.data_ptr() for tensor in theirs.state_dict().values()}
    ours = wb.load(theirs, dtype=torch.float32)
    assert ours.stack.embed.tokens.data_ptr() in there


@kinds
def test_loading_draws_no_random_number(kind: str, tmp_path: Path) -> None:
    theirs = tiny.hf(kind)
    theirs.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    wb.load(theirs)
    wb.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tokenizer_may_be_given(folder: Path) -> None:
    ours = wb.load(folder, tokenizer=tiny.Bytes())
    assert wb.run(ours, "abc").batch.tokens.tolist() == [[97, 98, 99]]
    with pytest.raises(OptionError, match="tokenizer must be a Hugging Face tokenizer, got 'int'"):
        wb.load(folder, tokenizer=7)


def test_what_is_no_source_is_refused() -> None:
    said = "a name, a path or a Hugging Face model, got 'int'"
    with tiny.unchecked(), pytest.raises(OptionError, match=said):
        wb.load(7)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownNameError, match="No model named 'no-such-model'"):
        wb.load("no-such-model")
    with pytest.raises(UnknownNameError):
        wb.load("")
    with pytest.raises(TypeError):
        wb.load("x", dtpye=torch.float32)  # pyright: ignore[reportCallIssue]


# --- weights that do not fit --------------------------------------------------------------------


def test_all_that_does_not_fit_is_said_at_once() -> None:
    theirs = tiny.hf_llama()
    weights = dict(theirs.state_dict())
    del weights["model.layers.1.mlp.up_proj.weight"]
    del weights["model.norm.weight"]
    weights["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(3, 24)
    weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
    weights["adapter"] = torch.zeros(2)
    with pytest.raises(WeightsError) as caught:
        assemble(theirs.config.to_dict(), weights, name="broken")
    message = str(caught.value)
    assert message.startswith("5 weights do not fit the config:")
    for line in (
        "missing: blocks.1.mlp.up.weight",
        "missing: ln_final.weight",
        "unexpected: adapter",
        "unexpected: model.layers.7.mlp.up_proj.weight",
        "misshapen: blocks.0.attn.q.weight is (3, 24), expected (32, 24)",
    ):
        assert line in message


def test_a_long_list_is_cut() -> None:
    theirs = tiny.hf_llama()
    weights = {f"w{i}": torch.zeros(1) for i in range(60)}
    with pytest.raises(WeightsError, match=r"90 weights do not fit(.|\n)*… and 50 more"):
        assemble(theirs.config.to_dict(), weights, name="broken")


def test_biases_that_the_config_denies_are_unexpected() -> None:
    theirs = tiny.hf_llama(attention_bias=True)
    config = {**theirs.config.to_dict(), "attention_bias": False}
    with pytest.raises(WeightsError, match=r"unexpected: blocks\.0\.attn\.q\.bias"):
        assemble(config, theirs.state_dict(), name="broken")


def test_an_unembedding_is_tied_only_where_the_config_says_so(tmp_path: Path) -> None:
    tiny.hf_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    tied = wb.load(tmp_path)
    assert words_of(tied.stack).weight.data_ptr() == tied.stack.embed.tokens.data_ptr()
    reconfigure(tmp_path, tie_word_embeddings=False)
    with pytest.raises(WeightsError, match=r"missing: unembed\.weight"):
        wb.load(tmp_path)


def test_a_tied_unembedding_that_is_another_matrix_is_refused() -> None:
    theirs = tiny.hf_llama()
    config = {**theirs.config.to_dict(), "tie_word_embeddings": True}
    with pytest.raises(WeightsError, match="tie_word_embeddings = true, and the weights hold"):
        assemble(config, theirs.state_dict(), name="broken")
    weights = dict(theirs.state_dict())
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    assert torch.equal(
        words_of(assemble(config, weights, name="fine").stack).weight,
        weights["model.embed_tokens.weight"],
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, bad: float) -> None:
    def spoil(weights: dict[str, Tensor]) -> None:
        name = next(name for name in weights if "0" in name and weights[name].ndim == 2)
        weights[name].view(-1)[3] = bad

    rewrite(folder, spoil)
    with pytest.raises(NonFiniteError, match=r"blocks\.0\..*weight: 1 of \d+ values are not"):
        wb.load(folder)


def test_large_finite_weights_are_finite() -> None:
    theirs = tiny.hf_llama()
    with torch.no_grad():
        theirs.model.embed_tokens.weight.fill_(3e38)  # the sum overflows
    assert wb.load(theirs).name == "llama"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_truncated_file_names_both_sizes(folder: Path, share: float) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=r"model\.safetensors.*the file has"):
        wb.load(folder)


def test_a_config_key_that_nobody_knows_is_refused(folder: Path) -> None:
    reconfigure(folder, sliding_window=512)
    with pytest.raises(UnknownConfigKeyError, match="'sliding_window' = 512 is neither handled"):
        wb.load(folder)


@pytest.mark.parametrize("value", [None, 7, ["llama"]])
def test_a_config_without_a_family_is_refused(folder: Path, value: object) -> None:
    reconfigure(folder, model_type=value)
    with pytest.raises(OptionError, match=r"model_type must be one of .*gpt2, .*llama"):
        wb.load(folder)


def test_a_family_that_nobody_has_names_what_there_is(folder: Path) -> None:
    reconfigure(folder, model_type="llamma")
    with pytest.raises(UnknownNameError, match=r"named 'llamma'\. Nearest of [0-9]+: .*llama"):
        wb.load(folder)


def test_weights_of_another_architecture_than_the_config_says_are_refused(folder: Path) -> None:
    reconfigure(folder, model_type="mamba")  # of no family: transformers reads it
    with pytest.raises(WeightsError, match="weights do not fit the config"):
        wb.load(folder)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"config\.json"):
        wb.load(tmp_path)


# --- fingerprints -------------------------------------------------------------------------------


@kinds
def test_a_fingerprint_names_the_weights_and_the_config(kind: str) -> None:
    theirs = tiny.hf(kind)
    one, again = wb.load(theirs), wb.load(tiny.hf(kind))
    assert one.fingerprint == again.fingerprint
    assert len(one.fingerprint) == 16
    other = wb.load(tiny.randomised(theirs, seed=1))
    assert other.fingerprint != one.fingerprint
    eps = {"rms_norm_eps": 1e-3} if kind == "llama" else {"layer_norm_epsilon": 1e-3}
    assert wb.load(tiny.hf(kind, **eps)).fingerprint != one.fingerprint
    assert wb.load(tiny.hf(kind), dtype=torch.float64).fingerprint != one.fingerprint


# --- dtypes, devices and sizes ------------------------------------------------------------------


@pytest.mark.parametrize("strange", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_nothing_computes_with_are_named(strange: torch.dtype) -> None:
    hf = tiny.hf_llama()
    weights = dict(hf.state_dict())
    weights["model.norm.weight"] = weights["model.norm.weight"].to(strange)
    with pytest.raises(WeightsError, match=rf"ln_final\.weight is {strange}: not computed with"):
        assemble(hf.config.to_dict(), weights, name="strange")


def test_weights_of_several_dtypes_need_one_to_be_chosen() -> None:
    hf = tiny.hf_llama()
    weights = dict(hf.state_dict())
    weights["model.norm.weight"] = weights["model.norm.weight"].half()
    with pytest.raises(WeightsError, match=r"of several dtypes \(torch.float16, torch.float32\)"):
        assemble(hf.config.to_dict(), weights, name="mixed")
    model = assemble(hf.config.to_dict(), weights, name="mixed", dtype=torch.float32)
    assert wb.run(model, IDS).logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype must be one of torch.float16"),
        ({"dtype": torch.int8}, "dtype must be one of torch.float16"),
        ({"dtype": torch.float8_e4m3fn}, "dtype must be one of torch.float16"),
        ({"device": "meta"}, "device must be one that computes"),
        ({"device": "nowhere"}, "device must be one that this machine has"),
    ],
)
def test_what_no_machine_computes_with_is_refused(options: dict[str, Any], message: str) -> None:
    with tiny.unchecked(), pytest.raises(OptionError, match=message):
        wb.load(tiny.hf_llama(), **options)


@kinds
def test_a_model_loaded_in_inference_mode_has_gradients(kind: str) -> None:
    with torch.inference_mode():
        model = wb.load(tiny.hf(kind))
    contrast = wb.Contrast([[1, 2, 3]], [[1, 4, 3]], 5, 6)
    metric = wb.metrics.logit_difference(contrast)
    slopes = wb.gradients(model, [[1, 2, 3]], "hook_embed", metric)
    assert float(next(iter(slopes.values())).abs().sum()) > 0


def test_more_blocks_than_any_model_has_are_refused_before_they_are_built(folder: Path) -> None:
    name = "num_hidden_layers" if "llama" in (folder / "config.json").read_text() else "n_layer"
    reconfigure(folder, **{name: 10**9})
    with pytest.raises(OptionError, match=f"config key '{name}' must be at most 1000"):
        wb.load(folder)
