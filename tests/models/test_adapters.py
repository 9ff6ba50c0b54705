"""Low-rank adapters: the model with one is the model whose weights were changed by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import workbench as wb
from tests import tiny
from tests.families import EXAMPLES, hf
from workbench.core.errors import FormatError, NonFiniteError, OptionError, WeightsError
from workbench.models.adapters import CONFIG, FILE, PREFIX, read_adapter

RANK, ALPHA = 2, 6
PLAIN = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
families = pytest.mark.parametrize("family", list(EXAMPLES))


def matrices(theirs: Any) -> dict[str, Any]:
    """The linear maps of the blocks of a Hugging Face model, by name."""
    from transformers.pytorch_utils import Conv1D

    head = theirs.get_output_embeddings()
    return {
        name: module
        for name, module in theirs.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and ".0." in name
    }


def factors(theirs: Any) -> dict[str, Tensor]:
    """Random factors for each of these, by peft's names."""
    from transformers.pytorch_utils import Conv1D

    made: dict[str, Tensor] = {}
    for place, (name, module) in enumerate(matrices(theirs).items()):
        d_out, d_in = module.weight.shape
        if isinstance(module, Conv1D):
            d_out, d_in = d_in, d_out
        made[f"{PREFIX}{name}.lora_A.weight"] = 0.1 * tiny.normal(RANK, d_in, seed=place)
        made[f"{PREFIX}{name}.lora_B.weight"] = 0.1 * tiny.normal(d_out, RANK, seed=place + 50)
    return made


