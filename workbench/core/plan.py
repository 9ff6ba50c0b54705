"""Plans: an ordered tuple of interventions, saved as JSON and safetensors; data, never code.

A folder holds `plan.json` (readable, versioned) and `plan.safetensors` (the operands). The same
plan runs in a notebook, on the command line and in the browser.
"""

import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from workbench.core.errors import FormatError, OptionError, WorkbenchError
from workbench.core.gates import gate_from_json
from workbench.core.interventions import Intervention
from workbench.core.operators import operator_from
from workbench.core.options import expect, iterated
from workbench.core.place import scope_from_json
from workbench.core.schedules import schedule_from_json
from workbench.core.store import is_folder, read_text, write_json, write_tensors

FORMAT = "workbench.plan"
VERSION = 1
LARGEST = 2**30  # bytes of a packed plan


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """Interventions in the order in which they act at a site."""

    interventions: tuple[Intervention, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what is no tuple of interventions.

        Raises:
            OptionError: If something else is in it.
        """
        for part in expect("plan", self.interventions, tuple, "a tuple of Interventions"):
            expect("plan", part, Intervention, "made of Interventions")

    def __iter__(self) -> Iterator[Intervention]:
        return iter(self.interventions)

    def __len__(self) -> int:
        return len(self.interventions)

    def __getitem__(self, index: int) -> Intervention:
        return self.interventions[index]

    def __add__(self, other: "Interventions") -> "Plan":
        return Plan(self.interventions + as_plan(other).interventions)

    @property
    def replayable(self) -> bool:
        """Whether it can be saved and run again: no bare function in it."""
        return all(intervention.replayable for intervention in self)

    def save(self, folder: str | Path) -> Path:
        """Writes `plan.json` and `plan.safetensors`; returns the folder.

        Raises:
            NotReplayableError: If an intervention is a bare function.
        """
        folder = Path(folder)
        data, tensors = to_data(self)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "plan.safetensors", tensors)
        write_json(folder / "plan.json", data)
        return folder

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Reads a folder that `save` wrote, its `plan.json`, or both of its files in a `.zip`.

        Raises:
            FormatError: If a file is missing, truncated or not a plan.
        """
        path = Path(path)
        if path.suffix == ".zip":
            text, tensors = _unpacked(path)
            return from_data(_parsed(path, text), tensors)
        file = path / "plan.json" if is_folder(path) else path
        text = read_text(file)
        return from_data(_parsed(file, text), _read_tensors(file.with_name("plan.safetensors")))


Interventions = Plan | Iterable[Intervention]


def as_plan(plan: Interventions) -> Plan:
    """A plan from whatever `plan=` accepts.

    Raises:
        OptionError: If something else than an intervention is in it.
    """
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, Intervention):
        raise OptionError("plan", "a Plan or a list: plan=[intervention]", str(plan))
    return Plan(tuple(iterated("plan", plan)))


