"""What must add up inside a model, whatever its weights, in each family's own form.

Notable: the form is read off the sites a block has and their order, and never off its name. What is
written since the last stream is added to it; a block whose first norm comes after attention goes on
from what its norms leave.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from workbench.core.axes import DECODER
from workbench.core.interventions import Intervention
from workbench.core.operators import Zero
from workbench.core.run import run
from workbench.core.sites import Site, Sites
from workbench.core.trace import Trace
from workbench.models.layers.norm import Times
from workbench.models.layers.sandwich import SandwichBlock
from workbench.models.transformer import Transformer
from workbench.models.verification.parity import worst
from workbench.models.verification.report import Measured
from workbench.models.verification.subject import NotApplicableError, Subject

PRE = "hook_resid_pre"
STREAMS = ("hook_resid_mid", "hook_resid_mid_cross", "hook_resid_post")
WRITES = ("hook_attn_out", "hook_cross_attn_out", "hook_mlp_out")
AFTER = ("hook_normalized_resid_mid", "hook_normalized_resid_post")
FIRST_NORM = "ln1.hook_normalized"  # some blocks have none, and a norm of the neurons only
NORMS = (FIRST_NORM, "ln2.hook_normalized", "ln3.hook_normalized", *AFTER)


class Sum(NamedTuple):
    """A stream, and the sites whose activations add up to it."""

    total: Site
    parts: Sites


def sums_of(block: Sites) -> tuple[tuple[Sum, ...], Site | None]:
    """What adds up in a block, and the site of the stream it hands on."""
    shorts = [site.short for site in block]
    both = {FIRST_NORM, "hook_attn_out"} <= set(shorts)
    norms_last = both and shorts.index(FIRST_NORM) > shorts.index("hook_attn_out")
    found: list[Sum] = []
    parts: list[Site] = []
    for site in block:
        if site.short == PRE:
            parts = [site]
        elif site.short in WRITES:
            parts.append(site)
        elif site.short in STREAMS:
            found.append(Sum(site, tuple(parts)))
            parts = [site]
        elif site.short in AFTER or (norms_last and site.short in NORMS):
            parts = [site]
    return tuple(found), parts[-1] if parts else None


def blocks_of(sites: Sites) -> list[Sites]:
    """The sites of each block, in forward order."""
    blocks: dict[tuple[str, int], list[Site]] = {}
    for site in sites:
        if site.layer is not None:
            blocks.setdefault((site.stack, site.layer), []).append(site)
    return [tuple(block) for block in blocks.values()]


def residuals(subject: Subject) -> Measured:
    """Each stream of each block is the sum of the last one and what was written since.

    Raises:
        NotApplicableError: If its blocks have no streams.
    """
    sums = [one for block in blocks_of(subject.ours.sites) for one in sums_of(block)[0]]
    if not sums:
        message = "its blocks have no streams"
        raise NotApplicableError(message)
    found = worst(
        ((trace[one.total], _total(trace, one.parts)) for trace in subject.traces for one in sums),
        "stream",
    )
    spelt = dict.fromkeys(
        f"{one.total.short} = {' + '.join(part.short for part in one.parts)}" for one in sums
    )
    return found._replace(note="; ".join(spelt).replace("hook_", ""))


def _total(trace: Trace, parts: Sites) -> Tensor:
    first, *others = (trace[part] for part in parts)
    for other in others:
        first = first + other
    return first


def handed_on(subject: Subject) -> Measured:
    """Each block begins with the stream that the one before it ended with, bit for bit.

    Raises:
        NotApplicableError: If it has one block.
    """
    blocks = blocks_of(subject.ours.sites)
    ends = [sums_of(block)[1] for block in blocks]
    starts = [next((site for site in block if site.short == PRE), None) for block in blocks]
    joints = [
        (end, start)
        for end, start in zip(ends, starts[1:], strict=False)
        if end is not None and start is not None and end.stack == start.stack
    ]
    if not joints:
        message = "it has one block"
        raise NotApplicableError(message)
    pairs = ((trace[end], trace[start]) for trace in subject.traces for end, start in joints)
    return worst(pairs, "stream")._replace(allowed=0.0)


def heads(subject: Subject) -> Measured:
    """What the heads write sums to what attention writes, but for its bias.

    The bias is what is left when every head's result is zero.
    """
    results = subject.having("attn.hook_result", "cross_attn.hook_result")
    subject.having("hook_attn_out")
    return worst(_written(subject, results), "stream")


def _written(subject: Subject, results: Sites) -> Iterator[tuple[Tensor, Tensor]]:
    nothing = [Intervention([str(site) for site in results], Zero())]
    for trace, plain in zip(subject.traces, subject.plain, strict=True):
        silent = run(subject.ours, plain.batch, plan=nothing, record=tuple(plain))
        for site in results:
            written = trace[site].sum(2) * _times(subject.ours, site)
            yield written + _attention(silent, site), _attention(plain, site)


def _times(model: Transformer, result: Site) -> float:
    """By what a block multiplies what its heads write, before it is added."""
    block = None if result.stack == DECODER else model.stack.blocks[result.layer or 0]
    if isinstance(block, SandwichBlock) and isinstance(block.ln1_post, Times):
        return block.ln1_post.factor
    return 1.0


def _attention(trace: Trace, result: Site) -> Tensor:
    """What the attention of these heads writes, before the norm that some blocks have behind it."""
    brick, block = result.short.removesuffix(".hook_result"), f"{result.stack}.{{}}."
    normal, scale = (
        Site(f"{block}ln1_post.hook_{name}", result.layer) for name in ("normalized", "scale")
    )
    if normal in trace and scale in trace:  # an RMSNorm's is before its weight
        return trace[normal] * trace[scale]
    return trace[Site(f"{block}hook_{brick}_out", result.layer)]
