"""A model under a plan, as a model: so that any method reads the run the screen shows."""

from typing import final

import torch
from torch import Tensor

from workbench.core.axes import Logits, Resid
from workbench.core.cache import Cache
from workbench.core.data import Batch
from workbench.core.errors import OptionError
from workbench.core.plan import Plan
from workbench.core.program import Ledger, compile_plan
from workbench.core.protocols import Model, Sizes, Vocabulary
from workbench.core.sites import Sites, select
from workbench.core.tap import Tap, chain


@final
class Planned:
    """`model` with `plan` carried out before whatever else taps it.

    Interventions after the last block would not act here, so they are refused.
    """

    def __init__(self, model: Model, plan: Plan) -> None:
        """Checks the plan's sites.

        Raises:
            OptionError: If one is after the last block.
        """
        blocks = [i for i, site in enumerate(model.sites) if site.layer is not None]
        late = set(model.sites[max(blocks) + 1 :])
        for one in plan:
            if late & set(select(one.sites, model.sites)):
                raise OptionError("site", "at or before the last block in the app", str(one))
        self._model, self._plan = model, plan

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def fingerprint(self) -> str:
        """The model's fingerprint."""
        return self._model.fingerprint

    @property
    def sites(self) -> Sites:
        """The model's sites."""
        return self._model.sites

    @property
    def sizes(self) -> Sizes:
        """The model's sizes."""
        return self._model.sizes

    @property
    def causal(self) -> bool:
        """Whether a position of the model never sees later ones."""
        return self._model.causal

    @property
    def tokenizer(self) -> Vocabulary | None:
        """The model's vocabulary."""
        return self._model.tokenizer

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype."""
        return self._model.dtype

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self._model.device

    def embed(self, batch: Batch, tap: Tap) -> Resid:
        """The stream before block 0, under the plan."""
        return self._model.embed(batch, chain(self._tap(batch), tap))

    def layers(
        self,
        resid: Resid,
        batch: Batch,
        tap: Tap,
        *,
        first: int = 0,
        last: int | None = None,
        cache: Cache | None = None,
    ) -> Resid:
        """The stream after the blocks, under the plan."""
        both = chain(self._tap(batch), tap)
        return self._model.layers(resid, batch, both, first=first, last=last, cache=cache)

    def unembed(self, resid: Resid, tap: Tap, *, vocabulary: Tensor | None = None) -> Logits:
        """Logits of a stream."""
        return self._model.unembed(resid, tap, vocabulary=vocabulary)

    def _tap(self, batch: Batch) -> Tap:
        program = compile_plan(self._plan, self._model, len(batch.tokens))
        return program.tap(batch.place, Ledger(self._plan))
