"""Labelled texts: what a probe is fitted on, and what must not be split apart.

Notable: a *group* is what must stay on one side of a split (a document, a text and its duplicates).
It is part of the data, so that no probe can be tested on what it was fitted on by forgetting it.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from typing_extensions import override

from workbench.core import options
from workbench.core.errors import EmptySelectionError, OptionError, ShapeError
from workbench.core.provenance import digest


@final
@dataclass(frozen=True, repr=False)
class TextData:
    """Texts with a class each, and where they come from; columns may be given as any sequence.

    Raises:
        ShapeError: If a column is not as long as the texts.
        OptionError: If a column holds what it cannot, or a label has no name.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]  # places in `label_names`
    label_names: tuple[str, ...]
    groups: tuple[int, ...]  # rows of one group belong on one side of a split
    licence: str = ""
    citation: str = ""
    ratings: tuple[float, ...] | None = None  # the number behind the label, where there is one

    def __post_init__(self) -> None:
        self._read_columns()
        counts = {"labels": len(self.labels), "groups": len(self.groups)}
        if self.ratings is not None:
            counts["ratings"] = len(self.ratings)
        for column, length in counts.items():
            if length != len(self.texts):
                expected = f"{len(self.texts)} values, one for each text"
                raise ShapeError(f"{self.name}: {column}", expected, str(length))
        known = range(len(self.label_names))
        wrong = next((label for label in self.labels if label not in known), None)
        if wrong is not None:
            raise OptionError("labels", f"0 to {len(known) - 1}", wrong)

    def _read_columns(self) -> None:
        fields = {
            "name": options.text("name", self.name),
            "texts": _texts("texts", self.texts),
            "labels": _whole("labels", self.labels),
            "label_names": _texts("label_names", self.label_names),
            "groups": _whole("groups", self.groups),
            "licence": options.text("licence", self.licence),
            "citation": options.text("citation", self.citation),
            "ratings": None if self.ratings is None else _numbers("ratings", self.ratings),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # the only way into a frozen dataclass

    def __len__(self) -> int:
        return len(self.texts)

    @override
    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {label}" for label, count in self.counts().items())
        return f"TextData({self.name!r}, {len(self)} texts: {counts})"

    @property
    def digest(self) -> str:
        """A short SHA-256 of texts, labels and groups; equal data have equal digests."""
        return digest([self.texts, self.labels, self.label_names, self.groups])

    def counts(self) -> Mapping[str, int]:
        """How many texts each class has."""
        return {name: self.labels.count(label) for label, name in enumerate(self.label_names)}

    def subset(self, indices: Iterable[int]) -> "TextData":
        """These rows, in this order; each keeps its group.

        Raises:
            EmptySelectionError: If there is none.
            OptionError: If one is not a row.
        """
        rows = _whole("indices", indices)
        if not rows:
            raise EmptySelectionError(f"{self.name}: a subset of no rows; give at least one.")
        wrong = next((row for row in rows if not 0 <= row < len(self)), None)
        if wrong is not None:
            raise OptionError("indices", f"rows from 0 to {len(self) - 1}", wrong)
        return replace(
            self,
            texts=tuple(self.texts[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            ratings=None if self.ratings is None else tuple(self.ratings[row] for row in rows),
        )

    def sample(self, n: int, seed: int = 0) -> "TextData":
        """`n` rows, as many of each class as there can be, in their old order.

        Each keeps its group. The same `seed` gives the same rows, and a smaller sample is part of
        a larger one.

        Raises:
            OptionError: If `n` is not from 1 to the number of rows, or `seed` is below 0.
        """
        n, seed = options.index("n", n), options.count("seed", seed, least=0)
        if not 1 <= n <= len(self):
            raise OptionError("n", f"from 1 to {len(self)}", n)
        shuffled = random.Random(seed)
        by_class: list[list[int]] = []
        for label in range(len(self.label_names)):
            rows = [row for row, own in enumerate(self.labels) if own == label]
            shuffled.shuffle(rows)
            by_class.append(rows)
        shares = even_shares([len(rows) for rows in by_class], n)
        taken = [row for rows, share in zip(by_class, shares, strict=True) for row in rows[:share]]
        return self.subset(sorted(taken))


@final
@dataclass(frozen=True)
class Dataset:
    """A data set that can be loaded by name: one file of `probes/datasets` defines one."""

    asset: str  # what is pulled when absent
    build: Callable[[], TextData]
    description: str


def even_shares(available: Sequence[int], n: int) -> tuple[int, ...]:
    """How many to take of each class: as even as what is available allows, `n` in all."""
    shares = [0] * len(available)
    while left := n - sum(shares):
        open_classes = [place for place, most in enumerate(available) if shares[place] < most]
        if not open_classes:
            break
        each = max(1, left // len(open_classes))
        for place in open_classes[:left]:  # fewer left than classes: one for each of the first
            shares[place] = min(available[place], shares[place] + each)
    return tuple(shares)


def group_numbers(texts: Sequence[str], keys: Sequence[object] | None = None) -> tuple[int, ...]:
    """Groups counted from 0: rows with the same key, or the same text, are in one.

    Without `keys` each row is a group of its own, but for duplicates.
    """
    parent: dict[object, object] = {}

    def root(node: object) -> object:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    nodes = [("row", row) if keys is None else ("key", keys[row]) for row in range(len(texts))]
    for node, text in zip(nodes, texts, strict=True):
        parent[root(("text", text))] = root(node)
    numbers: dict[object, int] = {}
    return tuple(numbers.setdefault(root(node), len(numbers)) for node in nodes)


def _texts(option: str, values: Iterable[str]) -> tuple[str, ...]:
    return options.texts(option, tuple(options.iterated(option, values)))


def _whole(option: str, values: Iterable[int]) -> tuple[int, ...]:
    return tuple(options.index(option, value) for value in options.iterated(option, values))


def _numbers(option: str, values: Iterable[float]) -> tuple[float, ...]:
    return tuple(options.number(option, value) for value in options.iterated(option, values))
