"""What a model takes here, told and not judged: no two machines agree."""

import time
from collections.abc import Callable

import torch

from workbench.core.data import batch_of
from workbench.core.modes import forward_only
from workbench.core.run import run
from workbench.models.verification.report import Measured
from workbench.models.verification.subject import Subject, inputs_of

POSITIONS = 64
TIMES = 3


def memory(subject: Subject) -> Measured:
    """The bytes of the weights, those with two names once."""
    weights = {w.data_ptr(): w.numel() * w.element_size() for w in subject.model.stack.parameters()}
    dtype = str(subject.model.dtype).removeprefix("torch.")
    return Measured(sum(weights.values()) / 1e6, None, "MB", f"{len(weights)} weights in {dtype}")


def speed(subject: Subject) -> Measured:
    """The quickest of a few forwards, ours in parts of theirs; below 1 ours is faster.

    Raises:
        NotApplicableError: If theirs has no logits to be as far as.
    """
    sizes, twin, ours = subject.ours.sizes, subject.twin, subject.ours
    length = min(POSITIONS, sizes.n_ctx)
    ids = torch.arange(length)[None] % sizes.d_vocab
    batch = batch_of(ours, ids, target=ids if sizes.n_encoder_layers else None)
    given, _ = inputs_of(batch), subject.said  # or theirs does not go as far
    with forward_only():
        mine, theirs = _quickest(lambda: run(ours, batch)), _quickest(lambda: twin(**given))
    note = f"{1e3 * mine:.2f} ms for {length} positions; transformers (eager) {1e3 * theirs:.2f} ms"
    return Measured(mine / theirs, None, "of theirs", note)


def _quickest(work: Callable[[], object]) -> float:
    taken: list[float] = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return min(taken)
