# ruff: noqa: FBT001, FBT002 - the classic signatures
"""What the analysis objects ask of a model: the classic attributes, by their classic names.

Notable: the weights are read through these few views, so an analysis can be tested on plain
tensors, and the objects here never import the facade that satisfies them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.protocols import Model


@runtime_checkable
class ConfigView(Protocol):
    """The sizes and choices of a model, under the classic configuration's names."""

    @property
    def n_layers(self) -> int:
        """How many blocks."""
        ...

    @property
    def n_heads(self) -> int:
        """Query heads of each block."""
        ...

    @property
    def n_key_value_heads(self) -> int | None:
        """Key-value heads of each block; None: as many as query heads."""
        ...

    @property
    def n_ctx(self) -> int:
        """The longest text."""
        ...

    @property
    def d_mlp(self) -> int | None:
        """Neurons of each block."""
        ...

    @property
    def attn_only(self) -> bool:
        """Whether the blocks have no neurons."""
        ...

    @property
    def normalization_type(self) -> str | None:
        """LN, RMS, LNPre or RMSPre (folded: no weights), or None."""
        ...

    @property
    def use_normalization_before_and_after(self) -> bool:
        """Whether norms follow attention and neurons, too."""
        ...

    @property
    def final_rms(self) -> bool:
        """Whether the final norm is an RMSNorm, whatever the others are."""
        ...

    @property
    def attention_dir(self) -> str:
        """Whether a token sees those after it: "causal" or "bidirectional"."""
        ...

    @property
    def positional_embedding_type(self) -> str:
        """How positions enter."""
        ...


@runtime_checkable
class AttentionView(Protocol):
    """The weights of one block's attention."""

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:  # noqa: N802 - the classic name
        """What each head writes of its z."""
        ...


@runtime_checkable
class FeedForwardView(Protocol):
    """The weights of one block's neurons."""

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:  # noqa: N802 - the classic name
        """What each neuron writes."""
        ...


@runtime_checkable
class BlockView(Protocol):
    """One block."""

    @property
    def attn(self) -> AttentionView:
        """Its heads."""
        ...

    @property
    def mlp(self) -> FeedForwardView:
        """Its neurons."""
        ...


@runtime_checkable
class NormView(Protocol):
    """A norm, which may be called."""

    def __call__(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The normalised values: own statistics and, where they are not folded, w and b."""
        ...


@runtime_checkable
class CachedModel(Protocol):
    """What an `ActivationCache` asks of the model it was recorded from."""

    @property
    def cfg(self) -> ConfigView:
        """Its configuration."""
        ...

    @property
    def blocks(self) -> Sequence[BlockView]:
        """Its blocks, in order."""
        ...

    @property
    def ln_final(self) -> NormView:
        """Its final norm."""
        ...

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:  # noqa: N802 - the classic name
        """The unembedding; a token's direction is its column."""
        ...

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """All biases written into the stream before a layer."""
        ...

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token."""
        ...


@runtime_checkable
class Cache(Protocol):
    """Activations by full name: an ActivationCache, or a dict."""

    def __getitem__(self, key: str, /) -> Tensor:
        """The activation of that name."""
        ...

    def __contains__(self, key: object, /) -> bool:
        """Whether it was recorded."""
        ...


@runtime_checkable
class PointView(Protocol):
    """A site of a model, with the hooks that stand there."""

    @property
    def fwd_hooks(self) -> Sequence[Any]:
        """The functions on the activation, in order."""
        ...


@runtime_checkable
class PatchedModel(Protocol):
    """What patching asks: the engine's model under the facade, and the facade's own runs."""

    @property
    def cfg(self) -> ConfigView:
        """Its configuration."""
        ...

    @property
    def blocks(self) -> Sequence[BlockView]:
        """Its blocks, in order."""
        ...

    @property
    def engine(self) -> Model:
        """The model that runs."""
        ...

    @property
    def hook_dict(self) -> Mapping[str, PointView]:
        """Its sites by name."""
        ...

    def input_to_embed(self, input: Any) -> tuple[Any, Any, Any, Tensor | None]:  # noqa: A002
        """The stream before block 0, the ids, and last the mask, where some ids are pads."""
        ...

    def run_with_hooks(self, input: Any, *, fwd_hooks: Any = ()) -> Any:  # noqa: A002
        """The logits of a run with hooks, after those that stand already."""
        ...


@runtime_checkable
class PatternCache(Protocol):
    """A cache that is asked for patterns by name and layer."""

    def __getitem__(self, key: tuple[str, int], /) -> Tensor:
        """The activation of that name and layer."""
        ...


@runtime_checkable
class ReadableModel(Protocol):
    """What head detection asks: ids of a text, and one recorded run."""

    @property
    def cfg(self) -> ConfigView:
        """Its configuration."""
        ...

    def to_tokens(self, input: str | list[str]) -> Int[Tensor, "batch pos"]:  # noqa: A002
        """The ids of a text."""
        ...

    def run_with_cache(self, input: Any, *, remove_batch_dim: bool = False) -> tuple[Any, Any]:  # noqa: A002
        """The logits and the cache of a run."""
        ...


@runtime_checkable
class SvdModel(Protocol):
    """What the singular vectors are computed from."""

    @property
    def cfg(self) -> ConfigView:
        """Its configuration."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """The weights by their classic names."""
        ...
