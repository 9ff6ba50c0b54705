"""One step of a pass through a bridged model: whose tap acts, and which blocks run.

transformers runs a model in one call, our models in three: embedding, some blocks, unembedding. So
each of ours is a call of theirs in which the other blocks hand on what they are given, and which
ends where the step does. Which step that is, and whose tap, is looked up in the context: it belongs
to a call, not to the model.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from workbench.core.axes import SCORES, Resid
from workbench.core.sites import Site, Sites
from workbench.core.tap import Tap

PATTERN = "attn.hook_pattern"


class ReachedError(Exception):
    """Ends a call of theirs where a step of ours ends; carries the stream there."""

    def __init__(self, resid: Resid) -> None:
        super().__init__()
        self.resid = resid


@final
@dataclass(frozen=True)
class Form:
    """How a tensor of the bridge reads with our axes, and how it is written back."""

    show: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]  # what a tap left, and the bridge's own tensor


@final
class Step:
    """What one call of `embed`, `layers` or `unembed` does.

    Blocks `first` to `last` run; those before hand on their input. The stream before block `first`
    is `given`, if there is one, from where on the tap acts. An `ends` step raises `ReachedError`
    before block `last`; the one that does not, unembeds.
    """

    def __init__(
        self, tap: Tap, first: int, last: int, n_layers: int, given: Resid | None, *, ends: bool
    ) -> None:
        self.tap, self.first, self.last, self.n_layers = tap, first, last, n_layers
        self.given, self.ends = given, ends
        self.acts = given is None
        self.before: Tensor | None = None  # the stream that the block at hand was given
        self.hidden: Tensor | None = None  # where its queries see no key

    def pass_by(self, site: Site, form: Form, value: Tensor) -> Tensor | None:
        """What the tap makes of an activation; None where it leaves it."""
        if not self.acts:
            return None
        # A copy for who keeps it: transformers may write into its own tensors later.
        shown = form.show(value.clone() if self.tap.wants(site) else value)
        left = self.tap(site, shown)
        return None if left is shown else form.back(left, value)

    def wants(self, sites: Sites) -> bool:
        """Whether the tap asks for one of these."""
        return self.acts and any(self.tap.wants(site) for site in sites)


def is_hidden(scores: Tensor) -> Tensor:
    """Where scores are so low that nothing is left of them: the bridge masks with numbers."""
    return scores <= torch.finfo(scores.dtype).min / 2


NOW: ContextVar[Step | None] = ContextVar("bridged_step", default=None)


@final
@dataclass(frozen=True, eq=False)
class Listener:
    """What a hook of the bridge calls: the tap of the context it is called in."""

    site: Site
    form: Form
    mid: Site | None = None  # the stream between, where this is what attention adds to it

    def __call__(self, value: Tensor, hook: object) -> Tensor | None:  # noqa: ARG002 - it is told
        """The value the bridge goes on with; None for its own."""
        step = NOW.get()
        if step is None or not step.acts:
            return None
        left = step.pass_by(self.site, self.form, value)
        if self.site.short == "hook_resid_pre":
            step.before = value if left is None else left
        if self.site.short in SCORES:
            step.hidden = is_hidden(value)
        if self.site.short == PATTERN and left is not None and step.hidden is not None:
            left = left.masked_fill(step.hidden, 0.0)  # nobody may look ahead, or at a pad
        if self.mid is None or step.before is None:
            return left
        return _between(step, step.before, self.mid, value, left)


def _between(
    step: Step, before: Resid, mid: Site, written: Resid, left: Resid | None
) -> Resid | None:
    """What attention adds, so that the stream after it is what the tap makes of that stream."""
    stream = before + (written if left is None else left)
    changed = step.tap(mid, stream)
    return left if changed is stream else changed - before


@final
class SteppedBlock:
    """A block's forward: runs it, or hands its input on, as the step of the context says."""

    def __init__(self, index: int, run: Callable[..., Any]) -> None:
        self.index, self._run = index, run
        self.outputs = 0  # how many its tuple has; 0: it returns the stream alone

    def learn(self, output: object) -> None:
        """Notes the form of what it returns; once, while the model is loaded."""
        self.outputs = len(output) if isinstance(output, tuple) else 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What transformers' own loop over the blocks calls, with arguments of its own.

        Raises:
            ReachedError: If the step ends before this block, or after it as the last.
        """
        step = NOW.get()
        if step is None:
            output = self._run(*args, **kwargs)
            self.learn(output)
            return output
        stream = args[0] if args else kwargs["hidden_states"]
        if step.ends and self.index == step.last:
            raise ReachedError(stream)
        if self.index < step.first:
            return self._handed_on(step, stream)
        if self.index == step.first and step.given is not None:
            args, kwargs = _with_stream(step.given, args, kwargs)
            step.acts = True
        output = self._run(*args, **kwargs)
        if step.ends and self.index == step.n_layers - 1:
            raise ReachedError(output[0] if isinstance(output, tuple) else output)
        return output

    def _handed_on(self, step: Step, stream: Resid) -> Any:
        if not step.ends and self.index == step.n_layers - 1 and step.given is not None:
            stream, step.acts = step.given, True
        return (stream, *[None] * (self.outputs - 1)) if self.outputs else stream


def _with_stream(
    stream: Resid, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (stream, *args[1:]), dict(kwargs)
    return (), {**kwargs, "hidden_states": stream}
