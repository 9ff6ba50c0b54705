"""Reading a Hugging Face config strictly: a key nobody understands is an error, not a guess."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.errors import OptionError, UnknownConfigKeyError, UnknownNameError

Activation = Callable[[Tensor], Tensor]

# Keys that say nothing about the forward of a decoder; any value may stand there.
IGNORED = frozenset(
    "model_type architectures transformers_version torch_dtype dtype _name_or_path name_or_path "
    "use_cache bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id "
    "decoder_start_token_id initializer_range id2label label2id problem_type finetuning_task "
    "task_specific_params output_attentions output_hidden_states return_dict auto_map "
    "transformers.js_config gradient_checkpointing _attn_implementation attn_implementation "
    "is_llama_config is_decoder tokenizer_class prefix".split()
)
# Keys that would change the forward if they were not at this value.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "chunk_size_feed_forward": 0,
        "is_encoder_decoder": False,
        "rope_interleaved": False,
        "add_cross_attention": False,
        "tie_encoder_decoder": False,
        "cross_attention_hidden_size": None,
        "pruned_heads": {},
        "quantization_config": None,
        "torchscript": False,
        "use_bfloat16": False,
    }
)


MOST = 2**25  # of anything: positions, tokens, a width; tables of rotation are really made
MOST_LAYERS = 1000  # building as many empty blocks takes two seconds


@final
@dataclass(frozen=True, eq=False)
class Config:
    """A model's config, each key of which must be read, ignored or at its default.

    `finish` is called by a family when it has read all it knows.
    """

    family: str
    values: Mapping[str, Any]

    def count(self, *names: str, default: int | None = None, most: int = MOST) -> int:
        """A whole number above 0, under the first of `names` that is there.

        Raises:
            OptionError: If it is missing, something else, or beyond any model's.
        """
        value = self._first(names, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise OptionError(f"{self.family}: config key {names[0]!r}", "a number above 0", value)
        if value > most:
            allowed = f"at most {most}"
            raise OptionError(f"{self.family}: config key {names[0]!r}", allowed, value)
        return value

    def layers(self, name: str) -> int:
        """How many blocks; checked before any is built.

        Raises:
            OptionError: If it is missing, something else, or beyond any model's.
        """
        return self.count(name, most=MOST_LAYERS)

    def number(self, name: str, default: float) -> float:
        """A finite number.

        Raises:
            OptionError: If it is something else.
        """
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise OptionError(f"{self.family}: config key {name!r}", "a number", value)
        if not abs(value) <= sys.float_info.max:  # NaN too
            raise OptionError(f"{self.family}: config key {name!r}", "a finite number", value)
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false.

        Raises:
            OptionError: If it is something else.
        """
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise OptionError(f"{self.family}: config key {name!r}", "true or false", value)
        return value

    def activation(self, name: str, default: str) -> Activation:
        """The activation function a config names.

        Raises:
            UnknownNameError: If there is none of that name.
        """
        return activation_named(str(self.values.get(name, default)))

    def finish(self, read: frozenset[str], defaults: Mapping[str, Any] = DEFAULTS) -> None:
        """Refuses what is left over.

        Raises:
            UnknownConfigKeyError: If a key was neither read nor ignored nor at its default.
        """
        for key, value in self.values.items():
            if key in read or key in IGNORED:
                continue
            if key in defaults and value == defaults[key]:
                continue
            if key in DEFAULTS and value == DEFAULTS[key]:
                continue
            raise UnknownConfigKeyError(self.family, key, value)

    def _first(self, names: tuple[str, ...], default: int | None) -> Any:
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        return default


def activation_named(name: str) -> Activation:
    """The activation function of that name.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation function", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def gelu_tanh(value: Tensor) -> Tensor:
    """The tanh approximation of GELU, as GPT-2 has it."""
    return F.gelu(value, approximate="tanh")


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "silu": F.silu,
        "swish": F.silu,
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_new": gelu_tanh,
        "gelu_pytorch_tanh": gelu_tanh,
        "gelu_fast": gelu_tanh,
        "tanh": torch.tanh,
    }
)