def to_data(plan: Plan) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The plan as JSON data and the tensors it refers to by `index.name`.

    Raises:
        NotReplayableError: If an intervention is a bare function.
    """
    tensors: dict[str, Tensor] = {}
    items: list[dict[str, Any]] = []
    for index, one in enumerate(plan):
        operands = one.operator.tensors()
        tensors.update({f"{index}.{name}": tensor for name, tensor in operands.items()})
        if one.gate is not None:
            tensors[f"{index}.gate"] = one.gate.vector
        items.append(
            {
                "sites": list(one.sites),
                "operator": one.operator.name,
                "scalars": dict(one.operator.scalars()),
                "tensors": sorted(operands),
                "positions": one.positions.to_json(),
                "heads": one.heads,
                "rows": one.rows,
                "neurons": one.neurons,
                "keys": one.keys,
                "strength": one.strength,
                "unit": one.unit,
                "unit_size": one.unit_size,
                "schedule": None if one.schedule is None else one.schedule.to_json(),
                "gate": None if one.gate is None else one.gate.to_json(),
                "optional": one.optional,
                "label": one.label,
            }
        )
    return {"format": FORMAT, "version": VERSION, "interventions": items}, tensors


def from_data(data: object, tensors: Mapping[str, Tensor]) -> Plan:
    """The plan that `to_data` described.

    Raises:
        FormatError: If the data is no plan, of another version, or lacks a tensor.
    """
    match data:
        case {"format": "workbench.plan", "version": int() as version, "interventions": [*items]}:
            if version != VERSION:
                raise FormatError(
                    f"The plan has version {version}; this workbench reads {VERSION}."
                )
            return Plan(tuple(_intervention(i, item, tensors) for i, item in enumerate(items)))
        case _:
            raise FormatError('No plan: expected {"format": "workbench.plan", "version": 1, …}.')


_KEYS = frozenset(
    (
        "sites operator scalars tensors positions heads rows neurons strength unit unit_size "
        "optional label"
    ).split()
)
_LATER: Mapping[str, Any] = MappingProxyType(
    {"keys": None, "schedule": None, "gate": None}
)  # what older files may lack


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # NaN and infinity are not, nor 10**400


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_indices(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(type(one) is int for one in value))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


# What each entry must be; `scope_from_json` sees to the positions. Nothing is converted: "false"
# is no truth value and 1.5 no head.
_FITS: Mapping[str, Callable[[object], bool]] = MappingProxyType(
    {
        "sites": _is_texts,
        "operator": _is_text,
        "scalars": _is_numbers,
        "tensors": _is_texts,
        "heads": _is_indices,
        "rows": _is_indices,
        "neurons": _is_indices,
        "keys": _is_indices,
        "strength": _is_number,
        "unit": _is_text,
        "unit_size": _is_number,
        "optional": lambda value: isinstance(value, bool),
        "label": _is_text,
    }
)


def _intervention(index: int, item: Any, tensors: Mapping[str, Tensor]) -> Intervention:
    if not isinstance(item, dict) or not _KEYS <= set(item) <= _KEYS | set(_LATER):
        allowed = ", ".join(sorted(_KEYS | set(_LATER)))
        raise FormatError(f"plan[{index}] must have exactly the keys {allowed}.")
    item = {**_LATER, **item}
    wrong = [key for key, fits in _FITS.items() if not fits(item[key])]
    if wrong:
        shown = ", ".join(f"{key} = {item[key]!r:.60}" for key in wrong)
        raise FormatError(f"plan[{index}] is malformed: {shown}.")
    operands = _operands(index, item["tensors"], tensors)
    scalars = {name: float(value) for name, value in item["scalars"].items()}
    timed, gated = item["schedule"], item["gate"]
    judge = {} if gated is None else _operands(index, ["gate"], tensors)
    try:
        return Intervention(
            item["sites"],
            operator_from(item["operator"], scalars, operands),
            positions=scope_from_json(item["positions"]),
            heads=item["heads"],
            rows=item["rows"],
            neurons=item["neurons"],
            keys=item["keys"],
            strength=float(item["strength"]),
            unit=item["unit"],
            unit_size=float(item["unit_size"]),
            schedule=None if timed is None else schedule_from_json(timed),
            gate=None if gated is None else gate_from_json(gated, judge["gate"]),
            optional=item["optional"],
            label=item["label"],
        )
    except WorkbenchError as error:
        raise FormatError(f"plan[{index}] cannot be used: {error}") from None


def _operands(index: int, names: Iterable[str], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    missing = [name for name in names if f"{index}.{name}" not in stored]
    if missing:
        raise FormatError(f"plan[{index}]: the tensors {missing} are not in plan.safetensors.")
    found = {name: stored[f"{index}.{name}"] for name in names}
    strange = [f"{name} ({t.dtype})" for name, t in found.items() if not t.is_floating_point()]
    if strange:
        raise FormatError(f"plan[{index}]: {', '.join(strange)} is not floating point.")
    return found


def _parsed(file: Path, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number too long to read
        raise FormatError(f"{file} is not JSON: {error}.") from None


def _unpacked(file: Path) -> tuple[str, Mapping[str, Tensor]]:
    """The two files of a packed plan; nothing is written anywhere.

    Raises:
        FormatError: If it is no such archive, or too large.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {one.filename: one.file_size for one in archive.infolist()}
            if sum(sizes.values()) > LARGEST:
                raise FormatError(f"{file} would be over {LARGEST:,} bytes, unpacked.")
            text = archive.read("plan.json").decode()
            packed = archive.read("plan.safetensors") if "plan.safetensors" in sizes else None
        return text, {} if packed is None else load(packed)
    except (zipfile.BadZipFile, SafetensorError, OSError, KeyError, ValueError) as error:
        raise FormatError(f"{file} holds no plan: {error}. Save or pack it again.") from None


def _read_tensors(file: Path) -> Mapping[str, Tensor]:
    if not file.exists():
        return {}
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{file} cannot be read: {error}. Save the plan again.") from None
