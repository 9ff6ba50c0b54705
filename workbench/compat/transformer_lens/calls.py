"""One classic forward as data, and how it runs on the core: embed, a range of blocks, unembed.

Notable: a range of blocks is the bounds of a loop, so what is not asked for is not computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.compat.transformer_lens.key_value_cache import (
    HookedTransformerKeyValueCache,
    kept_sites,
)
from workbench.compat.transformer_lens.taps import Nodes
from workbench.compat.transformer_lens.tokens import PaddingSide, Texts
from workbench.compat.transformer_lens.utils import lm_cross_entropy_loss
from workbench.core.axes import Resid
from workbench.core.cache import KeyValueCache
from workbench.core.data import Batch
from workbench.core.errors import OptionError, PromptError, ShapeError
from workbench.core.options import flag
from workbench.core.protocols import Model
from workbench.core.tap import Tap, chain


class Output(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Float[Tensor, "batch pos d_vocab"]
    loss: Float[Tensor, "..."]


Given: TypeAlias = str | Sequence[str] | Int[Tensor, "..."] | Float[Tensor, "batch pos d_model"]
Returned: TypeAlias = Tensor | Output | None
ReturnType: TypeAlias = Literal["logits", "loss", "both"] | None


@final
@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of a classic forward."""

    given: Given
    return_type: ReturnType = "logits"
    loss_per_token: bool = False
    prepend_bos: bool | None = None
    padding_side: PaddingSide | None = None
    start_at_layer: int | None = None
    tokens: Int[Tensor, "batch pos"] | None = None
    shortformer_pos_embed: Tensor | None = None
    attention_mask: Tensor | None = None
    stop_at_layer: int | None = None
    past_kv_cache: HookedTransformerKeyValueCache | None = None

    def __post_init__(self) -> None:
        """Refuses what is no option.

        Raises:
            OptionError: If one is outside what it may be.
        """
        if self.return_type not in ("logits", "loss", "both", None):
            allowed = "'logits', 'loss', 'both' or None"
            raise OptionError("return_type", allowed, self.return_type)
        flag("loss_per_token", self.loss_per_token)
        if self.shortformer_pos_embed is not None:
            allowed = "None: no shortformer is built here"
            raise OptionError("shortformer_pos_embed", allowed, "a tensor")
        if self.start_at_layer is not None and not _is_stream(self.given):
            allowed = "given with the residual stream, (batch pos d_model), as input"
            raise OptionError("start_at_layer", allowed, self.start_at_layer)
        if self.start_at_layer is None and _is_stream(self.given):
            allowed = "a text, texts or token ids; a stream needs start_at_layer"
            raise OptionError("input", allowed, self.given)

    def range(self, n_layers: int) -> tuple[int, int]:
        """The first block and the one after the last, as Python slices a list."""
        first, stop, _ = slice(self.start_at_layer, self.stop_at_layer).indices(n_layers)
        return first, max(first, stop)

    def ran(self, n_layers: int) -> str:
        """Which blocks it ran, for a message."""
        first, stop = self.range(n_layers)
        return f"it ran blocks {first} to {stop - 1}" if stop > first else "it ran no block"


@final
@dataclass(frozen=True, eq=False)
class Read:
    """What a call reads: its batch, its ids (None: a bare stream), and which of them are real."""

    batch: Batch
    ids: Int[Tensor, "batch pos"] | None
    real: Bool[Tensor, "batch pos"] | None
    stream: Resid | None
    cache: KeyValueCache | None


def read(call: Call, model: Model, texts: Texts | None) -> Read:
    """Tokens, masks and positions of a call.

    Raises:
        PromptError: If there is no tokenizer for a text, or ids cannot be run.
        ShapeError: If a mask or a cache does not fit.
    """
    past = call.past_kv_cache
    if _is_stream(call.given):
        stream = _checked_stream(call, model)
        ids, real = call.tokens, None
        shape = stream.shape[:2]
    else:
        stream = None
        ids, real = _ids(call, model, texts)
        shape = ids.shape
        _check(model, ids)
    if call.attention_mask is not None:
        real = _masked(call.attention_mask.to(model.device).bool(), past, (shape[0], shape[1]))
    start = torch.zeros(shape[0], dtype=torch.long, device=model.device)
    cache = None
    if past is not None:
        layers = range(*call.range(model.sizes.n_layers))
        start, cache = _joined(past, start), past.opened(model, layers, shape[1])
    tokens = torch.zeros(shape, dtype=torch.long, device=model.device) if ids is None else ids
    whole = real is None or bool(real.all())
    batch = Batch(tokens.to(model.device), None if whole else real, start, start + 0)
    batch = Batch(batch.tokens, batch.real, start, start + batch.lengths)
    _check_length(model, batch)
    return Read(batch, ids, real, stream, cache)


