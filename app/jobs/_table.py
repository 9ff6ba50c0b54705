"""The table of answers by kind of spec, collected from the modules of this folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.host import Job
from app.jobs._bench import Bench
from app.specs import Spec
from workbench.core.registry import discover

Answer = Callable[[Bench, Any, Job], object]  # Any: each takes its own kind of spec


@dataclass(frozen=True)
class Answers:
    """What a module answers: a function for each kind of spec."""

    by_kind: Mapping[type[Spec], Answer]


def table() -> dict[type[Spec], Answer]:
    """Every answer there is, by the kind of its spec."""
    found: dict[type[Spec], Answer] = {}
    for answers in discover("app.jobs", "ANSWERS", Answers).values():
        found.update(answers.by_kind)
    return found