def written(folder: Path, weights: dict[str, Tensor], **config: Any) -> Path:
    """An adapter's folder, as peft writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / FILE)
    (folder / CONFIG).write_text(json.dumps({**PLAIN, **config}))
    return folder


def transposed(theirs: Any) -> bool:
    """Whether the model keeps its matrices as (d_in, d_out)."""
    return not all(isinstance(module, nn.Linear) for module in matrices(theirs).values())


def changed(theirs: Any, weights: dict[str, Tensor], scale: float) -> Any:
    """The Hugging Face model with the changes added by hand."""
    with torch.no_grad():
        for name, module in matrices(theirs).items():
            a, b = (weights[f"{PREFIX}{name}.lora_{side}.weight"] for side in "AB")
            change = scale * (b @ a)
            module.weight += change if isinstance(module, nn.Linear) else change.T
    return theirs


@families
def test_a_model_with_an_adapter_is_one_with_changed_weights(family: str, tmp_path: Path) -> None:
    theirs, ids = hf(family), tiny.tokens(2, 7)
    weights = factors(theirs)
    assert weights
    folder = written(tmp_path / "a", weights, fan_in_fan_out=transposed(theirs))
    model = wb.load(theirs)
    before, plain = tiny.digest(model), wb.run(model, ids).logits
    view = read_adapter(folder).on(model)
    expected = wb.run(wb.load(changed(hf(family), weights, ALPHA / RANK)), ids).logits
    tiny.close(wb.run(view, ids).logits, expected, 1e-5)
    assert (expected - plain).abs().max() > 1e-3
    assert tiny.digest(model) == before  # the running model says what it said
    assert torch.equal(wb.run(model, ids).logits, plain)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_an_adapter_is_merged_at_load_and_saved(kind: str, tmp_path: Path) -> None:
    theirs, ids = tiny.hf(kind), tiny.tokens(1, 6)
    theirs.save_pretrained(tmp_path / "model")
    weights = factors(theirs)
    folder = written(tmp_path / "a", weights, fan_in_fan_out=kind == "gpt2")
    merged = wb.load(tmp_path / "model", adapter=folder)
    assert merged.name == "model + a"
    with torch.no_grad():
        expected = changed(theirs, weights, ALPHA / RANK)(ids).logits
    tiny.close(wb.run(merged, ids).logits, expected, 1e-5)
    again = wb.load(wb.save(merged, tmp_path / "merged"))
    assert tiny.digest(again) == tiny.digest(merged)


def test_what_an_adapter_leaves_alone_is_shared(tmp_path: Path) -> None:
    theirs = tiny.hf("llama")
    weights = {name: w for name, w in factors(theirs).items() if "q_proj" in name}
    model = wb.load(theirs)
    view = read_adapter(written(tmp_path, weights)).on(model)
    own = dict(model.stack.named_parameters())
    other = {n for n, w in view.stack.named_parameters() if w.data_ptr() != own[n].data_ptr()}
    assert other == {"blocks.0.attn.q.weight"}


def test_strength_scales_and_none_is_the_model(tmp_path: Path) -> None:
    theirs, ids = tiny.hf("llama"), tiny.tokens(1, 5)
    adapter, model = read_adapter(written(tmp_path, factors(theirs))), wb.load(tiny.hf("llama"))
    off, on, back = (adapter.on(model, strength=s) for s in (0.0, 1.0, -1.0))
    assert tiny.digest(off) == tiny.digest(model)
    assert len({model.fingerprint, off.fingerprint, on.fingerprint, back.fingerprint}) == 4
    again = adapter.on(on, strength=-1.0)
    tiny.close(wb.run(again, ids).logits, wb.run(model, ids).logits, 1e-5)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, ALPHA / RANK),
        ({"use_rslora": True}, ALPHA / RANK**0.5),
        ({"r": 8, "rank_pattern": {"q_proj": RANK}}, ALPHA / RANK),
        ({"lora_alpha": 1, "alpha_pattern": {"layers.0.self_attn.q_proj": 10}}, 10 / RANK),
        ({"alpha_pattern": {"_proj": 10}}, ALPHA / RANK),  # no whole part of the name
    ],
    ids=["alpha / r", "rslora", "ranks", "alphas", "no part"],
)
def test_the_scale_is_that_of_the_config(
    config: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    weights = {n: w for n, w in factors(tiny.hf("llama")).items() if "q_proj" in n}
    (pair,) = read_adapter(written(tmp_path, weights, **config)).pairs.values()
    assert pair.scale == pytest.approx(scale)


def test_pickled_factors_are_read_without_running_code(tmp_path: Path) -> None:
    weights = factors(tiny.hf("llama"))
    folder = written(tmp_path, weights)
    (folder / FILE).unlink()
    torch.save(weights, folder / "adapter_model.bin")
    assert len(read_adapter(folder).pairs) == len(weights) // 2


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("change", "config", "error", "message"),
    [
        (None, {"peft_type": "IA3"}, FormatError, "peft_type = 'IA3'.*Merge it with peft"),
        (None, {"use_dora": True}, FormatError, "use_dora"),
        (None, {"bias": "all"}, FormatError, "bias = 'all'"),
        (None, {"modules_to_save": ["lm_head"]}, FormatError, "modules_to_save"),
        (None, {"r": 3}, WeightsError, r"expected \(3, d_in\)"),
        (None, {"r": 0}, FormatError, "r must be a number above 0"),
        (None, {"lora_alpha": "x"}, FormatError, "lora_alpha must be a number"),
        (None, {"fan_in_fan_out": 1}, FormatError, "fan_in_fan_out"),
        (lambda w: w.popitem(), {}, WeightsError, "two matrices, lora_A and lora_B"),
        (lambda w: w.clear(), {}, WeightsError, "nothing at all"),
        (lambda w: w.update(x=torch.ones(1)), {}, WeightsError, "x is not so"),
        (lambda w: next(iter(w.values())).fill_(torch.nan), {}, NonFiniteError, "not finite"),
    ],
    ids=lambda part: None if callable(part) else str(part)[:24],
)
def test_what_is_no_such_adapter_is_refused(
    change: Change | None,
    config: dict[str, Any],
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    weights = factors(tiny.hf("llama"))
    if change is not None:
        change(weights)
    with pytest.raises(error, match=message):
        read_adapter(written(tmp_path, weights, **config))


def test_an_adapter_of_another_model_names_what_does_not_fit(tmp_path: Path) -> None:
    weights = {n: w for n, w in factors(tiny.hf("llama")).items() if "q_proj" in n}
    adapter = read_adapter(written(tmp_path / "a", weights))
    with pytest.raises(WeightsError, match="the model has no such weight"):
        adapter.on(tiny.model("gpt2"))
    with pytest.raises(WeightsError, match=r"attn.q.weight is \(32, 24\), expected"):
        adapter.on(wb.load(tiny.hf("llama", hidden_size=16)))
    with pytest.raises(OptionError, match="views have none"):
        adapter.on(tiny.model().folded().model)


def test_a_folder_without_an_adapter_says_so(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"adapter_config.json does not exist"):
        read_adapter(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(PLAIN))
    with pytest.raises(WeightsError, match="there is neither"):
        read_adapter(tmp_path)
