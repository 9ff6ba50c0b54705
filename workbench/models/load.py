"""From a name, a folder, a file or a Hugging Face model in memory to a frozen model.

Notable: weights are memory-mapped and stay where they are; new parameters are made on the meta
device, so building a model allocates nothing and draws no random number.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from workbench.core.errors import NonFiniteError, OptionError, UnknownNameError, WeightsError
from workbench.core.operands import FLOATS
from workbench.core.protocols import Vocabulary
from workbench.core.store import folder_or_file
from workbench.models.checkpoint import read_folder, release, resolve
from workbench.models.config import Config
from workbench.models.family import FAMILIES, Family
from workbench.models.kinds import model_of
from workbench.models.layers.linear import Tiled
from workbench.models.transformer import Origin, Stack, Transformer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from workbench.models.foreign import ForeignModel

Weights = TypeVar("Weights", bound=nn.Module)
Rearrange = bool | Literal["whole"]  # which matrices are copied into the order of the kernel


def load(  # noqa: PLR0913 - where a model comes from, and in which form
    source: "str | Path | PreTrainedModel",
    *,
    tokenizer: object | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    rearrange: Rearrange = True,
    revision: str | None = None,
    adapter: str | Path | None = None,
) -> Transformer | Any:
    """A frozen model from what `source` names.

    Families are native (`workbench models` lists them): the model is a `Transformer`. Of any other
    architecture it is a `ForeignModel`, run through transformer-lens, which can do less and takes
    longer (see docs/foreign.md).

    A known asset (`workbench pull` lists them; pulled when absent), a Hugging Face folder, a hub
    id, a `.gguf` file (converted once, into the cache), or a Hugging Face model in memory, whose
    weights are shared, not copied: it must stay as it is. `dtype` and `device` default to those of
    the weights; giving either copies what must change.

    With `rearrange`, float32 matrices of a file on the CPU that are wide (feed-forwards,
    unembedding) are copied into the order in which the processor reads them, which makes passes
    over few tokens faster. Those in the file are then read only by gradients and by whoever looks
    at them, so a model takes no more memory than its file, until then. With "whole", so are all
    large matrices, each in one piece: passes of every length are faster, generation most, and
    logits are rounded in other places than torch's (docs/runs.md measures both). Weights must stay
    as they are: a write by `.data` or numpy, which torch cannot see, would be read by gradients
    alone.

    `revision` is a branch, tag or commit of a hub id: a training checkpoint, say. `adapter` is the
    folder of a LoRA adapter that peft saved, whose changes are added to the weights; to switch
    between adapters see `workbench.models.adapters`.

    Raises:
        UnknownNameError: If there is no such asset, folder, file or family.
        MissingDependencyError: If it is of no family, and transformer-lens is not installed.
        WeightsError: If weights are missing, left over, misshapen, truncated or of mixed dtypes.
        NonFiniteError: If a weight is not finite.
        UnknownConfigKeyError: If the config has a key that would change the forward unheard.
        OptionError: If `dtype` or `device` is none that this machine can compute with.
    """
    if not isinstance(rearrange, bool) and rearrange != "whole":
        raise OptionError("rearrange", "True, False or 'whole'", rearrange)
    with torch.inference_mode(mode=False):  # what is made in it has no gradients
        model = _load(source, tokenizer, dtype, device, rearrange=rearrange, revision=revision)
        if adapter is None:
            return model
        if not isinstance(model, Transformer):
            wanted = f"left out: {model.name} is run by transformers; merge it with peft"
            raise OptionError("adapter", wanted, adapter)
        from workbench.models.adapters import read_adapter  # which builds on this file

        return read_adapter(adapter).on(model)


def _load(
    source: "str | Path | PreTrainedModel",
    tokenizer: object | None,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    *,
    rearrange: Rearrange,
    revision: str | None,
) -> "Transformer | ForeignModel":
    if not isinstance(source, str | Path):
        if revision is not None:
            raise OptionError("revision", "left out: the model is in memory", revision)
        return _from_memory(source, tokenizer, dtype, device)
    from workbench.models.tokenizer import find_tokenizer  # takes 0.1 s: only when loading

    folder = resolve(str(source), revision)
    checkpoint = read_folder(folder)
    if _is_foreign(checkpoint.config):
        return _through_bridge(source, tokenizer, dtype, device, revision)
    vocabulary = find_tokenizer(folder) if tokenizer is None else as_vocabulary(tokenizer)
    return assemble(
        checkpoint.config,
        checkpoint.weights,
        name=Path(source).resolve().name if folder_or_file(Path(source)) else str(source),
        tokenizer=vocabulary,
        dtype=dtype,
        device=device,
        rearrange=rearrange,
        folder=folder,
    )


def assemble(  # noqa: PLR0913 - what a model is made of
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    name: str,
    tokenizer: Vocabulary | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    rearrange: Rearrange = True,
    folder: Path | None = None,
) -> Transformer:
    """A frozen model from a Hugging Face config and weights by their Hugging Face names.

    Raises:
        UnknownNameError: If no family has the config's `model_type`.
        WeightsError: If weights do not fit the config, all in one message.
        OptionError: If the config names no family.
    """
    family = family_of(config)
    if dtype is not None and dtype not in FLOATS:
        raise OptionError("dtype", f"one of {', '.join(map(str, FLOATS))}", dtype)
    stack = empty_of(config)
    fill(stack, family.convert(weights, stack), mixed=dtype is not None)
    if dtype is not None or device is not None:
        stack = moved(stack, dtype, device)
    check_finite(stack)
    digest = fingerprint(config, stack)
    if rearrange:
        _rearrange(stack, weights, whole=rearrange == "whole")
    origin = Origin(MappingProxyType(dict(config)), folder)
    return model_of(stack, name=name, fingerprint=digest, tokenizer=tokenizer, origin=origin)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a config is of.

    Raises:
        UnknownNameError: If no family has the config's `model_type`.
        OptionError: If the config names no family.
    """
    family_name = config.get("model_type")
    if not isinstance(family_name, str):
        raise OptionError("model_type", f"one of {', '.join(FAMILIES)}", family_name)
    if family_name not in FAMILIES:
        hint = "Nor does transformers know models of that type."
        raise UnknownNameError("family", family_name, FAMILIES, hint)
    return FAMILIES[family_name]


