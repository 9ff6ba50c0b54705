"""XLNet's models: a content stream that reads both ways, and a query stream that predicts.

Notable: one set of weights, two models. The first has the content stream alone, as an encoder;
`predicting` is the other, whose batches have targets: its stream has the columns of the content,
then those of the targets, and after the last block only these. So each model passes all its sites
in every run, and a sweep, a gradient or a start at a layer need nothing of their own.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from workbench.core.axes import QUERY_EMBED, OfStack, QueryStream, Resid, Segment
from workbench.core.cache import Cache
from workbench.core.data import Batch
from workbench.core.errors import OptionError
from workbench.core.protocols import Sizes, Streams, Vocabulary
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.core.trace import Trace
from workbench.models.layers.context import outside_blocks
from workbench.models.layers.embed import AnyEmbedding
from workbench.models.layers.head import AnyHead
from workbench.models.layers.norm import NoNorm
from workbench.models.layers.sight import Rules, Surroundings, surroundings
from workbench.models.layers.two_stream_block import TwoStreamBlock
from workbench.models.transformer import Origin, Stack, Transformer


@final
class TwoStreamStack(Stack):
    """The weights; `nothing` is what every target begins as."""

    def __init__(
        self,
        *,
        sizes: Sizes,
        embed: AnyEmbedding,
        blocks: Sequence[TwoStreamBlock],
        unembed: AnyHead,
        rules: Rules,
        tied: bool,
    ) -> None:
        super().__init__(
            sizes=sizes,
            embed=embed,
            blocks=(),
            ln_final=NoNorm(),
            unembed=unembed,
            rotary=None,
            causal=False,
            tied=tied,
        )
        self.rules = rules
        self.nothing = nn.Parameter(torch.empty(1, sizes.d_model))
        self.at_query = outside_blocks(QUERY_EMBED)
        self.blocks = nn.ModuleList(blocks)
        inner = (site for block in blocks for site in block.sites)
        both = (site for block in blocks for site in (*block.sites, *block.query_sites))
        self.sites: Sites = (*embed.sites, *inner, *unembed.sites)
        self.both: Sites = (*embed.sites, self.at_query, *both, *unembed.sites)

    def through(
        self, content: Resid, query: QueryStream | None, tap: Tap, now: Surroundings, blocks: range
    ) -> tuple[Resid, QueryStream | None]:
        """Both streams after some blocks."""
        for block in islice(self.blocks, blocks.start, blocks.stop):
            assert isinstance(block, TwoStreamBlock)  # a ModuleList has no type of its own
            content, query = block.step(content, query, tap, now)
        return content, query


@final
class TwoStream(Transformer):
    """A frozen model of the content stream alone."""

    def __init__(
        self,
        stack: TwoStreamStack,
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

    @property
    def rules(self) -> Rules:
        """How distances are embedded, and how much is remembered."""
        return self._two.rules

    @property
    def predicting(self) -> "Predicting":
        """The same weights with the query stream: what is said of tokens that it does not see.

        Raises:
            OptionError: If the head is a classifier's.
        """
        if self.sizes.output.columns == "labels":
            raise OptionError("model", "a language model, or one without a head", self.name)
        return Predicting(
            self._two,
            name=f"{self.name}, predicting",
            fingerprint=f"{self.fingerprint}+query",
            tokenizer=self.tokenizer,
            origin=self.origin,
        )

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
    ) -> Resid:
        """The stream after some blocks; a cache is left as it is: nothing before can be kept."""
        blocks = _range(first, last, self.sizes)
        if not blocks:
            return resid
        now = surroundings(batch, None, self._two.rules, self.dtype)
        return self._two.through(resid, None, tap, now, blocks)[0]


@final
class Predicting(Transformer):
    """A frozen model of both streams; its batches have targets, and logits are of these."""

    def __init__(
        self,
        stack: TwoStreamStack,
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
        streams = replace(stack.sizes.streams or Streams(), query=True)
        self._sizes = replace(stack.sizes, streams=streams)

    @property
    def rules(self) -> Rules:
        """How distances are embedded, and how much is remembered."""
        return self._two.rules

    @property
    @override
    def sites(self) -> Sites:
        return self._two.both

    @property
    @override
    def sizes(self) -> Sizes:
        return self._sizes

    @override
    def embed(self, batch: Batch, tap: Tap) -> Resid:
        """The streams before block 0: of the content and, after it, of the targets.

        Raises:
            OptionError: If the batch has no targets.
        """
        content = self._two.embed.embed(_content(batch), tap)
        nothing = self._two.nothing.expand(*batch.tokens.shape, -1)
        return torch.cat([content, tap(self._two.at_query, nothing)], 1)

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
        """The streams after some blocks; after all of them, of the targets alone.

        Raises:
            OptionError: If the batch has no targets.
        """
        source, blocks = _content(batch), _range(first, last, self.sizes)
        if not blocks:
            return resid
        now = surroundings(source, batch.targets, self._two.rules, self.dtype)
        content, query = resid[:, : batch.ahead], resid[:, batch.ahead :]
        content, after = self._two.through(content, query, tap, now, blocks)
        assert after is not None  # there was one before
        return after if blocks.stop == self.sizes.n_layers else torch.cat([content, after], 1)


def memory_of(trace: Trace) -> Segment:
    """What a run leaves to the next segment: the streams before each block, after older ones.

    The run must have recorded `blocks.*.hook_resid_pre`, as its plan left them; how much is kept
    is the config's `mem_len` and `reuse_len`. To be given to the next batch as `memory`.

    Raises:
        OptionError: If the model has no memory, or rows differ in length: a pad would be one.
        NotRecordedError: If the streams were not recorded.
    """
    model, batch = trace.model, trace.batch.source or trace.batch
    if not isinstance(model, TwoStream | Predicting):
        raise OptionError("trace", "of a model with a memory", model.name)
    if batch.real is not None:
        raise OptionError("trace", "of rows of one length", batch.lengths.tolist())
    rules = model.rules
    kept: list[Tensor] = []
    for layer in range(model.sizes.n_layers):
        own = trace[f"blocks.{layer}.hook_resid_pre"][:, : rules.reuse]
        whole = torch.cat([batch.memory[layer], own], 1) if batch.memory else own
        kept.append(whole if rules.length is None else whole[:, -rules.length :])
    return tuple(kept)


def _content(batch: Batch) -> Batch:
    if batch.source is None or batch.targets is None:
        raise OptionError("batch", "one with targets, as `target_batch` makes it", "a plain batch")
    return batch.source


def _range(first: int, last: int | None, sizes: Sizes) -> range:
    return range(first, sizes.n_layers if last is None else min(last, sizes.n_layers))
