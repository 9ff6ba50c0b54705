"""The long tail: any decoder that transformer-lens bridges, as a model like every other.

    load(source)     a name, a folder or a model of transformers  ->  a ForeignModel
    architectures()  the classes of transformers that can be tried

Notable: the bridge keeps hooks on modules. Here each has one listener for good, which looks up the
tap of the context it is called in, so a run leaves nothing behind; and passes of one model take
turns, as both libraries keep scratch values on modules while they run. While loading, the bridge is
held to transformers, and every site to having an effect: what does not pass is not offered.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import Logits, Resid
from workbench.core.cache import Cache, KeyValueCache
from workbench.core.data import Batch
from workbench.core.errors import (
    MissingDependencyError,
    OptionError,
    WeightsError,
)
from workbench.core.modes import outside_inference
from workbench.core.operands import FLOATS
from workbench.core.protocols import Sizes, Vocabulary
from workbench.core.sites import Sites
from workbench.core.store import folder_or_file
from workbench.core.tap import UNTAPPED, Tap
from workbench.models.bridged_probe import Bridged, built, call, own_copy, quiet
from workbench.models.bridged_step import NOW, ReachedError, Step
from workbench.models.checkpoint import resolve
from workbench.models.load import as_vocabulary, check_finite, fingerprint, moved

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDING: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
)


@final
@dataclass(frozen=True)
class Found:
    """What was found out about a model while it was loaded."""

    causal: bool
    restarts: bool  # a block needs nothing but the stream before it
    off: float  # from transformers, in logits: the largest difference of the probe


@final
class ForeignModel:
    """A frozen model of transformers behind transformer-lens: meets the `Model` protocol.

    Costs more than a native one: no fused kernels, no cache, all columns of the vocabulary, and a
    pass of the embedding in each of the three steps.
    """

    def __init__(
        self, parts: Bridged, *, name: str, fingerprint: str, tokenizer: Vocabulary | None
    ) -> None:
        self._parts, self._name, self._fingerprint = parts, name, fingerprint
        self._tokenizer, self._sizes = tokenizer, _sizes(parts)
        self._turn = threading.RLock()
        self._found = Found(causal=True, restarts=True, off=0.0)
        self._found = _found_out(self, parts)

    @property
    def name(self) -> str:
        """What it was loaded as."""
        return self._name

    @property
    def fingerprint(self) -> str:
        """A short digest of configuration and weights."""
        return self._fingerprint

    @property
    def tokenizer(self) -> Vocabulary | None:
        """Its vocabulary, where it has one."""
        return self._tokenizer

    @property
    def sites(self) -> Sites:
        """Every site, in forward order."""
        return self._parts.sites

    @property
    def unreachable(self) -> Mapping[str, str]:
        """The hooks of the bridge that are no sites here, `{}` for the layer, and why."""
        return self._parts.unreachable

    @property
    def sizes(self) -> Sizes:
        """Its counts and widths."""
        return self._sizes

    @property
    def found(self) -> Found:
        """What was found out about it while it was loaded."""
        return self._found

    @property
    def causal(self) -> bool:
        """Whether a position never sees later ones; tried with a few tokens."""
        return self._found.causal

    @property
    def uncached(self) -> bool:
        """Whether it keeps no keys and values: it keeps none."""
        return True

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        return self._parts.theirs.dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self._parts.tokens.device

    def embed(self, batch: Batch, tap: Tap) -> Resid:
        """The residual stream before block 0.

        Raises:
            OptionError: If the batch has a mask by query and key, or token types.
        """
        return self._stream(Step(tap, 0, 0, self.sizes.n_layers, None, ends=True), batch)

    def layers(
        self,
        resid: Resid,
        batch: Batch,
        tap: Tap,
        *,
        first: int = 0,
        last: int | None = None,
        cache: Cache | None = None,
    ) -> Resid:
        """The stream after blocks `first` (inclusive) to `last` (exclusive; None: all of them).

        Raises:
            OptionError: If there is a cache to go on from or to fill; if it is to start at a block
                that reads more than the stream before it.
        """
        n_layers = self.sizes.n_layers
        end = n_layers if last is None else min(last, n_layers)
        if isinstance(cache, KeyValueCache) or (cache is not None and cache.length):
            raise OptionError("cache", f"left out: {self.name} keeps no keys and values", cache)
        if first >= end:
            return resid
        if first and not self._found.restarts:
            wanted = f"0: blocks of {self.name} read more than the stream before them"
            raise OptionError("first", wanted, first)
        return self._stream(Step(tap, first, end, n_layers, resid, ends=True), batch)

    def unembed(self, resid: Resid, tap: Tap, *, vocabulary: Tensor | None = None) -> Logits:
        """Logits of a stream after the last block; all columns are made, whichever are asked."""
        n_layers, rows = self.sizes.n_layers, resid.shape[:2]
        if not rows.numel():
            words = self.sizes.d_vocab if vocabulary is None else len(vocabulary)
            return resid.new_zeros(*rows, words)
        step = Step(tap, n_layers, n_layers, n_layers, resid, ends=False)
        tokens = torch.zeros(*rows, dtype=torch.long, device=resid.device)
        logits: Tensor = self._call(step, tokens).logits
        return logits if vocabulary is None else logits[..., vocabulary]

    @override
    def __repr__(self) -> str:
        sizes = self.sizes
        return (
            f"ForeignModel({self.name!r}, {type(self._parts.theirs).__name__} by transformer-lens, "
            f"{sizes.n_layers} layers, d_model {sizes.d_model}, "
            f"{str(self.dtype).removeprefix('torch.')}, {self.device})"
        )

    def _stream(self, step: Step, batch: Batch) -> Resid:
        if batch.seen is not None:
            wanted = (
                f"by token (batch pos): {self.name} is run by transformers, which takes no more"
            )
            raise OptionError("attention_mask", wanted, "one by query and key")
        if batch.types is not None:
            raise OptionError("token_types", f"left out: {self.name} is told none", batch.types)
        if bool(batch.start.any()):
            wanted = f"left out: {self.name} keeps no keys and values"
            raise OptionError("cache", wanted, "a pass that goes on from another")
        real = None if batch.real is None else batch.real.long()
        try:
            self._call(step, batch.tokens, batch.positions, real)
        except ReachedError as reached:
            return reached.resid
        message = f"{self.name} passed no block {step.last}; please report it."
        raise WeightsError(message)

    def _call(
        self,
        step: Step,
        tokens: Tensor,
        positions: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Any:
        parts = self._parts
        with self._turn, quiet():
            before = NOW.set(step)
            try:
                return call(parts.theirs, parts.takes, tokens, positions, real)
            finally:
                NOW.reset(before)


@outside_inference
def load(
    source: "str | Path | PreTrainedModel",
    *,
    tokenizer: object | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
) -> ForeignModel:
    """A model that transformers runs and transformer-lens bridges, from what `source` names.

    A known asset, a Hugging Face folder, a hub id, or a Hugging Face model in memory, whose weights
    are shared, not copied. Those of families that are native here load too, for comparison.

    Costs some ten forwards of a few tokens, in which the bridge is held to transformers.

    Raises:
        MissingDependencyError: If transformer-lens is not installed.
        UnknownNameError: If the bridge has no adapter for the architecture, or nothing is so named.
        OptionError: If it is no single stack of blocks, or `dtype` or `device` is none.
        WeightsError: If weights are missing, left over or misshapen, or the bridge says something
            else than transformers.
        NonFiniteError: If a weight is not finite.
    """
    _need_bridge()
    if dtype is not None and dtype not in FLOATS:
        raise OptionError("dtype", f"one of {', '.join(map(str, FLOATS))}", dtype)
    if isinstance(source, str | Path):
        theirs, tokenizer = _from_folder(source, tokenizer, dtype, revision)
        path = Path(source)
        name = path.resolve().name if folder_or_file(path) else str(source)
    else:
        theirs = own_copy(_in_memory(source, revision))
        name = str(theirs.config.to_dict().get("_name_or_path") or theirs.config.model_type)
    if dtype is not None or device is not None:
        theirs = moved(theirs, dtype, device)
    check_finite(theirs)
    config = {**theirs.config.to_dict(), "architectures": [type(theirs).__name__]}
    digest = fingerprint(config, theirs)
    vocabulary = None if tokenizer is None else as_vocabulary(tokenizer)
    return ForeignModel(built(theirs), name=name, fingerprint=digest, tokenizer=vocabulary)


def architectures() -> tuple[str, ...]:
    """The classes of transformers that the installed transformer-lens bridges, sorted.

    `load` refuses those that are no single stack of blocks over tokens.

    Raises:
        MissingDependencyError: If transformer-lens is not installed.
    """
    _need_bridge()
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    return tuple(sorted(SUPPORTED_ARCHITECTURES))


def _need_bridge() -> None:
    try:
        import transformer_lens  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MissingDependencyError(
            f"Models without a family of their own are run through transformer-lens, which is not "
            f"installed ({error.name}): pip install transformer-lens."
        ) from None


def _in_memory(source: object, revision: str | None) -> Any:
    from transformers import PreTrainedModel

    if not isinstance(source, PreTrainedModel):
        raise OptionError("source", "a name, a path or a Hugging Face model", type(source).__name__)
    if revision is not None:
        raise OptionError("revision", "left out: the model is in memory", revision)
    return source


def _from_folder(
    source: str | Path, tokenizer: object | None, dtype: torch.dtype | None, revision: str | None
) -> tuple[Any, object | None]:
    from transformers import AutoModelForCausalLM

    from workbench.models.tokenizer import find_tokenizer

    folder = resolve(str(source), revision)
    reader: Any = AutoModelForCausalLM
    try:
        theirs, told = reader.from_pretrained(
            folder, dtype=dtype or "auto", local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:  # transformers has no error of its own
        raise WeightsError(f"transformers cannot load {folder}: {error}") from None
    problems = {kind: sorted(map(str, told[kind])) for kind in told if told[kind]}
    if problems:
        listed = "; ".join(f"{kind}: {', '.join(found[:8])}" for kind, found in problems.items())
        raise WeightsError(f"{folder}: weights do not fit the config. {listed}.")
    return own_copy(theirs), find_tokenizer(folder) if tokenizer is None else tokenizer


def _sizes(parts: Bridged) -> Sizes:
    config = parts.config
    heads = max(int(config.n_heads or 1), 1)
    return Sizes(
        n_layers=parts.n_layers,
        d_model=int(config.d_model),
        n_heads=heads,
        n_key_value_heads=int(config.n_key_value_heads or heads),
        d_head=int(config.d_head),
        d_mlp=int(config.d_mlp or 4 * config.d_model),
        d_vocab=parts.logits.shape[-1],
        n_ctx=int(config.n_ctx),
    )


def _found_out(model: ForeignModel, parts: Bridged) -> Found:
    """Holds a model to transformers, in whole and block by block.

    Raises:
        WeightsError: If the bridge says something else.
    """
    batch = _batch(parts.tokens)
    size = float(parts.logits.abs().max().clamp(min=1))
    allowed = ROUNDING[parts.theirs.dtype] * size
    with torch.no_grad():
        embedded = model.embed(batch, UNTAPPED)
        stream = embedded
        for layer in range(model.sizes.n_layers):
            stream = model.layers(stream, batch, UNTAPPED, first=layer, last=layer + 1)
        restarts = _off(model.unembed(stream, UNTAPPED), parts.logits) <= allowed
        whole = model.unembed(model.layers(embedded, batch, UNTAPPED), UNTAPPED)
        off = _off(whole, parts.logits)
        if not off <= allowed:
            raise WeightsError(
                f"{model.name}: transformer-lens says something else than transformers: logits "
                f"differ by {off:.2g}, of {size:.2g}. It is not to be trusted for this model."
            )
        other = parts.tokens.clone()
        other[:, -1] = (other[:, -1] + 1) % int(parts.tokens.max() + 1)
        later = model.layers(model.embed(_batch(other), UNTAPPED), _batch(other), UNTAPPED)
        causal = _off(model.unembed(later, UNTAPPED)[:, :-1], whole[:, :-1]) <= allowed
    return Found(causal=causal, restarts=restarts, off=off)


def _batch(tokens: Tensor) -> Batch:
    zeros = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    return Batch(tokens, None, zeros, zeros + tokens.shape[1])


def _off(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