def empty_of(config: Mapping[str, Any]) -> Stack:
    """The empty stack of a config; it alone tells which weights are one: a filled one has copies.

    Raises:
        UnknownNameError: If no family has the config's `model_type`.
        OptionError: If the config names no family.
    """
    family, file = family_of(config), str(config["model_type"]).replace("-", "_")
    return empty(family, Config(file, config))  # errors name the file


def empty(family: Family, config: Config) -> Stack:
    """A stack whose parameters take no memory yet."""
    with torch.device("meta"):
        return family.build(config)


def moved(stack: Weights, dtype: torch.dtype | None, device: str | torch.device | None) -> Weights:
    """The same in another dtype, or elsewhere.

    Raises:
        OptionError: If this machine has no such device.
    """
    place = None if device is None else str(device)
    if place is not None and place.startswith("meta"):
        raise OptionError("device", "one that computes", device)
    try:
        return stack.to(device=device, dtype=dtype)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch has no error of its own
        reason = str(error).strip().partition("\n")[0]
        raise OptionError("device", f"one that this machine has ({reason})", device) from None


def fill(stack: Stack, weights: Mapping[str, Tensor], *, mixed: bool = False) -> None:
    """Puts weights in place, as they are, without a copy.

    Raises:
        WeightsError: If any is missing, unexpected, misshapen or no floating point number, or if
            they are of several dtypes where that is not to be `mixed`.
    """
    expected = {name: tuple(p.shape) for name, p in stack.named_parameters(remove_duplicate=False)}
    problems = [f"missing: {name}" for name in expected if name not in weights]
    problems += [f"unexpected: {n.removeprefix('unknown:')}" for n in weights if n not in expected]
    problems += [
        f"misshapen: {name} is {tuple(weights[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    problems += _dtype_problems({n: w for n, w in weights.items() if n in expected}, mixed=mixed)
    if problems:
        shown = "\n  ".join(problems[:40])
        more = f"\n  … and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise WeightsError(f"{len(problems)} weights do not fit the config:\n  {shown}{more}")
    stack.load_state_dict(dict(weights), assign=True, strict=True)


def _dtype_problems(weights: Mapping[str, Tensor], *, mixed: bool) -> list[str]:
    strange = {n: w.dtype for n, w in weights.items() if w.dtype not in FLOATS}
    problems = [f"{name} is {dtype}: not computed with here" for name, dtype in strange.items()]
    kinds = sorted({str(weight.dtype) for weight in weights.values()})
    if not strange and not mixed and len(kinds) > 1:
        problems.append(f"of several dtypes ({', '.join(kinds)}): load with dtype=torch.float32")
    return problems


def _rearrange(stack: Stack, weights: Mapping[str, Tensor], *, whole: bool) -> None:
    """Copies matrices into tiles, and gives back the memory of those in the file."""
    release(weights)  # all of them have just been read
    for part in stack.modules():
        if isinstance(part, Tiled):
            part.rearrange(whole=whole)
            release(weights)


def check_finite(stack: nn.Module) -> None:
    """Refuses weights with NaN or infinity; reads every weight once.

    Raises:
        NonFiniteError: If one is not finite; names the first.
    """
    for name, weight in stack.named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight.sum())):
            bad = int((~torch.isfinite(weight)).sum())
            if bad:  # a sum of finite numbers may overflow
                raise NonFiniteError(name, bad, weight.numel())


