"""Whether the model says what transformers says, layer by layer."""

import math
from collections.abc import Iterable
from types import MappingProxyType

from torch import Tensor

from workbench.core.axes import BLOCKS, DECODER, ENCODER
from workbench.core.sites import Site
from workbench.core.trace import Trace
from workbench.models.verification.report import Measured
from workbench.models.verification.subject import NotApplicableError, Subject

OF_STACK = MappingProxyType({BLOCKS: "", ENCODER: "encoder_", DECODER: "decoder_"})
RELATIVE = 1e-5  # of the largest value of a tensor, and at least of 1: two orders of the same sums


def worst(pairs: Iterable[tuple[Tensor, Tensor]], unit: str) -> Measured:
    """The largest difference of the pair that differs most by its own size.

    Each pair is (got, expected); what is allowed grows with the largest expected value.
    """
    found = Measured(0.0, RELATIVE, unit, "equal bit for bit")
    most = 0.0
    for got, expected in pairs:
        if got.shape != expected.shape:
            note = f"shapes {tuple(got.shape)} and {tuple(expected.shape)}"
            return Measured(math.inf, RELATIVE, unit, note)
        largest = float(expected.abs().max())
        allowed = RELATIVE * max(1.0, largest)
        difference = float((got - expected).abs().max())
        if not math.isfinite(difference):
            return Measured(difference, RELATIVE, unit, "values that are not finite")
        if difference / allowed > most:
            most = difference / allowed
            found = Measured(difference, allowed, unit, f"values up to {largest:.3g}")
    return found


def logits(subject: Subject) -> Measured:
    """Logits, of every position of every row: of the fused path, and with all sites open.

    Without a head, the stream after the blocks.
    """
    unit = "stream" if subject.ours.sizes.output.columns == "stream" else "logits"
    return worst(
        (
            (_like(trace, said), said)
            for traces in (subject.plain, subject.traces)
            for trace, said in zip(traces, subject.said, strict=True)
        ),
        unit,
    )


def _like(trace: Trace, said: Tensor) -> Tensor:
    """Ours in the shape of theirs: a classifier's are of the first token, or of one column."""
    if said.ndim == 3:
        return trace.logits
    if trace.logits.shape == (*said.shape, 1):
        return trace.logits[..., 0]
    return trace.answer_logits


def hidden_states(subject: Subject) -> Measured:
    """The stream before each block."""
    streams = subject.having("hook_resid_pre")
    return worst(
        (
            (trace[site], said[f"{OF_STACK[site.stack]}hidden_states"][site.layer])
            for trace, said in zip(subject.traces, subject.expected, strict=True)
            for site in streams
        ),
        "stream",
    )


def attentions(subject: Subject) -> Measured:
    """The pattern of each block; of a decoder's across to its encoder, too.

    Raises:
        NotApplicableError: If transformers' model gives none.
    """
    patterns = subject.having("attn.hook_pattern", "cross_attn.hook_pattern")
    names = {site: _attention_of(site) for site in patterns}
    if any(not said.get(name) for said in subject.expected for name in names.values()):
        message = "transformers' own model gives no patterns"
        raise NotApplicableError(message)
    return worst(
        (
            (trace[site], said[names[site]][site.layer])
            for trace, said in zip(subject.traces, subject.expected, strict=True)
            for site in patterns
        ),
        "probability",
    )


def _attention_of(site: Site) -> str:
    across = site.short.startswith("cross_attn.")
    return "cross_attentions" if across else f"{OF_STACK[site.stack]}attentions"


def tokens(subject: Subject) -> Measured:
    """How many texts the tokenizer of transformers gives other ids.

    Raises:
        NotApplicableError: If the model has no tokenizer of a folder.
    """
    from workbench.models.tokenizer import Tokenizer

    tokenizer, folder = subject.model.tokenizer, subject.folder
    if not isinstance(tokenizer, Tokenizer) or folder is None:
        message = "it was loaded without the tokenizer of a folder"
        raise NotApplicableError(message)
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    texts = (*subject.texts, *(f" {text}\n" for text in subject.texts))
    other = [text for text in texts if tuple(theirs(text)["input_ids"]) != tokenizer.encode(text)]
    note = f"of {len(texts)} texts" if not other else f"of {len(texts)} texts, {other[0]!r} first"
    return Measured(len(other), 0, "texts", note)
