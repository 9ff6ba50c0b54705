"""Encoder–decoder models: two stacks on one axis of layers, and one stream of two parts.

The columns of a stream are those of the source, then those of the target. The first layers are the
encoder's and change the source; the others are the decoder's and change the target, and read the
source, which by then is the memory. So a run that starts at a layer, a replay of a block and the
cells of a sweep need nothing of their own: what a layer needs is in the stream before it. After the
last block the source is done with, and only the target is left.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from workbench.core.axes import MEMORY, Logits, Memory, OfStack, Resid
from workbench.core.cache import Cache
from workbench.core.data import Batch
from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes, Vocabulary
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.layers.block import AnyBlock
from workbench.models.layers.context import (
    NO_WINDOWS,
    Bias,
    Columns,
    Pass,
    opened,
    outside_blocks,
    views,
)
from workbench.models.layers.cross_attention import Across
from workbench.models.layers.cross_block import AnyCrossBlock
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.entrance import Entrance
from workbench.models.layers.norm import Norm
from workbench.models.layers.score_bias import ScoreBias
from workbench.models.transformer import Origin, Stack, Transformer


@final
class TwoStacks(Stack):
    """The weights of an encoder and a decoder; `blocks` are the encoder's.

    `scale` multiplies what the unembedding reads.
    """

    def __init__(  # noqa: PLR0913 - the parts of a model
        self,
        *,
        sizes: Sizes,
        embed: Embedding,
        entrances: tuple[Entrance, Entrance],
        blocks: Sequence[AnyBlock],
        encoder_final: Norm,
        decoder: Sequence[AnyCrossBlock],
        ln_final: Norm,
        unembed: Unembedding,
        biases: tuple[ScoreBias, ScoreBias] | None = None,
        tied: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__(
            sizes=sizes,
            embed=embed,
            blocks=blocks,
            ln_final=ln_final,
            unembed=unembed,
            rotary=None,
            tied=tied,
        )
        self.source, self.target = entrances
        self.encoder_final, self.scale = encoder_final, scale
        self.decoder = nn.ModuleList(decoder)
        self.source_bias, self.target_bias = biases or (None, None)
        self.at_memory = outside_blocks(MEMORY)
        read = (site for block in blocks for site in block.sites)
        said = (site for block in decoder for site in block.sites)
        self.sites: Sites = (
            *self.source.sites,
            *self.target.sites,
            *read,
            *encoder_final.sites,
            self.at_memory,
            *said,
            *ln_final.sites,
            *unembed.sites,
        )


@final
class EncoderDecoder(Transformer):
    """A frozen model of two stacks; its batches have a `source`, and their tokens are a target."""

    def __init__(
        self,
        stack: TwoStacks,
        *,
        name: str,
        fingerprint: str,
        tokenizer: Vocabulary | None,
        origin: Origin | None = None,
    ) -> None:
        super().__init__(
            stack, name=name, fingerprint=fingerprint, tokenizer=tokenizer, origin=origin
        )
        self._two = stack
        blocks = (block for block in stack.decoder if isinstance(block, AnyCrossBlock))
        self._decoder = tuple(blocks)

    @override
    def embed(self, batch: Batch, tap: Tap) -> Resid:
        """The stream before block 0: of the source and, after it, of the target.

        Raises:
            OptionError: If the batch has no source.
        """
        source, tokens = self._source(batch), self._two.embed.tokens
        if batch.encoded:
            return self._two.target.begin(tokens, batch, tap)
        read = self._two.source.begin(tokens, source, tap)
        return torch.cat([read, self._two.target.begin(tokens, batch, tap)], 1)

    @override
    def layers(
        self,
        resid: Resid,
        batch: Batch,
        tap: Tap,
        *,
        first: int = 0,
        last: int | None = None,
        cache: Cache | None = None,
    ) -> OfStack:
        """The stream after blocks `first` to `last`; after all of them, of the target alone.

        Raises:
            OptionError: If the batch has no source, or an encoded one and there is no cache.
        """
        n_blocks, n_encoder = self.sizes.n_layers, self.sizes.n_encoder_layers
        source, end = self._source(batch), n_blocks if last is None else last
        if first >= min(end, n_blocks):
            return resid
        memory, target = resid[:, : batch.ahead], resid[:, batch.ahead :]
        if first < n_encoder and not batch.encoded:
            memory = self._encode(memory, source, tap, first, min(end, n_encoder))
        if end > n_encoder:
            read = None if batch.encoded else memory
            blocks = range(max(first - n_encoder, 0), end - n_encoder)
            target = self._decode(target, read, batch, tap, blocks, cache)
        return target if end == n_blocks or batch.encoded else torch.cat([memory, target], 1)

    @override
    def unembed(self, resid: Resid, tap: Tap, *, vocabulary: Tensor | None = None) -> Logits:
        """Logits of a target's stream after the last block; of the given columns only."""
        x = self._two.ln_final.normalise(resid, tap)
        x = x if self._two.scale is None else x * self._two.scale
        return self._two.unembed.unembed(x, tap, vocabulary)

    @override
    def __repr__(self) -> str:
        sizes = self.sizes
        layers = f"{sizes.n_encoder_layers} + {sizes.n_layers - sizes.n_encoder_layers} layers"
        return (
            f"EncoderDecoder({self.name!r}, {layers} x {sizes.n_heads} heads, "
            f"d_model {sizes.d_model}, {str(self.dtype).removeprefix('torch.')}, {self.device})"
        )

    def _source(self, batch: Batch) -> Batch:
        if batch.source is None:
            made = "one with a source, as batch_of(model, prompt, target=…) makes it"
            raise OptionError("batch", made, "a batch of one stack")
        return batch.source

    def _encode(self, resid: Resid, source: Batch, tap: Tap, first: int, end: int) -> Resid:
        """The source after some blocks of the encoder; after its last one, the memory."""
        columns = opened(source, None)
        bias = self._by_place(self._two.source_bias, columns)
        (visible, causal, blind, bias), _ = views(columns, NO_WINDOWS, causal=False, bias=bias)
        now = Pass(None, visible, causal, None, blind, bias=bias)
        for block in self._blocks[first:end]:
            resid = block.step(resid, tap, now)
        if end < self.sizes.n_encoder_layers:
            return resid
        return tap(self._two.at_memory, self._two.encoder_final.normalise(resid, tap))

    def _decode(
        self,
        resid: Resid,
        memory: Memory | None,
        batch: Batch,
        tap: Tap,
        blocks: range,
        cache: Cache | None,
    ) -> Resid:
        """The target after some blocks of the decoder.

        Raises:
            OptionError: If there is neither a memory nor a cache.
        """
        if memory is None and cache is None:
            raise OptionError("cache", "given with an encoded batch: it has what was read", None)
        columns = opened(batch, cache)
        bias = self._by_place(self._two.target_bias, columns)
        (visible, causal, blind, bias), _ = views(columns, NO_WINDOWS, causal=True, bias=bias)
        now = Pass(None, visible, causal, cache, blind, bias=bias)
        real = self._source(batch).real
        queries = batch.tokens.shape[1]
        seen = None if real is None else real[:, None, None, :].expand(-1, -1, queries, -1)
        across = Across(memory, Pass(None, seen, causal=False, cache=cache))
        for block in self._decoder[blocks.start : blocks.stop]:
            resid = block.step(resid, tap, now, across)
        return resid

    def _by_place(self, bias: ScoreBias | None, columns: Columns) -> Bias | None:
        return None if bias is None else bias.of(columns.queries, columns.keys, self.dtype)
