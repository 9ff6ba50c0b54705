"""What queries, keys and values read, head by head where somebody asks for it.

Notable: a block has one norm and, while somebody looks at these sites, several readers of it. The
norm's own sites fire once, for the stream; what a tap changes there is added for every reader.
"""

from typing import NamedTuple, final

from jaxtyping import Float
from torch import Tensor

from workbench.core.axes import Resid
from workbench.core.sites import Sites
from workbench.core.tap import UNTAPPED, Tap
from workbench.models.layers.context import At
from workbench.models.layers.norm import Norm

PerHead = Float[Tensor, "batch pos head d_model"]


class Split(NamedTuple):
    """What queries, keys and values read, normalised; one for all heads, or one for each."""

    q: Resid | PerHead
    k: Resid | PerHead
    v: Resid | PerHead


@final
class Inputs:
    """The stream as each head's queries, keys and values read it, before the norm."""

    def __init__(self, n_heads: int, n_key_value_heads: int, at: At) -> None:
        self.n_heads, self.n_groups = n_heads, n_key_value_heads
        self.shared = n_heads == n_key_value_heads  # else no one tensor could feed all three
        self.at_all = at("hook_attn_in")
        self.at_q, self.at_k = at("hook_q_input"), at("hook_k_input")
        self.at_v = at("hook_v_input")
        whole = (self.at_all,) if self.shared else ()
        self.sites: Sites = (*whole, self.at_q, self.at_k, self.at_v)

    def read(self, resid: Resid, norm: Norm, tap: Tap) -> Resid | Split:
        """The normalised stream, split only where the tap wants to see the parts."""
        all_, q = self.shared and tap.wants(self.at_all), tap.wants(self.at_q)
        k, v = tap.wants(self.at_k), tap.wants(self.at_v)
        if not (all_ or q or k or v):
            return norm.normalise(resid, tap)
        whole = tap(self.at_all, _each(resid, self.n_heads)) if all_ else resid
        of_q = tap(self.at_q, _each(whole, self.n_heads)) if q else whole
        of_k = tap(self.at_k, _each(whole, self.n_groups)) if k else whole
        of_v = tap(self.at_v, _each(whole, self.n_groups)) if v else whole
        return _normalised(resid, whole, Split(of_q, of_k, of_v), norm, tap)


def _each(x: Resid | PerHead, heads: int) -> PerHead:
    return x if x.ndim == 4 else x[:, :, None].expand(-1, -1, heads, -1)


def _normalised(resid: Resid, whole: Resid | PerHead, parts: Split, norm: Norm, tap: Tap) -> Split:
    shared, shift = norm.normalise(resid, tap), None
    if any(tap.wants(site) for site in norm.sites):
        shift = shared - norm.normalise(resid, UNTAPPED)

    def normal(x: Resid | PerHead) -> Resid | PerHead:
        if x is resid:
            return shared
        n = norm.normalise(x, UNTAPPED)
        return n if shift is None else n + shift[:, :, None]

    of_whole = normal(whole)
    q, k, v = (of_whole if part is whole else normal(part) for part in parts)
    return Split(q, k, v)
