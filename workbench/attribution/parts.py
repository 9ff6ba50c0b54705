"""What path patching goes from and to: sites, heads of them, the stream at the end, positions.

Notable: senders and receivers are named as sites are, one head as in "blocks.9.attn.hook_q H6".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from workbench.core.axes import GROUPED, HEAD_INPUTS
from workbench.core.data import Batch
from workbench.core.errors import EmptySelectionError, OptionError
from workbench.core.options import indices
from workbench.core.protocols import Model
from workbench.core.result import Axis
from workbench.core.sites import Site, Sites, select

LOGITS = "logits"
SENDERS = frozenset(
    {
        "hook_embed",
        "hook_pos_embed",
        "hook_resid_pre",
        "attn.hook_z",
        "hook_attn_out",
        "hook_mlp_out",
    }
)
RECEIVERS = frozenset({"hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in"})


@final
@dataclass(frozen=True)
class Part:
    """A site, or one head of it."""

    site: Site
    head: int | None = None
    label: str = ""

    @override
    def __str__(self) -> str:
        return self.label or (str(self.site) if self.head is None else f"{self.site} H{self.head}")


Group = tuple[Part, ...]  # what is patched together
Place = tuple[int, ...] | None  # positions; None: all of them


def senders(sites: Sites, model: Model, heads: tuple[int, ...] | None) -> list[Part]:
    """The parts of the sites, of heads only those named.

    Raises:
        OptionError: If a site is no sender, or there is no such head.
    """
    for site in sites:
        if site.short not in SENDERS:
            raise OptionError("sites", f"senders: {', '.join(sorted(SENDERS))}", str(site))
    parts = [part for site in sites for part in _parts(site, model)]
    if heads is None:
        return parts
    chosen = indices("heads", heads)
    if min(chosen) < 0 or max(chosen) >= model.sizes.n_heads:
        raise OptionError("heads", f"0…{model.sizes.n_heads - 1}", heads)
    return [part for part in parts if part.head is None or part.head in chosen]


def receivers(names: Sequence[str], model: Model) -> list[Part]:
    """The parts that names, globs and labels choose, in forward order.

    Raises:
        EmptySelectionError: If there are none.
    """
    if not names:
        raise EmptySelectionError('receivers is empty; name at least one, or "logits".')
    chosen = {part for name in names if name != LOGITS for part in _named(name, model)}
    known = (part for site in model.sites for part in _parts(site, model))
    end = (Part(end_of(model.sizes.n_layers - 1, model), label=LOGITS),)
    return [*(part for part in known if part in chosen), *(end if LOGITS in names else ())]


def end_of(layer: int, model: Model) -> Site:
    """The stream that the next block takes: after a post-norm, where there is one."""
    return next(site for site in reversed(model.sites) if site.layer == layer)


def _named(name: str, model: Model) -> list[Part]:
    """The receivers of one name or glob, of which a label as in "blocks.*.hook_q_input H2" is one.

    Raises:
        OptionError: If one is no receiver, or no site has such a head.
    """
    pattern, _, head = name.partition(" H")
    sites = select(pattern, model.sites)
    for site in sites:
        if site.short not in RECEIVERS:
            allowed = f"{', '.join(sorted(RECEIVERS))} or '{LOGITS}'"
            raise OptionError("receivers", allowed, str(site))
    parts = [part for site in sites for part in _parts(site, model)]
    found = [part for part in parts if head in ("", str(part.head))]
    if not found:
        raise OptionError("receivers", f"one of {', '.join(map(str, parts))}", name)
    return found


def _parts(site: Site, model: Model) -> Iterator[Part]:
    if "head" not in site.axes:
        yield Part(site)
        return
    sizes = model.sizes
    for head in range(sizes.n_key_value_heads if site.short in GROUPED else sizes.n_heads):
        yield Part(site, head)


def grouped(parts: Sequence[Part], *, apart: bool) -> list[Group]:
    """Each part by itself, or all together."""
    return [(part,) for part in parts] if apart else [tuple(parts)]


def places(positions: Place, base: Batch, *, apart: bool) -> list[Place]:
    """Where senders act: at each position by itself, or at all those named together.

    Raises:
        OptionError: If no prompt has such a position, or one is named twice.
    """
    if positions is None and not apart:
        return [None]
    longest = int(base.lengths.max())
    chosen = tuple(range(longest)) if positions is None else indices("positions", positions)
    if min(chosen) < -longest or max(chosen) >= longest or len(set(chosen)) < len(chosen):
        raise OptionError("positions", f"within {-longest}…{longest - 1}, each once", positions)
    return [(pos,) for pos in chosen] if apart else [chosen]


def before(place: Place, column: int, base: Batch) -> bool:
    """Whether a place lies before a column in every prompt."""
    longest = int(base.lengths.max())
    return place is not None and all((p if p >= 0 else longest + p) < column for p in place)


def positions_axis(found: Sequence[Place], base: Batch, model: Model) -> Axis:
    """Positions by the tokens that stand there, where there is one prompt; else by number."""
    numbers = [pos for place in found for pos in place or ()]
    if model.tokenizer is None or len(base.tokens) > 1:
        return Axis("pos", tuple(map(str, numbers)))
    row = base.tokens[0].tolist()
    return Axis("pos", tuple(model.tokenizer.token_text(row[pos]) for pos in numbers))


def axis(name: str, groups: Sequence[Group]) -> Axis:
    """Groups by their parts."""
    return Axis(name, tuple(" + ".join(map(str, group)) for group in groups))


def read_at(receiver: Site) -> Site:
    """Where the stream that a receiver reads is recorded, before it is split by head."""
    if receiver.short in HEAD_INPUTS:
        return Site("blocks.{}.hook_resid_pre", receiver.layer)
    return receiver
