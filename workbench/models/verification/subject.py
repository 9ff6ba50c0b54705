"""What is checked: a model in float32, its twin of transformers, and texts to run both on.

Notable: everything dear is made once, when first asked for, and shared by the checks.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from workbench.core.data import Batch, PaddingSide, batch_of
from workbench.core.errors import WeightsError
from workbench.core.guards import Need, check_need
from workbench.core.protocols import Output
from workbench.core.run import run
from workbench.core.sites import Sites
from workbench.core.trace import Trace
from workbench.models.overview import reader_of
from workbench.models.tables import read_table
from workbench.models.transformer import Transformer
from workbench.models.views.stacks import converted, like

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXTS = (
    "The capital of France is",
    "When Mary and John went to the store, John gave a drink to",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4,",
    "Ünïcödé – 東京 🙂 ok",
)
NEW = 8  # tokens that are generated
WRITTEN = (
    "hook_attn_out",
    "hook_cross_attn_out",
    "ln1_post.hook_normalized",
    "ln1_post.hook_scale",
)
INSIDE = tuple(
    f"{brick}.hook_{what}" for brick in ("attn", "cross_attn") for what in ("pattern", "result")
)
KINDS = (("batch", "pos", "d_model"), ("batch", "pos", "1"))  # streams, and scales of norms
LONGEST = 24  # tokens of a row: patterns of all layers are compared


class NotApplicableError(Exception):
    """A check that asks for what a model, or this machine, does not have; says what."""


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """A model, where its twin comes from, and what both have said."""

    model: Transformer
    theirs: "PreTrainedModel | None"

    @property
    def folder(self) -> Path | None:
        """Where the model was read."""
        return None if self.model.origin is None else self.model.origin.folder

    @cached_property
    def ours(self) -> Transformer:
        """The model in float32."""
        return in_dtype(self.model, torch.float32)

    @cached_property
    def twin(self) -> "PreTrainedModel":
        """The model of transformers, in float32 and eager, which alone gives patterns.

        Raises:
            NotApplicableError: If there is none to read.
        """
        if self.theirs is not None:
            return self.theirs
        if self.folder is None:
            message = "it was not read from a folder; pass transformers' own model as theirs="
            raise NotApplicableError(message)
        return read_twin(self.folder, self.model.dtype)

    @property
    def texts(self) -> tuple[str, ...]:
        """What is run, where there is a vocabulary."""
        return TEXTS

    @cached_property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of a few texts, or random ones where there is no vocabulary."""
        sizes, tokenizer = self.model.sizes, self.model.tokenizer
        longest = max(1, min(LONGEST, sizes.n_ctx - NEW))
        if tokenizer is None:
            draws = torch.Generator().manual_seed(0)
            drawn = torch.randint(sizes.d_vocab, (3, longest), generator=draws)
            return tuple(tuple(row[: longest - place]) for place, row in enumerate(drawn.tolist()))
        encoded = (tokenizer.encode(text)[:longest] for text in TEXTS)
        return tuple(ids for ids in encoded if max(ids, default=sizes.d_vocab) < sizes.d_vocab)

    @cached_property
    def targets(self) -> tuple[tuple[int, ...], ...] | None:
        """What a decoder that reads an encoder is given with each row: of other lengths."""
        sizes = self.model.sizes
        if not sizes.n_encoder_layers:
            return None
        start = () if sizes.start_id is None else (sizes.start_id,)
        return tuple((*start, *row[: 3 + place]) for place, row in enumerate(self.rows))

    def batch(self, *places: int, side: PaddingSide = "right", answer: int | None = None) -> Batch:
        """Some of the rows, with their targets."""
        rows = [self.rows[place] for place in places]
        target = None if self.targets is None else [self.targets[place] for place in places]
        return batch_of(self.ours, rows, padding_side=side, target=target, answer=answer)

    @cached_property
    def expected(self) -> tuple[Any, ...]:
        """What transformers says of each row, with its hidden states and attentions."""
        told = dict[str, Any](output_hidden_states=True, output_attentions=True)
        with torch.no_grad():
            return tuple(
                self.twin(**inputs_of(self.batch(place)), **told) for place in range(len(self.rows))
            )

    @cached_property
    def said(self) -> tuple[Tensor, ...]:
        """What transformers says of each row in the end: logits, or the stream of no head.

        Raises:
            NotApplicableError: If it says nothing of that kind.
        """
        found = [_said(answer, self.model.sizes.output) for answer in self.expected]
        if any(one is None for one in found):
            message = "transformers' own model has no logits"
            raise NotApplicableError(message)
        return tuple(one for one in found if one is not None)

    @cached_property
    def plain(self) -> tuple[Trace, ...]:
        """Runs of ours on each row by the fused path: nothing inside attention is looked at."""
        after = tuple(site for site in self.ours.sites if site.short in WRITTEN)
        return self._runs(after)

    @cached_property
    def traces(self) -> tuple[Trace, ...]:
        """Runs of ours on each row, with all streams, patterns and what heads write."""
        return self._runs(self.recorded)

    def _runs(self, sites: Sites) -> tuple[Trace, ...]:
        places = range(len(self.rows))
        return tuple(run(self.ours, self.batch(place), record=sites) for place in places)

    @property
    def recorded(self) -> Sites:
        """The sites that comparisons and identities need."""
        return tuple(site for site in self.ours.sites if site.axes in KINDS or site.short in INSIDE)

    def having(self, *shorts: str) -> Sites:
        """The sites of these names in all blocks.

        Raises:
            NotApplicableError: If no block has one.
        """
        found = tuple(site for site in self.ours.sites if site.short in shorts)
        if not found:
            message = f"its blocks have no {shorts[0]}"
            raise NotApplicableError(message)
        return found


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """A batch without pads, as transformers' models take it."""
    if batch.source is None:
        return {"input_ids": batch.tokens}
    return {"input_ids": batch.source.tokens, "decoder_input_ids": batch.tokens}


def _said(answer: Any, output: Output) -> Tensor | None:
    headless = output.columns == "stream"
    names = ("last_hidden_state",) if headless else ("prediction_logits", "logits")
    return next((answer[name] for name in names if answer.get(name) is not None), None)


def read_twin(folder: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """The model of transformers that a folder holds, in float32 after a rounding to `dtype`.

    Raises:
        NotApplicableError: If transformers cannot load it.
        WeightsError: If transformers finds weights missing there, and would draw them.
    """
    named = read_table(folder / "config.json").get("architectures") or [""]
    try:
        found, told = reader_of(str(named[0])).from_pretrained(
            str(folder),
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
            local_files_only=True,
        )
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        message = f"transformers cannot load {folder}: {reason}"
        raise NotApplicableError(message) from None
    if told["missing_keys"]:
        missing = ", ".join(sorted(told["missing_keys"])[:4])
        raise WeightsError(f"{folder}: transformers finds no {missing}; it would draw them.")
    return found.float().eval()


def in_dtype(model: Transformer, dtype: torch.dtype) -> Transformer:
    """The same model computing in `dtype`; itself where it does.

    Raises:
        MemoryLimitError: If the copy would not fit.
    """
    if model.dtype == dtype:
        return model
    n_bytes = sum(weight.numel() for weight in model.stack.parameters()) * dtype.itemsize
    check_need(Need(f"model in {dtype}", {"weights": n_bytes}, ("a smaller model",)), model)
    with torch.inference_mode(mode=False):
        return like(model, converted(model.stack, lambda weight: weight.to(dtype)), "")
