"""Models from a config alone, their weights drawn: toys to train, and forms to test on.

Notable: a generator of its own draws every weight, in the order in which the stack has them, so the
global random state is neither read nor moved, and a seed means the same on every thread.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from workbench.core.errors import OptionError, UnknownNameError
from workbench.core.operands import FLOATS
from workbench.core.options import count
from workbench.core.protocols import Vocabulary
from workbench.core.tap import UNTAPPED
from workbench.models.config import Config
from workbench.models.encoder_decoder import TwoStacks
from workbench.models.kinds import model_of
from workbench.models.layers.norm import Norm
from workbench.models.load import as_vocabulary, empty, family_of, fill, fingerprint
from workbench.models.transformer import Origin, Stack, Transformer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

EMBEDDING = ("embed", "source", "target")  # tokens, and positions of one stack or of two
WRITING = ("o.weight", "down.weight")  # what these bricks' matrices make is added to the stream


class Drawn(NamedTuple):
    """A matrix to be drawn: its shape, (d_out, d_in), and what it is for."""

    shape: torch.Size
    writes: bool  # into the residual stream
    embeds: bool  # tokens or positions: it is looked up, not multiplied with
    n_layers: int


Init = Callable[[Drawn, torch.Generator], Tensor]


def gpt2(matrix: Drawn, draws: torch.Generator) -> Tensor:
    """N(0, 0.02²); by 1 / √(2 layers) less where it writes into the stream, as GPT-2 has it."""
    scale = 0.02 / math.sqrt(2 * matrix.n_layers) if matrix.writes else 0.02
    return torch.randn(matrix.shape, generator=draws) * scale


def normal(matrix: Drawn, draws: torch.Generator) -> Tensor:
    """N(0, 0.02²), every one."""
    return torch.randn(matrix.shape, generator=draws) * 0.02


def xavier(matrix: Drawn, draws: torch.Generator) -> Tensor:
    """Uniform with variance 2 / (d_in + d_out); embeddings N(0, 0.02²)."""
    if matrix.embeds:
        return normal(matrix, draws)
    bound = math.sqrt(6 / (matrix.shape[-1] + matrix.shape[-2]))
    return (torch.rand(matrix.shape, generator=draws) * 2 - 1) * bound


def kaiming(matrix: Drawn, draws: torch.Generator) -> Tensor:
    """N(0, 2 / d_in); embeddings N(0, 0.02²)."""
    if matrix.embeds:
        return normal(matrix, draws)
    return torch.randn(matrix.shape, generator=draws) * math.sqrt(2 / matrix.shape[-1])


def orthogonal(matrix: Drawn, draws: torch.Generator) -> Tensor:
    """Orthonormal rows or columns, whichever are fewer; embeddings N(0, 0.02²)."""
    if matrix.embeds:
        return normal(matrix, draws)
    tall = torch.randn(matrix.shape, generator=draws)
    wide = tall.shape[-2] < tall.shape[-1]
    basis, upper = torch.linalg.qr(tall.mT if wide else tall)
    basis = basis * upper.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]  # uniform over all
    return (basis.mT if wide else basis).contiguous()


INITS: Mapping[str, Init] = MappingProxyType(
    {
        "gpt2": gpt2,
        "normal": normal,
        "xavier": xavier,
        "kaiming": kaiming,
        "orthogonal": orthogonal,
    }
)


def new(
    config: "Mapping[str, Any] | PretrainedConfig",
    *,
    seed: int = 0,
    init: str | Init = "gpt2",
    dtype: torch.dtype = torch.float32,
    tokenizer: object | None = None,
    name: str | None = None,
) -> Transformer:
    """A frozen model of a Hugging Face config, with weights drawn from `seed`.

    Norms begin as they change nothing but the size, biases at 0, and every matrix as `init` draws
    it: by name "gpt2", "normal", "xavier", "kaiming" or "orthogonal", or a function of a `Drawn`
    and a generator. They are drawn in float32 on the CPU, whatever `dtype`.

    Raises:
        UnknownNameError: If no family has the config's `model_type`, or `init` is not known.
        UnknownConfigKeyError: If the config has a key that would change the forward unheard.
        OptionError: If a size in the config, `seed` or `dtype` is outside what it may be, or a
            function's matrix is not of the shape it was asked for.
    """
    table = _table(config)
    family = family_of(table)
    draw = INITS.get(init) if isinstance(init, str) else init
    if draw is None:
        raise UnknownNameError("initialisation", str(init), INITS)
    if dtype not in FLOATS:
        raise OptionError("dtype", f"one of {', '.join(map(str, FLOATS))}", dtype)
    draws = torch.Generator().manual_seed(count("seed", seed, least=0))
    with torch.inference_mode(mode=False), torch.no_grad():
        stack = empty(family, Config(str(table["model_type"]), table))
        weights = {name: one.to(dtype) for name, one in _weights(stack, draw, draws)}
        if stack.tied or isinstance(stack, TwoStacks):  # which transformers begins tied, all
            weights[_unembedding(weights)] = weights["embed.tokens"]
        fill(stack, weights)
    vocabulary: Vocabulary | None = None if tokenizer is None else as_vocabulary(tokenizer)
    return model_of(
        stack,
        name=name or f"new {table['model_type']}",
        fingerprint=fingerprint(table, stack),
        tokenizer=vocabulary,
        origin=Origin(MappingProxyType(table), None),
    )


def _table(config: object) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    from transformers import PretrainedConfig

    if not isinstance(config, PretrainedConfig):
        raise OptionError("config", "a Hugging Face config, or one as a table", config)
    return config.to_dict()


def _weights(stack: Stack, draw: Init, draws: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    norms = {path: module for path, module in stack.named_modules() if isinstance(module, Norm)}
    drawn: dict[int, Tensor] = {}  # what has two names is drawn once
    for name, weight in stack.named_parameters(remove_duplicate=False):
        path, _, kind = name.rpartition(".")
        if id(weight) in drawn:
            pass
        elif path in norms and kind == "weight":
            drawn[id(weight)] = torch.full(weight.shape, _neutral(norms[path], weight))
        elif weight.ndim < 2:
            drawn[id(weight)] = torch.zeros(weight.shape)
        else:
            embeds = path in EMBEDDING or path.startswith("embed.")
            asked = Drawn(weight.shape, name.endswith(WRITING), embeds, stack.sizes.n_layers)
            drawn[id(weight)] = _checked(draw(asked, draws), name, asked)
        yield name, drawn[id(weight)]


def _unembedding(weights: Mapping[str, Tensor]) -> str:
    """The matrix that may be the embedding's own: a plain one, or that of a masked head."""
    return next(name for name in ("unembed.weight", "unembed.words.weight") if name in weights)


def _neutral(norm: Norm, weight: Tensor) -> float:
    """The weight that scales by 1: 0 for norms that add 1 to it, which are no zero map at 0."""
    own = copy.deepcopy(norm).to_empty(device="cpu")
    for one in own.parameters():
        one.zero_()
    probe = torch.linspace(-1, 2, weight.shape[-1])[None, None]
    return 0.0 if bool(own.normalise(probe, UNTAPPED).any()) else 1.0


def _checked(drawn: object, name: str, asked: Drawn) -> Tensor:
    if not isinstance(drawn, Tensor) or drawn.shape != asked.shape:
        raise OptionError(f"init, at {name}", f"a tensor of shape {tuple(asked.shape)}", drawn)
    return drawn
