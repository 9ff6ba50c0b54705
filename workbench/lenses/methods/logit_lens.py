"""The logit lens: the final norm and the unembedding, applied at every layer as they are."""

from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from workbench.core.axes import Logits, Resid
from workbench.core.protocols import Model
from workbench.core.sites import Site
from workbench.core.tap import UNTAPPED
from workbench.lenses.lens import LensMethod


@final
@dataclass(frozen=True)
class LogitLens(LensMethod):
    """unembed(norm(resid)), with the norm's own statistics at each layer."""

    source: ClassVar[str] = "nostalgebraist 2020, interpreting GPT: the logit lens"

    @override
    def logits(self, model: Model, site: Site, resid: Resid) -> Logits:
        return model.unembed(resid, UNTAPPED)


METHOD = LogitLens()
