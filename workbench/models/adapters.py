"""Low-rank adapters (LoRA), as peft saves them: put on a model as a view of it.

    read_adapter(folder)   -> an Adapter, which is data and knows no model
    adapter.on(model)      -> the model with it, which shares every weight the adapter leaves alone

Notable: a running model is never changed. With and without an adapter, or with several, are models
side by side; switching is a choice of which to call. An adapter's matrices go the way of the
checkpoint's own weights, by the family's table of names, so there is no table of adapters.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import FormatError, NonFiniteError, OptionError, WeightsError
from workbench.core.options import number
from workbench.core.provenance import digest
from workbench.models.checkpoint import read_pickled
from workbench.models.kinds import model_of
from workbench.models.load import empty_of, family_of
from workbench.models.safetensors_file import MappedTensors
from workbench.models.tables import read_table
from workbench.models.transformer import Origin, Transformer
from workbench.models.views.stacks import frozen, shared

CONFIG, FILE, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
# What changes the arithmetic if it is not at these values.
PLAIN: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "use_dora": (False, None),
        "modules_to_save": (None, []),
        "lora_bias": (False, None),
        "use_bdlora": (False, None),
        "alora_invocation_tokens": (None,),
        "trainable_token_indices": (None,),
        "target_parameters": (None, []),
        "layer_replication": (None,),
    }
)


class Pair(NamedTuple):
    """The two factors of one matrix's change, and what multiplies their product."""

    a: Float[Tensor, "rank d_in"]
    b: Float[Tensor, "d_out rank"]
    scale: float


@final
@dataclass(frozen=True, eq=False)
class Adapter:
    """A low-rank change of some matrices, by their Hugging Face names without `.weight`."""

    name: str
    pairs: Mapping[str, Pair]
    transposed: bool  # the weights it was made for are (d_in, d_out), as GPT-2's are

    def on(self, model: Transformer, *, strength: float = 1.0) -> Transformer:
        """The model with W + strength · scale · B A for each matrix W of the adapter.

        Shares all other weights; takes memory for the changed ones only. The sum is made in
        float32 and rounded once to the weights' dtype.

        Raises:
            OptionError: If the model has no Hugging Face config (a view has none).
            WeightsError: If the adapter's matrices are not the model's.
        """
        strength = number("strength", strength)
        if model.origin is None:
            raise OptionError("model", "one with a Hugging Face config; views have none", model)
        with torch.inference_mode(mode=False), torch.no_grad():
            changes = self._changes(model, model.origin.config)
            stack = shared(model.stack)
            weights = dict(stack.named_parameters(remove_duplicate=False))
            made = {
                name: frozen((weights[name].float() + strength * change).to(weights[name].dtype))
                for name, change in changes.items()
            }
            stack.load_state_dict(made, assign=True, strict=False)
        which = digest(
            [self.name, strength, *(pair.b.double().sum() for pair in self.pairs.values())]
        )
        return model_of(
            stack,
            name=f"{model.name} + {self.name}",
            fingerprint=f"{model.fingerprint}+{which}",
            tokenizer=model.tokenizer,
            origin=Origin(model.origin.config, None),
        )

    def _changes(self, model: Transformer, config: Mapping[str, Any]) -> Mapping[str, Tensor]:
        products = {f"{name}.weight": self._product(pair) for name, pair in self.pairs.items()}
        changes = family_of(config).convert(
            {name: product.to(model.device) for name, product in products.items()},
            empty_of(config),
        )
        weights = dict(model.stack.named_parameters(remove_duplicate=False))
        problems = [
            f"{name.removeprefix('unknown:')}: the model has no such weight"
            for name in changes
            if name not in weights
        ]
        problems += [
            f"{name} is {tuple(change.shape)}, expected {tuple(weights[name].shape)}"
            for name, change in changes.items()
            if name in weights and change.shape != weights[name].shape
        ]
        if model.stack.tied and changes.keys() & {"embed.tokens", "unembed.weight"}:
            problems.append("the embedding, which is tied to the unembedding, would be another")
        if problems:
            shown = "; ".join(problems[:8])
            raise WeightsError(
                f"The adapter {self.name!r} is not one for {model.name!r}: {len(problems)} of its "
                f"matrices do not fit: {shown}."
            )
        return changes

    def _product(self, pair: Pair) -> Tensor:
        product = pair.scale * (pair.b.float() @ pair.a.float())
        return product.T if self.transposed else product


