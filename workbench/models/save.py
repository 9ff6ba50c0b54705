"""A model as a folder that stock transformers loads: config, safetensors, tokenizer.

Notable: no family says how to go back. A family's `convert` gives its weights as views of the
checkpoint's tensors (transposed, split, renamed), so writing into these views writes the
checkpoint; where it copies, tensors of numbers are sent through it, and tell where each element
went. What would be left unwritten is found by what it was filled with, and what is made is
converted once more and compared with the model, before a file is written.
"""

import itertools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.errors import OptionError, WeightsError
from workbench.core.options import expect, flag
from workbench.core.store import write_json
from workbench.models.checkpoint import SINGLE
from workbench.models.load import empty_of, family_of
from workbench.models.overview import architecture_of, kind_of, reader_of
from workbench.models.tokenizer import Tokenizer
from workbench.models.transformer import Transformer

Convert = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]  # theirs to ours, by name


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
        WeightsError: If that class has weights that the model does not, or ties what here is two.
    """
    twin, family, stack = _empty_twin(config, model), family_of(config), empty_of(config)
    weights = dict(model.stack.named_parameters(remove_duplicate=False))

    def convert(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return family.convert(tensors, stack)

    made = _blank(twin, weights, convert, model.dtype)
    views = convert(made)
    for name in weights.keys() & views.keys():
        views[name].copy_(weights[name].detach())
    copied = {name: tensor for name, tensor in made.items() if _is_unwritten(tensor)}
    if copied:
        _write_copied(copied, weights, convert)
    again = convert(made)
    lost = [name for name, tensor in made.items() if _is_unwritten(tensor)]
    lost += [n for n, w in weights.items() if n not in again or not torch.equal(again[n], w)]
    if lost:
        raise WeightsError(
            f"{type(twin).__name__} and {model.name!r} have not the same weights: "
            f"{', '.join(lost[:8])}. It cannot be saved for transformers."
        )
    return type(twin).__name__, made


def _blank(
    twin: nn.Module, weights: Mapping[str, Tensor], convert: Convert, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Tensors of NaN to be written into, by transformers' names.

    What has two names there is one tensor, unless it is two in the model: T5 1.1 has an unembedding
    that its class would begin as the embedding.
    """
    first: dict[int, str] = {}
    made: dict[str, Tensor] = {}
    for name, tensor in twin.state_dict(keep_vars=True).items():
        one = first.setdefault(id(tensor), name)
        own = one == name or _are_two(weights, convert, (one, name), tensor.shape)
        if own and tensor.is_floating_point():
            made[name] = torch.full(tensor.shape, torch.nan, dtype=dtype)
    return made


def _are_two(
    weights: Mapping[str, Tensor], convert: Convert, names: tuple[str, str], shape: torch.Size
) -> bool:
    """Whether two names of one tensor of transformers are two weights here, which differ."""
    probes = {name: torch.zeros(shape) for name in names}
    found = convert(probes)
    places = [
        [name for name in found.keys() & weights.keys() if _is_view(found[name], probe)]
        for probe in probes.values()
    ]
    pairs = itertools.product(*places)
    return any(not torch.equal(weights[one], weights[other]) for one, other in pairs)


def _is_view(tensor: Tensor, probe: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() == probe.untyped_storage().data_ptr()


def _is_unwritten(tensor: Tensor) -> bool:
    return bool(tensor.isnan().any())


def _write_copied(
    made: Mapping[str, Tensor], weights: Mapping[str, Tensor], convert: Convert
) -> None:
    """Writes tensors that their family copies from: where an element goes is told by its number.

    Also one that is there under an older name, beside the newer. Elements that nothing is made of,
    positions that no token has, are 0, if others of their tensor are.
    """
    counts = [tensor.numel() for tensor in made.values()]
    numbers = torch.arange(sum(counts)).split(counts)
    numbered = {n: own.view(t.shape) for (n, t), own in zip(made.items(), numbers, strict=True)}
    found = convert(numbered)
    flat = torch.full((sum(counts),), torch.nan, dtype=torch.float64)
    for name in found.keys() & weights.keys():
        flat[found[name].flatten()] = weights[name].detach().flatten().to(flat)
    for tensor, own in zip(made.values(), flat.split(counts), strict=True):
        kept = own if bool(own.isnan().all()) else own.nan_to_num()
        tensor.copy_(kept.view(tensor.shape))


def _empty_twin(config: Mapping[str, Any], model: Transformer) -> nn.Module:
    import transformers

    auto: Any = transformers.AutoConfig
    known = {key: value for key, value in config.items() if key != "model_type"}
    theirs = auto.for_model(config["model_type"], **known)
    kind = kind_of(model.stack)
    named = config.get("architectures") or [architecture_of(config["model_type"], kind)]
    with torch.device("meta"):
        return reader_of(str(named[0])).from_config(theirs)


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