def run_call(call: Call, reading: Read, model: Model, tap: Tap) -> Returned:
    """What the call returns; with a stop, the residual stream there.

    Raises:
        OptionError: If a loss is wanted of a stream without `tokens`.
    """
    batch, cache, past = reading.batch, reading.cache, call.past_kv_cache
    first, stop = call.range(model.sizes.n_layers)
    resid = model.embed(batch, tap) if reading.stream is None else reading.stream
    if stop > first:
        seen = Nodes(() if past is None else kept_sites(model), gradients=False)
        looked = tap if past is None else chain(tap, seen)
        resid = model.layers(resid, batch, looked, first=first, last=stop, cache=cache)
        if past is not None:
            real = torch.ones_like(batch.tokens).bool() if reading.real is None else reading.real
            past.keep(seen.seen, real)
    if call.stop_at_layer is not None:
        return resid
    if call.return_type is None:
        none = torch.zeros(0, dtype=torch.long, device=resid.device)
        model.unembed(resid, tap, vocabulary=none)  # for whoever looks at the last norm
        return None
    logits = model.unembed(resid, tap)
    if call.return_type == "logits":
        return logits
    if reading.ids is None:
        raise OptionError("tokens", "given: a loss needs to know what comes next", None)
    loss = lm_cross_entropy_loss(logits, reading.ids, batch.real, call.loss_per_token)
    return loss if call.return_type == "loss" else Output(logits, loss)


def _is_stream(given: object) -> bool:
    return isinstance(given, Tensor) and given.is_floating_point()


def _ids(
    call: Call, model: Model, texts: Texts | None
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"] | None]:
    given: Any = call.given
    if isinstance(given, Tensor):
        ids = torch.atleast_2d(given).to(model.device)
        if ids.ndim != 2 or ids.dtype == torch.bool:
            raise ShapeError("input", "token ids (batch pos) or (pos)", str(tuple(given.shape)))
        return ids.long(), _guessed(call, ids, texts)
    if texts is None:
        raise PromptError(f"{model.name} has no tokenizer: pass token ids, or give it one.")
    mine = texts.given(call.prepend_bos, call.padding_side)
    padded = mine.padded(mine.rows(given), model.device)
    return padded.ids, padded.real


def _guessed(call: Call, ids: Tensor, texts: Texts | None) -> Bool[Tensor, "batch pos"] | None:
    """Which ids are real where nobody says: all, unless rows are padded on the left."""
    if texts is None or call.attention_mask is not None:
        return None
    mine = texts.given(call.prepend_bos, call.padding_side)
    return mine.mask(ids) if mine.padding_side == "left" and ids.shape[1] > 1 else None


def _checked_stream(call: Call, model: Model) -> Resid:
    """The stream that a call begins with.

    Raises:
        ShapeError: If it is none of this model's, or `tokens` are not what it is of.
    """
    stream, width = torch.as_tensor(call.given), model.sizes.d_model
    if stream.ndim != 3 or stream.shape[-1] != width:
        raise ShapeError("input", f"(batch pos {width})", str(tuple(stream.shape)))
    if call.tokens is not None and call.tokens.shape != stream.shape[:2]:
        raise ShapeError("tokens", str(tuple(stream.shape[:2])), str(tuple(call.tokens.shape)))
    return stream


def _masked(
    given: Bool[Tensor, "batch all_pos"],
    past: HookedTransformerKeyValueCache | None,
    shape: tuple[int, int],
) -> Bool[Tensor, "batch pos"]:
    """A mask of the new tokens, or of those in the cache too, of which it must say the same.

    Raises:
        ShapeError: If it is of neither.
        OptionError: If it says something else of those in the cache.
    """
    if past is not None and given.shape[1] > shape[1]:
        before = past.previous_attention_mask.to(given.device).bool()
        old, given = given[:, : -shape[1]], given[:, -shape[1] :]
        if old.shape == before.shape and not torch.equal(old, before):
            raise OptionError("attention_mask", "as in past_kv_cache for what was read", "another")
        if old.shape != before.shape:
            given = torch.cat([old, given], 1)
    if tuple(given.shape) != shape:
        raise ShapeError("attention_mask", f"{shape} (batch pos)", str(tuple(given.shape)))
    return given


def _joined(past: HookedTransformerKeyValueCache, start: Tensor) -> Tensor:
    before = past.previous_attention_mask
    if len(before) != len(start):
        raise ShapeError("past_kv_cache", f"{len(start)} rows", f"{len(before)}")
    return start + before.to(start.device).bool().sum(1)


def _check(model: Model, ids: Tensor) -> None:
    if not ids.numel():
        raise PromptError("The input is empty; it needs at least one token.")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= model.sizes.d_vocab:
        raise PromptError(
            f"The input has ids outside 0…{model.sizes.d_vocab - 1}: {low if low < 0 else high}."
        )


def _check_length(model: Model, batch: Batch) -> None:
    longest = int((batch.start + batch.lengths).max())
    if longest > model.sizes.n_ctx:
        raise PromptError(
            f"The input has {longest} tokens; {model.name} reads at most {model.sizes.n_ctx}."
        )
