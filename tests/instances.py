"""One of each operator and scope there is, made from what its fields are: none is named here.

So an operator or scope that is added tomorrow is in every suite that uses this, and one whose
fields are of a new kind fails there until an example of that kind is added below. Positions and
token ids are small numbers that both occur in `PROMPTS`.
"""

from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from typing import Any, get_args

import torch

import workbench as wb
from tests import tiny
from workbench.core.buckets import PartOperator
from workbench.core.gates import Gate
from workbench.core.operators import Function, Operator
from workbench.core.place import Everywhere
from workbench.core.schedules import Schedule
from workbench.core.standing import Scope

PROMPTS = ((5, 1, 2, 3, 0, 4, 1), (1, 2), (3, 1, 2, 4, 0, 5, 2, 1, 3))
SCHEDULES: dict[str, Schedule] = {
    "linear": wb.schedules.linear(1.0, 0.25, steps=3, prompt_value=0.5),
    "cosine": wb.schedules.cosine(0.5, 2.0, steps=4),
    "exponential": wb.schedules.exponential(1.0, 0.1, steps=5, prompt_value=0.0),
    "first": wb.schedules.first(2, prompt_value=0.0),
}
GATES: dict[str, Gate] = {
    "above": wb.gates.above(tiny.normal(24, seed=11), 0.3),
    "below, earlier": wb.gates.below(tiny.normal(24, seed=12), 1.0, site="blocks.0.hook_resid_mid"),
    "sigmoid": wb.gates.sigmoid(tiny.normal(24, seed=13), 0.2, site="hook_embed"),
    "by the prompt": wb.gates.above(tiny.normal(24, seed=14), -8.7, hold="prompt"),
    "sigmoid by the prompt": wb.gates.sigmoid(tiny.normal(24, seed=15), hold="prompt"),
    "while": wb.gates.below(tiny.normal(24, seed=16), 3.0, hold="while"),
}
OWN = ("vocabulary",)  # fields that a plan fills in when it is compiled


def leaves(kind: type) -> Iterator[type]:
    """All classes of a kind that the library defines."""
    for one in kind.__subclasses__():
        if one.__module__.startswith("workbench."):
            yield one
            yield from leaves(one)


def values_of(name: str, annotation: Any, width: int) -> list[Any]:
    """Values for a field, by its type."""
    by_name: dict[str, list[Any]] = {
        "closing": [(3,)],
        "stop": [6],
        "factor": [-0.5],
        "pattern": ["[\x01\x03]\x02?", "\x02(?!\x03)"],
    }
    if name in by_name:
        return by_name[name]
    orthonormal = torch.linalg.qr(tiny.normal(max(width, 2), 2, seed=9)).Q.T.contiguous()
    known: dict[str, list[Any]] = {
        "float": [0.75],
        "int": [2],
        "int | None": [1],
        "bool": [False, True],
        "str": ["\x01\x02"],
        "tuple[int, ...]": [(1, 2)],
        "tuple[tuple[int, int], ...]": [((0, 2), (4, 20))],
        "tuple[workbench.core.standing.Scope, ...]": [(Everywhere(),)],
        "rank d": [orthonormal],
        "...": [tiny.normal(width, seed=5)],
        "d": [tiny.normal(width, seed=6)],
    }
    kinds = [one for one in get_args(annotation) if hasattr(one, "dim_str")]  # Float or Int
    written = getattr(next(iter(kinds), annotation), "dim_str", str(annotation)).strip()
    written = annotation.__name__ if written.startswith("<class '") else written
    if written not in known:
        message = f"tests/contracts.py has no example for a field {name}: {written}"
        raise LookupError(message)
    return known[written]


def examples(kind: type, width: int) -> Iterator[Any]:
    """Of one class, from its fields."""
    given = [field for field in fields(kind) if field.name not in OWN]
    names = [field.name for field in given]
    choices = [values_of(field.name, field.type, width) for field in given]
    for values in product(*choices):
        yield kind(**dict(zip(names, values, strict=True)))


def operators(width: int) -> dict[str, Operator]:
    """One of each operator that a plan may hold as data; `PartOperator` is made within a run."""
    kinds = [kind for kind in leaves(Operator) if kind not in (Function, PartOperator)]
    return {kind.__name__: next(examples(kind, width)) for kind in kinds}


def scopes() -> dict[str, Scope]:
    """One or two of each scope, and some combinations of them."""
    kinds = [kind for kind in leaves(Scope) if kind is not type(wb.scopes.union(0))]
    made = {
        f"{kind.__name__}{place or ''}": one
        for kind in kinds
        for place, one in enumerate(examples(kind, 0))
    }
    made["without"] = wb.scopes.without("all", "generated", 0)
    made["overlap"] = wb.scopes.overlap(wb.scopes.after([1, 2]), "generated")
    made["until"] = wb.scopes.until("\x02")
    return made
