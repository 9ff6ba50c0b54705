"""The hooked Transformer: a stack of blocks and a pure forward in three steps.

Notable: blocks are handed in by a family, so nothing here asks which model it is; and nothing is
ever written to a module after it is loaded: tap, cache and positions are arguments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from workbench.core.axes import Logits, Resid
from workbench.core.cache import Cache
from workbench.core.data import Batch
from workbench.core.protocols import Sizes, Vocabulary
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.attention import Attention
from workbench.models.layers.block import AnyBlock
from workbench.models.layers.context import At, Bias, Columns, Pass, opened, views
from workbench.models.layers.embed import AnyEmbedding
from workbench.models.layers.head import AnyHead
from workbench.models.layers.inputs import Inputs
from workbench.models.layers.linear import Tiled
from workbench.models.layers.mlp import FeedForward
from workbench.models.layers.norm import Norm
from workbench.models.layers.positions import Rotary
from workbench.models.layers.sandwich import SandwichBlock
from workbench.models.layers.score_bias import ScoreBias

if TYPE_CHECKING:
    from workbench.models.views.folded import Folded


@final
class Block(AnyBlock):
    """A pre-norm block: attention, then (where there is one) a feed-forward, each added."""

    def __init__(
        self, at: At, *, ln1: Norm, attn: Attention, ln2: Norm, mlp: FeedForward | None
    ) -> None:
        super().__init__()
        self.ln1, self.attn, self.ln2, self.mlp = ln1, attn, ln2, mlp
        self.inputs = Inputs(attn.n_heads, attn.n_groups, at)
        self.at_pre, self.at_attn_out = at("hook_resid_pre"), at("hook_attn_out")
        self.at_mid, self.at_mlp_in = at("hook_resid_mid"), at("hook_mlp_in")
        self.at_mlp_out, self.at_post = at("hook_mlp_out"), at("hook_resid_post")
        read = (*self.inputs.sites, *ln1.sites)
        before = (self.at_pre, *read, *attn.sites, self.at_attn_out)
        between = () if mlp is None else (self.at_mid, self.at_mlp_in, *ln2.sites, *mlp.sites)
        after = () if mlp is None else (self.at_mlp_out,)
        self.sites: Sites = (*before, *between, *after, self.at_post)

    @override
    def step(self, resid: Resid, tap: Tap, now: Pass) -> Resid:
        resid = tap(self.at_pre, resid)
        written = self.attn.attend(self.inputs.read(resid, self.ln1, tap), tap, now)
        resid = resid + tap(self.at_attn_out, written)
        if self.mlp is not None:
            resid = tap(self.at_mid, resid)
            read = tap(self.at_mlp_in, resid)
            written = self.mlp.feed(self.ln2.normalise(read, tap), tap)
            resid = resid + tap(self.at_mlp_out, written)
        return tap(self.at_post, resid)


@final
class ParallelBlock(AnyBlock):
    """A pre-norm block whose attention and feed-forward both read the stream before it."""

    def __init__(self, at: At, *, ln1: Norm, attn: Attention, ln2: Norm, mlp: FeedForward) -> None:
        super().__init__()
        self.ln1, self.attn, self.ln2, self.mlp = ln1, attn, ln2, mlp
        self.inputs = Inputs(attn.n_heads, attn.n_groups, at)
        self.at_pre, self.at_attn_out = at("hook_resid_pre"), at("hook_attn_out")
        self.at_mlp_in, self.at_mlp_out = at("hook_mlp_in"), at("hook_mlp_out")
        self.at_post = at("hook_resid_post")
        attention = (*self.inputs.sites, *ln1.sites, *attn.sites, self.at_attn_out)
        neurons = (self.at_mlp_in, *ln2.sites, *mlp.sites, self.at_mlp_out)
        self.sites: Sites = (self.at_pre, *attention, *neurons, self.at_post)

    @override
    def step(self, resid: Resid, tap: Tap, now: Pass) -> Resid:
        resid = tap(self.at_pre, resid)
        attended = self.attn.attend(self.inputs.read(resid, self.ln1, tap), tap, now)
        attended = tap(self.at_attn_out, attended)
        read = self.ln2.normalise(tap(self.at_mlp_in, resid), tap)
        written = tap(self.at_mlp_out, self.mlp.feed(read, tap))
        return tap(self.at_post, resid + attended + written)


# Whose parts the classic interface and folding know.
PreNormBlock = Block | ParallelBlock | SandwichBlock


class Stack(nn.Module):
    """The weights of a transformer and how they are arranged; knows no name and no tokenizer."""

    def __init__(  # noqa: PLR0913 - the parts of a model
        self,
        *,
        sizes: Sizes,
        embed: AnyEmbedding,
        blocks: Sequence[AnyBlock],
        ln_final: Norm,
        unembed: AnyHead,
        rotary: Rotary | None,
        local_rotary: Rotary | None = None,
        causal: bool = True,
        tied: bool = False,
        score_bias: ScoreBias | None = None,
    ) -> None:
        super().__init__()
        self.sizes, self.rotary, self.causal = sizes, rotary, causal
        self.local_rotary = local_rotary  # of the layers that turn by frequencies of their own
        self.tied = tied  # whether the unembedding is the embedding's own matrix
        self.embed, self.ln_final, self.unembed = embed, ln_final, unembed
        self.score_bias = score_bias  # the same in every layer
        self.blocks = nn.ModuleList(blocks)
        attentions = [part for part in self.modules() if isinstance(part, Attention)]
        self.windows = frozenset(a.window for a in attentions if a.window is not None)
        inner = (site for block in blocks for site in block.sites)
        self.sites: Sites = (*embed.sites, *inner, *ln_final.sites, *unembed.sites)


@final
@dataclass(frozen=True, eq=False)
class Origin:
    """What a model was built by."""

    config: Mapping[str, Any]  # as Hugging Face has it
    folder: Path | None  # it was read from; None for what was never on a disk


class Transformer:
    """A frozen language model: meets the `Model` protocol of the core."""

    def __init__(
        self,
        stack: Stack,
        *,
        name: str,
        fingerprint: str,
        tokenizer: Vocabulary | None,
        origin: Origin | None = None,
    ) -> None:
        self._stack = stack.requires_grad_(requires_grad=False).eval()
        for part in stack.modules():
            if isinstance(part, Tiled):
                part.forget()  # a view's may be those of its model
        self._name, self._fingerprint, self._tokenizer = name, fingerprint, tokenizer
        self._origin = origin
        self._blocks = tuple(block for block in stack.blocks if isinstance(block, AnyBlock))

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
    def origin(self) -> Origin | None:
        """The config it was built by, and where; None for views, and for what was built by hand."""
        return self._origin

    @property
    def stack(self) -> Stack:
        """The module that holds the weights; they are frozen, and are to stay as they are."""
        return self._stack

    @property
    def sites(self) -> Sites:
        """Every site, in forward order."""
        return self._stack.sites

    @property
    def sizes(self) -> Sizes:
        """Its counts and widths."""
        return self._stack.sizes

    @property
    def causal(self) -> bool:
        """Whether a position never sees later ones."""
        return self._stack.causal

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        return self._stack.embed.tokens.dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self._stack.embed.tokens.device

    def embed(self, batch: Batch, tap: Tap) -> Resid:
        """The residual stream before block 0."""
        return self._stack.embed.embed(batch, tap)

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
        """The stream after blocks `first` (inclusive) to `last` (exclusive; None: all of them)."""
        stack = self._stack
        columns = opened(batch, cache)
        whole, windows = views(
            columns, stack.windows, causal=stack.causal, bias=self._bias(columns)
        )
        angles, local = (
            None if turning is None else turning.of_pass(batch, cache, self.dtype)
            for turning in (stack.rotary, stack.local_rotary)
        )
        visible, causal, blind, bias = whole
        now = Pass(angles, visible, causal, cache, blind, windows, local, bias)
        for block in self._blocks[first:last]:
            resid = block.step(resid, tap, now)
        return resid

    def unembed(self, resid: Resid, tap: Tap, *, vocabulary: Tensor | None = None) -> Logits:
        """Logits of a stream after the last block; of the given vocabulary columns only."""
        return self._stack.unembed.unembed(
            self._stack.ln_final.normalise(resid, tap), tap, vocabulary
        )

    def folded(
        self,
        *,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> "Folded":
        """Another model with these weights folded, and how far it is from this one.

        It shares every tensor that need not change; this model stays as it is. What an
        architecture does not allow is left out, and `.parity` says so; the steps are described
        at `workbench.models.views.folded.fold`. Costs two small forwards.

        Raises:
            OptionError: If the view does not say what the model says.
        """
        from workbench.models.views.folded import Folding, fold  # which builds on this file

        steps = Folding(
            fold_ln,
            center_writing_weights,
            center_unembed,
            fold_value_biases,
            refactor_factored_attn_matrices,
        )
        return fold(self, steps)

    @override
    def __repr__(self) -> str:
        sizes = self.sizes
        return (
            f"Transformer({self.name!r}, {sizes.n_layers} layers x {sizes.n_heads} heads, "
            f"d_model {sizes.d_model}, {str(self.dtype).removeprefix('torch.')}, {self.device})"
        )

    def _bias(self, columns: Columns) -> Bias | None:
        of_scores = self._stack.score_bias
        if of_scores is None:
            return None
        return of_scores.of(columns.queries, columns.keys, self.dtype)
