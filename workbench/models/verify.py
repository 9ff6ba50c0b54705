"""Whether a model can be trusted here: checks against transformers, identities, behaviour, cost.

    verify(model)    runs them all                    -> a Report, kept by the model's fingerprint
    verified(model)  the report that was kept, if any

Notable: checks know no family. What is compared, and what must add up, is read off the sites a
model has; what does not apply to it is left out with the reason, and never passed over.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from workbench.core.errors import MemoryLimitError, WorkbenchError
from workbench.core.modes import outside_inference
from workbench.core.options import expect, flag
from workbench.models.load import load
from workbench.models.transformer import Transformer
from workbench.models.verification import behaviour, cost, identities, parity
from workbench.models.verification.report import Measured, Report, Row, kept_at, read_report
from workbench.models.verification.subject import NotApplicableError, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKS: Mapping[str, Callable[[Subject], Measured]] = MappingProxyType(
    {
        "logits = transformers": parity.logits,
        "hidden states = transformers": parity.hidden_states,
        "attentions = transformers": parity.attentions,
        "streams add up": identities.residuals,
        "blocks hand streams on": identities.handed_on,
        "heads add up": identities.heads,
        "gradients = differences": behaviour.slopes,
        "cached = uncached": behaviour.cached,
        "padded = alone": behaviour.padding,
        "tokens = transformers": parity.tokens,
        "tokens and back": behaviour.round_trip,
        "memory": cost.memory,
        "speed": cost.speed,
    }
)


@outside_inference
def verify(
    model: Transformer | str | Path,
    *,
    theirs: "PreTrainedModel | None" = None,
    keep: bool = True,
    progress: Callable[[Row], None] | None = None,
) -> Report:
    """A report on a model: what was measured in each check, and what is allowed.

    Compares with transformers' own model, read from the folder the model was loaded from (so that
    both are in memory at once), or given as `theirs`, which must be in float32 and eager. Runs on
    float32 and, for gradients, float64 copies where the model is in another dtype. Costs about 40
    short forwards; 20 s for 135 million weights on two cores. The report is kept in the user's
    cache by the model's fingerprint, unless `keep` is False. `progress` is told each row.

    Raises:
        OptionError: If it is no model that was loaded here.
        UnknownNameError: If there is no model of that name.
    """
    flag("keep", keep)
    model = load(model) if isinstance(model, str | Path) else model
    model = expect("model", model, Transformer, "one of a native family, or what load takes")
    subject = Subject(model, theirs)
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for name, check in CHECKS.items():
        try:
            rows.append(_checked(name, check, subject))
        except (NotApplicableError, MemoryLimitError) as error:
            left_out[name] = str(error)
        else:
            if progress is not None:
                progress(rows[-1])
    report = Report(model.name, model.fingerprint, tuple(rows), left_out)
    if keep:
        report.save()
    return report


def verified(model: Transformer) -> Report | None:
    """The report that `verify` kept of a model with this fingerprint; None if there is none.

    Raises:
        FormatError: If it is damaged.
    """
    file = kept_at(model.fingerprint)
    return read_report(file) if file.exists() else None


def _checked(name: str, check: Callable[[Subject], Measured], subject: Subject) -> Row:
    begun = time.perf_counter()
    try:
        found = check(subject)
    except MemoryLimitError:
        raise
    except WorkbenchError as error:
        return Row(name, None, None, "", time.perf_counter() - begun, str(error))
    taken = time.perf_counter() - begun
    return Row(name, float(found.value), found.allowed, found.unit, taken, found.note)
