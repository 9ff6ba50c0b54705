"""What a run will take, before it runs: activations kept, logits, and the most it works with.

Notable: it is arithmetic over the axes of the sites; nothing is computed. Weights are not counted:
they are there already. The estimate leans high, by less than half at sizes that matter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor
from typing_extensions import override

from workbench.core.axes import GROUPED, HEAD_INPUTS, SQUARES
from workbench.core.buckets import Part, buckets_of
from workbench.core.data import Batch, PaddingSide, Prompt
from workbench.core.errors import MemoryLimitError
from workbench.core.options import flag
from workbench.core.plan import Interventions, as_plan
from workbench.core.program import compile_plan
from workbench.core.protocols import Model
from workbench.core.request import Columns, Request, Start, as_batch, late_sites, request_of
from workbench.core.sites import Selector, Site, Sites

UNASKED = 2**26  # bytes below which a run is let through: asking the system takes longer
LARGE_STATE = 128  # coordinates of a recurrent state, in models of any size
OPEN_SQUARES = 3  # of scores, masked scores, pattern and masked pattern, at once


@final
@dataclass(frozen=True)
class Estimate:
    """Bytes of one run beside the model's weights.

    `activations` and `logits` stay with the trace; `working` is the most that the run holds
    beside them and drops. `available` is what the device has free; None if it does not say.
    """

    activations: int
    logits: int
    working: int
    available: int | None
    advice: tuple[str, ...]  # what would take less, the largest first

    @property
    def total(self) -> int:
        """The peak."""
        return self.activations + self.logits + self.working

    @property
    def fits(self) -> bool:
        """Whether the peak is below what is available, as far as that is known."""
        return self.available is None or self.total <= self.available

    @override
    def __str__(self) -> str:
        parts = (("activations", self.activations), ("logits", self.logits))
        told = ", ".join(f"{name} {megabytes(size)}" for name, size in parts)
        free = "" if self.available is None else f"; {megabytes(self.available)} available"
        return f"{megabytes(self.total)}: {told}, working {megabytes(self.working)}{free}"


def estimate(  # noqa: PLR0913 - the arguments of a run
    model: Model,
    prompt: Prompt | Batch,
    *,
    plan: Interventions = (),
    record: Selector = (),
    positions: Columns = None,
    vocabulary: Sequence[int] | Int[Tensor, " column"] | None = None,
    logits: bool = True,
    padding_side: PaddingSide = "right",
    attention_mask: Tensor | None = None,
    target: Prompt | None = None,
    max_tokens: int | None = None,
    start: Start = None,
    spilled: bool = False,
) -> Estimate:
    """The memory that `run` would take with these arguments; nothing runs.

    `spilled` says that the run is to have a `spill` folder. A `tap` of your own is not counted.

    Raises:
        PromptError: If a prompt cannot be run.
        UnknownNameError: If a recorded site or one of the plan is not the model's.
        OptionError: If an argument is outside what it may be.
        EmptySelectionError: If nothing is asked for.
    """
    batch = as_batch(model, prompt, padding_side, attention_mask, target)
    asked = request_of(
        model,
        batch,
        compile_plan(as_plan(plan), model, len(batch.tokens)),
        record=record,
        positions=positions,
        vocabulary=vocabulary,
        logits=logits,
        start=start,
    )
    parts = () if max_tokens is None else buckets_of(asked, max_tokens, own=False)
    return estimate_of(asked, parts, spilled=flag("spilled", spilled))


def estimate_of(asked: Request, parts: Sequence[Part] = (), *, spilled: bool = False) -> Estimate:
    """The memory that a run would take, in its parts; asks the system only where it may matter."""
    whole = _Widths(asked)
    pieces = [_Widths(part.asked) for part in parts] or [whole]
    kept = sum(one.kept() for one in pieces)
    activations = min(kept, max(one.stream for one in pieces)) if spilled else kept
    logits = whole.logits() if asked.logits else 0
    working = max(one.working() + (one.own_logits() if parts else 0) for one in pieces)
    total = activations + logits + working
    available = available_memory(asked.model.device) if total > UNASKED else None
    streams = sum(one.streams() for one in pieces)
    spared = working - max(one.least() for one in pieces)
    sizes = {
        'record="all", which keeps the streams and replays the rest': 0
        if asked.lazy
        else kept - streams,
        "spill=, which keeps what is recorded in files": 0 if spilled else kept,
        'positions="last" or vocabulary=, for fewer logits': logits + spared,
        f"fewer rows than {whole.rows} at a time": total // 2 if whole.rows > 1 else 0,
        f"{'a smaller ' if parts else ''}max_tokens=, which runs similar lengths together": working
        - working // whole.rows,
    }
    advice = sorted((name for name, size in sizes.items() if size > total // 20), key=sizes.get)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return Estimate(activations, logits, working, available, tuple(reversed(advice)))


def check_fits(estimate: Estimate) -> None:
    """Refuses a run before it takes the machine's last memory.

    Raises:
        MemoryLimitError: If it would not fit; says what would take less.
    """
    if not estimate.fits:
        advice = "; ".join(estimate.advice) or "shorter prompts"
        raise MemoryLimitError(f"The run would take {estimate}. Less is taken by {advice}.")


def available_memory(device: torch.device) -> int | None:
    """Bytes that a run may take on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    found = [size for size in (_free_of_machine(), _free_of_group()) if size is not None]
    return min(found, default=None)