def read_adapter(folder: str | Path) -> Adapter:
    """The adapter in a folder of peft's: `adapter_config.json` and its weights.

    Raises:
        FormatError: If there is no such folder, or it holds another kind of adapter.
        WeightsError: If the weights are damaged, or not those that the config speaks of.
        NonFiniteError: If one is not finite.
    """
    folder = Path(folder).expanduser()
    config = read_table(folder / CONFIG)
    for key, plain in PLAIN.items():
        if config.get(key, plain[0]) not in plain:
            raise FormatError(
                f"{folder}: the adapter has {key} = {config[key]!r}, which is not known here; "
                f"expected {plain[0]!r}. Merge it with peft, and load the merged model."
            )
    there = (folder / FILE).exists()
    weights = MappedTensors(folder / FILE) if there else _pickled(folder / PICKLED)
    pairs = dict(_pairs(folder, dict(weights), config))
    transposed = config.get("fan_in_fan_out", False)
    if not isinstance(transposed, bool):
        raise FormatError(f"{folder}: fan_in_fan_out must be true or false, got {transposed!r}.")
    return Adapter(folder.resolve().name, MappingProxyType(pairs), transposed)


def _pickled(file: Path) -> Mapping[str, Tensor]:
    if not file.exists():
        raise WeightsError(f"{file.parent}: expected {FILE} or {PICKLED}; there is neither.")
    return read_pickled(file)


def _pairs(
    folder: Path, weights: dict[str, Tensor], config: Mapping[str, Any]
) -> Iterator[tuple[str, Pair]]:
    plain = {name.replace(".default.weight", ".weight"): w for name, w in weights.items()}
    firsts = [name for name in plain if name.endswith(".lora_A.weight")]
    paths = [name.removesuffix(".lora_A.weight") for name in firsts]
    expected = {f"{path}.lora_{side}.weight" for path in paths for side in "AB"}
    if plain.keys() != expected or not paths:
        odd = sorted(plain.keys() ^ expected)[:8]
        what = ", ".join(odd) or "nothing at all"
        raise WeightsError(
            f"{folder}: expected two matrices, lora_A and lora_B, for each weight; "
            f"{what} is not so."
        )
    for path in paths:
        a, b = plain[f"{path}.lora_A.weight"], plain[f"{path}.lora_B.weight"]
        name = path.removeprefix(PREFIX)
        yield name, Pair(a, b, _scale(folder, name, (a, b), config))


def _scale(
    folder: Path, name: str, factors: tuple[Tensor, Tensor], config: Mapping[str, Any]
) -> float:
    a, b = factors
    rank = _setting(folder, name, config, "r", "rank_pattern")
    alpha = _setting(folder, name, config, "lora_alpha", "alpha_pattern")
    if a.ndim != 2 or b.ndim != 2 or not len(a) == b.shape[1] == rank:
        raise WeightsError(
            f"{folder}: {name} has factors {tuple(a.shape)} and {tuple(b.shape)}; expected "
            f"({rank:g}, d_in) and (d_out, {rank:g}), as the config says."
        )
    for factor in factors:
        bad = int((~torch.isfinite(factor)).sum())
        if bad:
            raise NonFiniteError(f"{folder}: {name}", bad, factor.numel())
    return alpha / rank**0.5 if config.get("use_rslora") is True else alpha / rank


def _setting(folder: Path, name: str, config: Mapping[str, Any], key: str, patterns: str) -> float:
    """A number of the config, or the one that a pattern gives for this weight.

    Raises:
        FormatError: If it is no number above 0.
    """
    own: object = config.get(patterns) or {}
    table = cast("dict[str, object]", own) if isinstance(own, dict) else {}
    ending = next((end for end in table if f".{name}".endswith(f".{end}")), None)
    value: object = config.get(key) if ending is None else table[ending]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise FormatError(f"{folder}: {key} must be a number above 0, got {value!r}.")
    return float(value)
