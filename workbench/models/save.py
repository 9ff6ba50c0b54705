"""A model as a folder that stock transformers loads: config, safetensors, tokenizer.

Notable: no family says how to go back. A family's `convert` gives its weights as views of the
checkpoint's tensors (transposed, split, renamed), so writing into these views writes the
checkpoint. What that would leave unwritten is found by what it was filled with, and refused.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.errors import OptionError, WeightsError
from workbench.core.options import expect, flag
from workbench.core.store import write_json
from workbench.models.checkpoint import SINGLE
from workbench.models.load import family_of
from workbench.models.overview import architecture_of
from workbench.models.tokenizer import Tokenizer
from workbench.models.transformer import Transformer


def save(model: Transformer, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Writes a model into a folder that transformers and `load` read.

    The inverse of loading, of what was loaded here or made by `new`; weights are in their dtype.
    Takes their memory again, and imports transformers, which says how its own weights are named.

    Raises:
        OptionError: If it is a view or was built by hand, which no Hugging Face config describes,
            or if the folder holds something and `overwrite` is False.
        WeightsError: If transformers' own model has weights that this one does not.
    """
    expect("model", model, Transformer, "a model that was loaded here, or made by new")
    folder, overwrite = Path(folder), flag("overwrite", overwrite)
    if model.origin is None:
        allowed = "a model with a Hugging Face config; views of folded weights have none"
        raise OptionError("model", allowed, model)
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise OptionError("folder", "empty, or overwrite=True given", str(folder))
    architecture, weights = checkpoint_of(model, model.origin.config)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(model.dtype).removeprefix("torch.")
    config = {**model.origin.config, "architectures": [architecture], "dtype": dtype}
    config.pop("torch_dtype", None)
    _write(weights, folder / SINGLE)
    write_json(folder / "config.json", config)
    if isinstance(model.tokenizer, Tokenizer):
        _save_tokenizer(model.tokenizer, folder)
    return folder


def checkpoint_of(model: Transformer, config: Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """The class of transformers that has these weights, and they by its names.

    Raises:
        WeightsError: If that class has weights that the model does not.
    """
    twin = _empty_twin(config, model)
    first: dict[int, str] = {}
    for name, weight in twin.named_parameters(remove_duplicate=False):
        first.setdefault(id(weight), name)  # one tensor may have two names
    shapes = dict(twin.named_parameters(remove_duplicate=False))
    blank = {
        name: torch.full(shapes[name].shape, torch.nan, dtype=model.dtype)
        for name in first.values()
    }
    views = family_of(config).convert(blank, model.stack)
    for name, weight in model.stack.named_parameters(remove_duplicate=False):
        if name in views:
            views[name].copy_(weight.detach())
    unwritten = [name for name, tensor in blank.items() if bool(tensor.isnan().any())]
    if unwritten:
        raise WeightsError(
            f"{type(twin).__name__} has {len(unwritten)} weights that {model.name!r} has not: "
            f"{', '.join(unwritten[:8])}. It cannot be saved for transformers."
        )
    return type(twin).__name__, blank


def _empty_twin(config: Mapping[str, Any], model: Transformer) -> nn.Module:
    import transformers
    from transformers.models.auto import modeling_auto

    auto: Any = transformers.AutoConfig
    known = {key: value for key, value in config.items() if key != "model_type"}
    theirs = auto.for_model(config["model_type"], **known)
    kind = "decoder" if model.causal else "encoder"
    named = config.get("architectures") or [architecture_of(config["model_type"], kind)]
    classes = vars(modeling_auto)
    reader = "AutoModelForCausalLM" if model.causal else "AutoModelForMaskedLM"
    if named[0] in classes["MODEL_MAPPING_NAMES"].values():
        reader = "AutoModel"
    elif named[0] in classes["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"].values():
        reader = "AutoModelForCausalLM"  # of some that read both ways, too
    with torch.device("meta"):
        return classes[reader].from_config(theirs)


def _write(weights: Mapping[str, Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    half = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file(dict(weights), half, metadata={"format": "pt"})
        half.replace(file)
    finally:
        half.unlink(missing_ok=True)


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.backend.save(str(folder / "tokenizer.json"), pretty=False)
    own: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.named}
    if tokenizer.chat_template is not None:
        own["chat_template"] = tokenizer.chat_template
    write_json(folder / "tokenizer_config.json", json.loads(json.dumps(own)))
    if tokenizer.eos_ids:
        write_json(folder / "generation_config.json", {"eos_token_id": list(tokenizer.eos_ids)})