def _free_of_machine(file: Path = Path("/proc/meminfo")) -> int | None:
    for line in _lines(file):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _free_of_group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container may still take; the files it has cached can be dropped."""
    limit, used = _lines(folder / "memory.max"), _lines(folder / "memory.current")
    if not used or not limit or not limit[0].isdigit():
        return None
    counts = dict(line.split() for line in _lines(folder / "memory.stat"))
    cached = sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))
    return int(limit[0]) - int(used[0]) + cached


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


@final
class _Widths:
    """Bytes of the tensors of one request."""

    def __init__(self, asked: Request) -> None:
        self.asked, self.sizes = asked, asked.model.sizes
        self.rows, self.columns = len(asked.batch.tokens), asked.batch.width
        self.item = asked.model.dtype.itemsize
        self.tokens = self.rows * self.columns
        self.stream = self.tokens * self.sizes.d_model * self.item
        self.square = self.rows * self.sizes.n_heads * self.columns**2 * max(self.item, 4)

    def kept(self) -> int:
        """What stays with the trace beside the logits."""
        return self.streams() if self.asked.lazy else self.sites()

    def own_logits(self) -> int:
        """The logits, if they are asked for."""
        return self.logits() if self.asked.logits else 0

    def working(self) -> int:
        """The most that is held beside what stays, and dropped."""
        logits = self.own_logits()
        return max(self.block() - logits, self.unembedding(logits))

    def least(self) -> int:
        """The most that would be held if there were no logits."""
        return max(self.block(), self.unembedding(self.own_logits()))

    def streams(self) -> int:
        """What a lazy run keeps."""
        return self.stream * (self.sizes.n_layers + 1 - self.asked.first)

    def sites(self) -> int:
        """What the recorded sites take together."""
        recorded = frozenset(self.asked.sites)
        return sum(self.site(site) for site in recorded if not _shared(site, recorded))

    def site(self, site: Site) -> int:
        """One activation; the inputs of the heads are views of one stream."""
        if site.short in HEAD_INPUTS and site not in self.asked.program.by_site:
            return 0
        return site_bytes(site, self.asked.model, self.rows, self.columns)

    def logits(self) -> int:
        """The logits asked for; those of every column where a site beside them is."""
        asked = self.asked
        every = asked.batch.tokens.shape[1]
        columns = every if asked.columns is None else asked.columns.shape[1]
        words = self.sizes.d_vocab if asked.vocabulary is None else len(asked.vocabulary)
        return self.rows * columns * words * self.item

    def block(self) -> int:
        """The most that one block holds at once."""
        if self.asked.stop is not None and self.asked.stop <= self.asked.first:
            return self.stream
        wanted = {site.short for site in self.asked.open if site.layer is not None}
        heads = self.sizes.n_heads
        attention = 4 * self.tokens * heads * self.sizes.d_head * self.item
        if wanted & SQUARES:  # of which those that are recorded are counted already
            recorded = set() if self.asked.lazy else {site.short for site in self.asked.sites}
            attention += (OPEN_SQUARES - len(recorded & SQUARES)) * self.square
        attention += self.stream * heads if "attn.hook_result" in wanted else 0
        attention += 3 * self.stream * heads if wanted & HEAD_INPUTS else 0
        seen = self.asked.batch.seen
        if seen is not None:  # once as truth values, once as what is added to the scores
            attention += seen.numel() * (1 + self.item)
        block = first_block(self.asked.model)
        held = 1 + sum("d_mlp" in site.axes for site in block)  # and one that is made of them
        neurons = held * self.tokens * self.sizes.d_mlp * self.item
        return 5 * self.stream + max(attention, neurons)

    def unembedding(self, logits: int) -> int:
        """The most that the unembedding holds beside the logits asked for."""
        if self.asked.stop is not None:
            return 0
        late = set(late_sites(self.asked.model)) & self.asked.open
        whole = self.tokens * self.sizes.d_vocab * self.item if late else logits
        return 3 * self.stream + whole - min(whole, logits)


def site_bytes(site: Site, model: Model, rows: int, columns: int) -> int:
    """One activation by itself, of so many rows and columns."""
    sizes, item = model.sizes, model.dtype.itemsize
    if site.short in SQUARES:
        return rows * sizes.n_heads * columns**2 * max(item, 4)
    by_axis = {
        "batch": rows,
        "pos": columns,
        "head": sizes.n_key_value_heads if site.short in GROUPED else sizes.n_heads,
        "d_head": sizes.d_head,
        "d_model": sizes.d_model,
        "d_mlp": sizes.d_mlp,
        "d_vocab": sizes.d_vocab,
        "d_proj": 3 * sizes.d_mlp,
        "d_conv": 2 * sizes.d_mlp,
        "d_inner": sizes.d_mlp,
        "d_state": LARGE_STATE,
    }
    return math.prod(by_axis.get(axis, 1) for axis in site.axes) * item


def first_block(model: Model) -> Sites:
    """The sites of the first block: of an encoder, where there are two."""
    stack = next((site.stack for site in model.sites if site.layer is not None), "")
    return tuple(site for site in model.sites if site.layer == 0 and site.stack == stack)


def _shared(site: Site, recorded: frozenset[Site]) -> bool:
    """Whether it is the tensor of another recorded site: streams pass from site to site."""
    if site.short == "hook_resid_pre" and site.layer:
        return Site(site.name.replace("_pre", "_post"), site.layer - 1) in recorded
    if site.short == "hook_mlp_in":
        return Site(site.name.replace("hook_mlp_in", "hook_resid_mid"), site.layer) in recorded
    return False


def megabytes(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**20:.1f} MiB"