def fingerprint(config: Mapping[str, Any], stack: nn.Module) -> str:
    """A short digest of the config and of every byte of every weight.

    Weights are told apart by a checksum, which is no proof against a forger.
    """
    state = hashlib.sha256(json.dumps(dict(config), sort_keys=True, default=str).encode())
    for name, weight in stack.named_parameters():
        plain = weight.detach().cpu().contiguous()
        checksum = zlib.crc32(plain.view(torch.uint8).numpy().data)
        state.update(f"{name}{tuple(weight.shape)}{weight.dtype}{checksum}".encode())
    return state.hexdigest()[:16]


def as_vocabulary(tokenizer: object) -> Vocabulary:
    """A vocabulary from one, or from a tokenizer of Hugging Face."""
    if isinstance(tokenizer, Vocabulary):
        return tokenizer
    from workbench.models.tokenizer import Tokenizer

    return Tokenizer.from_transformers(tokenizer)


def _from_memory(
    source: "PreTrainedModel",
    tokenizer: object | None,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
) -> "Transformer | ForeignModel":
    from transformers import PreTrainedModel

    if not isinstance(source, PreTrainedModel):
        raise OptionError("source", "a name, a path or a Hugging Face model", type(source).__name__)
    config = {**source.config.to_dict(), "architectures": [type(source).__name__]}
    if _is_foreign(config):
        return _through_bridge(source, tokenizer, dtype, device, None)
    return assemble(
        config,
        {name: _usable(tensor) for name, tensor in source.state_dict().items()},
        name=str(config.get("_name_or_path") or config["model_type"]),
        tokenizer=None if tokenizer is None else as_vocabulary(tokenizer),
        dtype=dtype,
        device=device,
        rearrange=False,  # they may be written to, by who they are shared with
    )


def _is_foreign(config: Mapping[str, Any]) -> bool:
    """Whether transformers has the architecture, and there is no family of it here."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type in FAMILIES:
        return False
    from transformers.models.auto import configuration_auto

    return model_type in vars(configuration_auto)["CONFIG_MAPPING_NAMES"]


def _through_bridge(
    source: "str | Path | PreTrainedModel",
    tokenizer: object | None,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    revision: str | None,
) -> "ForeignModel":
    from workbench.models import foreign  # which builds on this file, and imports seconds

    return foreign.load(source, tokenizer=tokenizer, dtype=dtype, device=device, revision=revision)


def _usable(tensor: Tensor) -> Tensor:
    """The same memory; a copy of what was made in inference mode, which has no gradients."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()
