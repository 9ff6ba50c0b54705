"""What checks of one model found: a row per check, kept in the user's cache by fingerprint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast, final

import torch
from typing_extensions import override

from workbench.core.errors import FormatError
from workbench.core.provenance import package_version
from workbench.core.result import Table
from workbench.core.store import write_json
from workbench.models.cache import workbench_cache
from workbench.models.tables import read_table

FORMAT = "workbench.verification"
KEYS = frozenset("name measured allowed unit seconds note".split())


class Measured(NamedTuple):
    """One number, and the most it may be; None: nothing is asked of it, it is told."""

    value: float
    allowed: float | None
    unit: str
    note: str = ""


@final
@dataclass(frozen=True)
class Row:
    """One check: what was measured, the most that is allowed, and what it took."""

    name: str
    measured: float | None  # None: the check itself failed, as its note says
    allowed: float | None  # None: told, and not judged
    unit: str
    seconds: float
    note: str

    @property
    def passed(self) -> bool:
        """Whether the number is within what is allowed; NaN is not."""
        if self.measured is None:
            return False
        return self.allowed is None or self.measured <= self.allowed


@final
@dataclass(frozen=True)
class Report:
    """All checks of a model, and those that do not apply to it, with the reason."""

    model: str
    fingerprint: str
    rows: tuple[Row, ...]
    left_out: Mapping[str, str]
    workbench: str = field(default_factory=package_version)
    torch: str = torch.__version__

    @property
    def passed(self) -> bool:
        """Whether every check that applies passed."""
        return all(row.passed for row in self.rows)

    def __getitem__(self, name: str) -> Row:
        return {row.name: row for row in self.rows}[name]

    def table(self) -> Table:
        """One row per check."""
        return Table(
            {
                "check": [row.name for row in self.rows],
                "measured": [_number(row.measured) for row in self.rows],
                "allowed": [_number(row.allowed) for row in self.rows],
                "unit": [row.unit for row in self.rows],
                "passed": [_verdict(row) for row in self.rows],
                "seconds": [f"{row.seconds:.2f}" for row in self.rows],
                "note": [row.note for row in self.rows],
            }
        )

    def save(self, file: str | Path | None = None) -> Path:
        """Writes the report as JSON; without a file into the user's cache, by fingerprint."""
        target = kept_at(self.fingerprint) if file is None else Path(file)
        data = asdict(self)
        rows = [{**row, "measured": _plain(row["measured"])} for row in data["rows"]]
        write_json(target, {"format": FORMAT, **data, "rows": rows})
        return target

    @override
    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        left = [f"not checked: {name} ({reason})" for name, reason in self.left_out.items()]
        return "\n".join(
            [f"{self.model} ({self.fingerprint}): {verdict}", str(self.table()), *left]
        )


def kept_at(fingerprint: str) -> Path:
    """Where the report of the model with this fingerprint is kept."""
    return workbench_cache() / "verified" / f"{fingerprint}.json"


def read_report(file: str | Path) -> Report:
    """A report that was saved.

    Raises:
        FormatError: If the file is missing or no report.
    """
    data = read_table(Path(file))
    if data.get("format") != FORMAT:
        raise FormatError(f"{file}: expected a saved report of checks; it is something else.")
    try:
        rows = tuple(_row(row) for row in data["rows"])
        left = {str(name): str(reason) for name, reason in data["left_out"].items()}
        model, fingerprint = str(data["model"]), str(data["fingerprint"])
        return Report(model, fingerprint, rows, left, str(data["workbench"]), str(data["torch"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{file}: the report is damaged ({error!r}); verify again.") from None


def _row(data: object) -> Row:
    table = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    if table.keys() != KEYS:
        message = f"a row has {sorted(map(str, table))}"
        raise ValueError(message)
    measured, allowed = _read(table["measured"]), _read(table["allowed"])
    seconds = float(table["seconds"])
    return Row(str(table["name"]), measured, allowed, str(table["unit"]), seconds, table["note"])


def _read(value: object) -> float | None:
    return None if value is None else float(cast("float", value))


def _plain(value: float | None) -> float | str | None:
    """A number as JSON can hold it, which has neither NaN nor infinity."""
    finite = value is None or abs(value) < float("inf")
    return value if finite else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _verdict(row: Row) -> str:
    if row.measured is not None and row.allowed is None:
        return "told"
    return "yes" if row.passed else "NO"
