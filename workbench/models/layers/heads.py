"""Heads of encoders: a masked language model's, classifiers, and none at all.

Notable: every head works position by position. What others compute of the first token only (a
pooler, a classifier of the whole text) is here said at every position, and read at the first; so
it needs not know where a row begins, and has axes like all else.
"""

from typing import final

from torch import Tensor, nn
from typing_extensions import override

from workbench.core.axes import Logits, Resid
from workbench.core.sites import Sites
from workbench.core.tap import Tap
from workbench.models.config import Activation
from workbench.models.layers.context import outside_blocks
from workbench.models.layers.embed import Unembedding
from workbench.models.layers.head import AnyHead
from workbench.models.layers.norm import NoNorm, Norm


@final
class Pooler(nn.Module):
    """norm(act(x W + b)): of the first token, what stands for the whole text."""

    def __init__(
        self,
        d_model: int,
        d_pooled: int,
        act: Activation,
        *,
        bias: bool = True,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.dense, self.act = nn.Linear(d_model, d_pooled, bias=bias), act
        self.ln = norm or NoNorm()
        self.at_out = outside_blocks("pooler.hook_pooler_out")
        self.sites: Sites = (*self.ln.sites, self.at_out)

    def pool(self, x: Resid, tap: Tap) -> Resid:
        """The pooled stream, at every position."""
        return tap(self.at_out, self.ln.normalise(self.act(self.dense(x)), tap))


@final
class MaskedHead(AnyHead):
    """A masked language model's: a dense layer and a norm, then the vocabulary.

    With a `pooler`, beside it: does the second sentence follow the first? That is computed only
    where somebody looks, at the site `nsp_head.hook_nsp_out`, whose first position counts.
    """

    def __init__(  # noqa: PLR0913 - the sizes of the brick
        self,
        d_model: int,
        d_embed: int,
        d_vocab: int,
        act: Activation,
        norm: Norm,
        *,
        dense_bias: bool = True,
        bias: bool = True,
        pooler: Pooler | None = None,
    ) -> None:
        super().__init__()
        self.dense, self.act, self.ln = nn.Linear(d_model, d_embed, bias=dense_bias), act, norm
        self.words = Unembedding(d_embed, d_vocab, bias=bias)
        self.pooler = pooler
        self.next = None if pooler is None else nn.Linear(pooler.dense.out_features, 2)
        self.at_pre = outside_blocks("mlm_head.hook_pre")
        self.at_post = outside_blocks("mlm_head.hook_post")
        self.at_next = outside_blocks("nsp_head.hook_nsp_out")
        beside = () if pooler is None else (*pooler.sites, self.at_next)
        self.sites = (*beside, self.at_pre, self.at_post, *norm.sites, *self.words.sites)

    @override
    def unembed(self, x: Resid, tap: Tap, vocabulary: Tensor | None) -> Logits:
        self._look_beside(x, tap)
        pre = tap(self.at_pre, self.dense(x))
        read = self.ln.normalise(tap(self.at_post, self.act(pre)), tap)
        return self.words.unembed(read, tap, vocabulary)

    def _look_beside(self, x: Resid, tap: Tap) -> None:
        if self.pooler is None or self.next is None:
            return
        if tap.wants(self.pooler.at_out) or tap.wants(self.at_next):
            tap(self.at_next, self.next(self.pooler.pool(x, tap)))


@final
class Classifier(AnyHead):
    """A logit for each label, at every position; through a pooler where there is one."""

    def __init__(self, d_model: int, n_labels: int, pooler: Pooler | None = None) -> None:
        super().__init__()
        self.pooler = pooler
        width = d_model if pooler is None else pooler.dense.out_features
        self.labels = nn.Linear(width, n_labels)
        self.at_labels = outside_blocks("classifier.hook_out")
        self.sites = (*(() if pooler is None else pooler.sites), self.at_labels)

    @override
    def unembed(self, x: Resid, tap: Tap, vocabulary: Tensor | None) -> Logits:
        pooled = x if self.pooler is None else self.pooler.pool(x, tap)
        said = tap(self.at_labels, self.labels(pooled))
        return said if vocabulary is None else said[..., vocabulary]


@final
class Headless(AnyHead):
    """No head: what is said is the stream, of d_model columns; a pooler is computed on demand."""

    def __init__(self, pooler: Pooler | None = None) -> None:
        super().__init__()
        self.pooler = pooler
        self.sites = () if pooler is None else pooler.sites

    @override
    def unembed(self, x: Resid, tap: Tap, vocabulary: Tensor | None) -> Logits:
        if self.pooler is not None and tap.wants(self.pooler.at_out):
            self.pooler.pool(x, tap)
        return x if vocabulary is None else x[..., vocabulary]
