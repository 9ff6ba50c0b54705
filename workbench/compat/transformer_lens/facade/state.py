"""What a facade holds, and what its parts make of it: a reading, a tap, the vocabulary's texts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.compat.transformer_lens.building import build
from workbench.compat.transformer_lens.calls import Call, Read, read, run_call
from workbench.compat.transformer_lens.config import HookedTransformerConfig
from workbench.compat.transformer_lens.describe import enabled
from workbench.compat.transformer_lens.hooks import Here, Hooks, SitePoint
from workbench.compat.transformer_lens.lending import Loan
from workbench.compat.transformer_lens.places import Shown
from workbench.compat.transformer_lens.taps import HookTap
from workbench.compat.transformer_lens.tokens import PaddingSide, Texts
from workbench.compat.transformer_lens.weights import ClassicWeights
from workbench.core.data import Batch
from workbench.core.errors import OptionError, PromptError
from workbench.core.protocols import Vocabulary
from workbench.models.load import as_vocabulary
from workbench.models.transformer import Transformer
from workbench.models.views.folded import Parity
from workbench.models.views.stacks import ungrouped, untiled


class State:
    """A facade's model and weights, its vocabulary, and its hooks; nothing is on the model."""

    def __init__(
        self,
        cfg: HookedTransformerConfig | Mapping[str, Any],
        tokenizer: object | None,
        side: PaddingSide,
        model: Transformer | None,
    ) -> None:
        self.cfg = replace(HookedTransformerConfig.unwrap(cfg))
        self.parity: Parity | None = None  # of the view it shows, where weights were processed
        self.training = False
        self._trainable = model is None
        self._vocabulary: Vocabulary | None = None
        self._side: PaddingSide = _checked(side)
        given = None if model is None else model.tokenizer
        given = given if tokenizer is None else as_vocabulary(tokenizer)
        if given is not None:
            self._speak(given, side)
        self._bind(learning(build(self.cfg, given)) if model is None else model)
        names = [str(site) for site in self._model.sites]
        self._hooks = Hooks(self._enabled, names)
        self.hook_dict = {name: SitePoint(name, self._hooks) for name in names}

    @property
    def engine(self) -> Transformer:
        """The model that runs; frozen, unless the facade was made from a configuration."""
        return self._model

    def _bind(self, model: Transformer) -> None:
        """Shows a model: its weights, and itself or a view of it as what runs."""
        self._base, self._loan = self._kept(model)
        shown = Shown(self._loan, self._find, self._through)
        self._read = ClassicWeights(self._base.stack, Shown())
        self._weights = ClassicWeights(self._base.stack, shown)
        self._choose()

    def _choose(self) -> None:
        """What runs, as the flags say."""
        self._model = self._base
        if self.cfg.ungroup_grouped_query_attention and self.cfg.groups != self.cfg.n_heads:
            self._loan.own_all()  # else the view would go on reading what is no longer the base's
            self._model = ungrouped(self._base)

    def _find(self, name: str) -> SitePoint | None:
        return self.hook_dict.get(name)

    def _through(self, layer: int, stream: Tensor, mask: Tensor | None) -> Tensor:
        """The stream after one block, of the one before it."""
        call = Call(stream, start_at_layer=layer, stop_at_layer=layer + 1, attention_mask=mask)
        reading = self._reading(call)
        after = run_call(call, reading, self._model, self._tap(reading.batch))
        return torch.as_tensor(after)

    def _kept(self, model: Transformer) -> tuple[Transformer, Loan]:
        """The model, or one of the same tensors, none of which is handed out before it is copied.

        Without the second forms of its matrices too, which would not see a write to these.
        """
        if self._trainable:
            return model, Loan()
        own = untiled(model)  # a stack of its own
        return own, Loan(own.stack)

    def _speak(self, vocabulary: Vocabulary, side: PaddingSide) -> None:
        self._vocabulary, self._side = vocabulary, _checked(side)
        self.cfg.tokenizer_prepends_bos = len(vocabulary.encode("")) > 0

    def _texts(self) -> Texts:
        if self._vocabulary is None:
            raise PromptError(f"{self.cfg.model_name} has no tokenizer; give it one, or use ids.")
        return Texts(self._vocabulary, self.cfg.n_ctx, self.cfg.default_prepend_bos, self._side)

    def _texts_if_any(self) -> Texts | None:
        return None if self._vocabulary is None else self._texts()

    def _reading(self, call: Call) -> Read:
        return read(call, self._model, self._texts_if_any())

    def _tap(self, batch: Batch) -> HookTap:
        context, positions = self._hooks.context, batch.positions
        return HookTap(
            self._hooks.current(), lambda site: Here(str(site), context(str(site)), positions)
        )

    def _enabled(self) -> list[str]:
        return [str(site) for site in self._model.sites if enabled(self.cfg, site)]


def learning(model: Transformer) -> Transformer:
    """The same, whose weights take gradients."""
    model.stack.requires_grad_(requires_grad=True)
    return model


def _checked(side: PaddingSide) -> PaddingSide:
    if side not in ("left", "right"):
        raise OptionError("default_padding_side", "'left' or 'right'", side)
    return side
