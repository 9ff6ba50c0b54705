"""What is checked: a model in float32, its twin of transformers, and texts to run both on.

Notable: everything dear is made once, when first asked for, and shared by the checks.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch

from workbench.core.errors import WeightsError
from workbench.core.guards import Need, check_need
from workbench.core.run import run
from workbench.core.sites import Sites
from workbench.core.trace import Trace
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
WRITTEN = ("hook_attn_out", "ln1_post.hook_normalized", "ln1_post.hook_scale")
KINDS = (("batch", "pos", "d_model"), ("batch", "pos", "1"))  # streams, and scales of norms
LONGEST = 24  # tokens of a row: patterns of all layers are compared
# What a checkpoint's `architectures` end in, and the class of transformers that reads it.
HEADS = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForPreTraining": "AutoModelForPreTraining",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
}


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
    def expected(self) -> tuple[Any, ...]:
        """What transformers says of each row, with its hidden states and attentions."""
        with torch.no_grad():
            return tuple(
                self.twin(torch.tensor([row]), output_hidden_states=True, output_attentions=True)
                for row in self.rows
            )

    @cached_property
    def plain(self) -> tuple[Trace, ...]:
        """Runs of ours on each row by the fused path: nothing inside attention is looked at."""
        after = tuple(site for site in self.ours.sites if site.short in WRITTEN)
        return tuple(run(self.ours, [list(row)], record=after) for row in self.rows)

    @cached_property
    def traces(self) -> tuple[Trace, ...]:
        """Runs of ours on each row, with all streams, patterns and what heads write."""
        return tuple(run(self.ours, [list(row)], record=self.recorded) for row in self.rows)

    @property
    def recorded(self) -> Sites:
        """The sites that comparisons and identities need."""
        return tuple(
            site
            for site in self.ours.sites
            if site.axes in KINDS or site.short in ("attn.hook_pattern", "attn.hook_result")
        )

    def having(self, short: str) -> Sites:
        """The sites of that name in all blocks.

        Raises:
            NotApplicableError: If no block has one.
        """
        found = tuple(site for site in self.ours.sites if site.short == short)
        if not found:
            message = f"its blocks have no {short}"
            raise NotApplicableError(message)
        return found


def read_twin(folder: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """The model of transformers that a folder holds, in float32 after a rounding to `dtype`.

    Raises:
        NotApplicableError: If transformers cannot load it.
        WeightsError: If transformers finds weights missing there, and would draw them.
    """
    named = read_table(folder / "config.json").get("architectures") or [""]
    ending = next((name for name in HEADS if str(named[0]).endswith(name)), "")
    try:
        found, told = _auto(HEADS.get(ending, "AutoModel")).from_pretrained(
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


def _auto(name: str) -> Any:
    from transformers.models.auto import modeling_auto

    return vars(modeling_auto)[name]


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
