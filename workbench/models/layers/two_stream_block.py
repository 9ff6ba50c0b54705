"""A post-norm block of two streams: content, and targets that read it with the same weights.

Notable: the query stream runs through the very bricks of the content's, whose taps are told the
query's sites instead. It has no keys and values of its own: nobody sees a target.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from workbench.core.axes import BLOCKS, QUERY, QueryStream, Resid
from workbench.core.sites import Site, Sites
from workbench.core.tap import Tap
from workbench.models.layers.context import in_stack
from workbench.models.layers.inputs import Inputs, PerHead, Split
from workbench.models.layers.mlp import MLP
from workbench.models.layers.norm import LayerNorm, NoNorm
from workbench.models.layers.relative import Heads, OfKeys, RelativeAttention
from workbench.models.layers.sight import Surroundings


@final
class AsQuery(Tap):
    """A tap that is told the query stream's sites by bricks which know the content's."""

    def __init__(self, tap: Tap, names: Mapping[Site, Site]) -> None:
        self._tap, self._names = tap, names

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        return self._tap(self._names[site], value)

    @override
    def wants(self, site: Site) -> bool:
        return self._tap.wants(self._names[site])


@final
class TwoStreamBlock(nn.Module):
    """m = ln1(x + attn(x)); ln2(m + mlp(m)); of the content and, where there is one, the query."""

    def __init__(
        self, layer: int, *, attn: RelativeAttention, ln1: LayerNorm, mlp: MLP, ln2: LayerNorm
    ) -> None:
        super().__init__()
        at = in_stack(BLOCKS, layer)
        self.layer, self.attn, self.ln1, self.mlp, self.ln2 = layer, attn, ln1, mlp, ln2
        self.as_it_is, self.inputs = NoNorm(), Inputs(attn.n_heads, attn.n_heads, at)
        self.at_pre, self.at_attn_out = at("hook_resid_pre"), at("hook_attn_out")
        self.at_mid, self.at_mlp_in = at("hook_resid_mid"), at("hook_mlp_in")
        self.at_mlp_out, self.at_post = at("hook_mlp_out"), at("hook_resid_post")
        self.at_normalized = at("hook_normalized_resid_post")
        neurons = (self.at_mid, *ln1.sites, self.at_mlp_in, *mlp.sites, self.at_mlp_out)
        after = (self.at_attn_out, *neurons, self.at_post, *ln2.sites, self.at_normalized)
        self.sites: Sites = (self.at_pre, *self.inputs.sites, *attn.sites, *after)
        own = (self.at_pre, self.inputs.at_q, attn.at_q, *attn.inside, *after)
        self.names = {site: in_stack(QUERY, layer)(site.short) for site in own}
        self.query_sites: Sites = tuple(self.names.values())

    def step(
        self, content: Resid, query: QueryStream | None, tap: Tap, now: Surroundings
    ) -> tuple[Resid, QueryStream | None]:
        """Both streams after this block."""
        content = tap(self.at_pre, content)
        read = self.inputs.read(content, self.as_it_is, tap)
        of_q, of_k, of_v = read if isinstance(read, Split) else (read, read, read)
        attn = self.attn
        q = tap(attn.at_q, attn.project(attn.q, of_q))
        k = self._with_memory(tap(attn.at_k, attn.project(attn.k, of_k)), attn.k, now)
        v = self._with_memory(tap(attn.at_v, attn.project(attn.v, of_v)), attn.v, now)
        after = self._rest(content, attn.read(q, k, v, now.table, now.content, tap), tap)
        if query is None or now.query is None:
            return after, None
        tap = AsQuery(tap, self.names)
        query = tap(self.at_pre, query)
        q = tap(attn.at_q, attn.project(attn.q, self._input(query, tap)))
        return after, self._rest(query, attn.read(q, k, v, now.table, now.query, tap), tap)

    def _with_memory(self, own: Heads, linear: nn.Linear, now: Surroundings) -> OfKeys:
        """Keys or values, after those of the memory, which no tap sees: it is given."""
        if not now.memory:
            return own
        memory = now.memory[self.layer].to(own)
        return torch.cat([self.attn.project(linear, memory), own], 1)

    def _input(self, query: Resid, tap: Tap) -> Resid | PerHead:
        """The query stream as each head reads it, where somebody asks."""
        if not tap.wants(self.inputs.at_q):
            return query
        return tap(self.inputs.at_q, query[:, :, None].expand(-1, -1, self.attn.n_heads, -1))

    def _rest(self, resid: Resid, written: Resid, tap: Tap) -> Resid:
        """A stream after what its heads have written."""
        resid = tap(self.at_mid, resid + tap(self.at_attn_out, written))
        middle = self.ln1.normalise(resid, tap)
        written = self.mlp.feed(tap(self.at_mlp_in, middle), tap)
        resid = tap(self.at_post, middle + tap(self.at_mlp_out, written))
        return tap(self.at_normalized, self.ln2.normalise(resid, tap))
