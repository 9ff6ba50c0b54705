"""Activations on disk, memory-mapped: a slice costs its own bytes, however large the store.

A folder holds `index.json` and `shard_00000.safetensors` onwards; a shard has the rows of
consecutive texts, one tensor per site, and which text, position and token each row is of.
`workbench.core.activation_writer` makes it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.core.activation_index import (
    COLUMNS,
    Index,
    Shard,
    check_recipe,
    plan_digest,
    read_index,
    shard_file,
)
from workbench.core.data import token_rows
from workbench.core.errors import FormatError, OptionError
from workbench.core.options import count, index
from workbench.core.plan import Interventions, as_plan
from workbench.core.protocols import Model
from workbench.core.reader import Text, tokens_digest
from workbench.core.reading import ReadPositions, Where, label_of
from workbench.core.sinks.sink import Sink, push_all, sinks_of
from workbench.core.sites import Selector, Site, Sites, one_site, select

Values = Mapping[Site, Float[Tensor, "_row _d"]]


@final
@dataclass(frozen=True, eq=False)
class ActivationStore:
    """The rows of a harvest, on disk: by range, by text, in order or shuffled.

    A frozen view, so threads may share it. Rows of one shard are views of the mapped file: nothing
    is read before they are used, and they must not be written into.
    """

    folder: Path
    index: Index

    @staticmethod
    def open(  # noqa: PLR0913 - all that can be asked of a store
        folder: str | Path,
        *,
        model: Model | None = None,
        texts: Sequence[Text] | None = None,
        sites: Selector | None = None,
        position: ReadPositions | None = None,
        dtype: torch.dtype | None = None,
        plan: Interventions | None = None,
    ) -> "ActivationStore":
        """Opens a finished store; whatever is given must be what it was made of.

        Reads the index and the headers of the shards. `verify` reads everything.

        Raises:
            MismatchError: If the store was made of something else; says what differs.
            FormatError: If it is unfinished, or a file is missing, cut off or no shard of it.
            OptionError: If `texts` or `sites` are given without the model that reads them.
        """
        folder = Path(folder)
        index = read_index(folder)
        expected = _expected(model, texts, sites)
        if position is not None:
            expected["position"] = label_of(position)
        if dtype is not None:
            expected["dtype"] = str(dtype).removeprefix("torch.")
        if plan is not None:
            expected["plan"] = plan_digest(as_plan(plan))
        check_recipe(folder, index, expected)
        if index.missing:
            there = len(index.shards) - len(index.missing)
            raise FormatError(
                f"{folder} is unfinished: {there} of {len(index.shards)} shards are there. "
                "Make the call that began it again; it goes on where it was."
            )
        for number, shard in enumerate(index.shards):
            check_shard(folder, index, number, shard)
        return ActivationStore(folder, index)

    @property
    def sites(self) -> Sites:
        """Where the rows were read, in forward order."""
        return self.index.sites

    @property
    def n_rows(self) -> int:
        """How many rows each site has."""
        return self.index.n_rows

    @property
    def n_texts(self) -> int:
        """How many texts the rows are of."""
        return self.index.shards[-1].texts[1]

    def rows(
        self, site: str | Site, start: int = 0, stop: int | None = None
    ) -> Float[Tensor, "row d"]:
        """The rows from `start` to `stop` (exclusive; None: the end) of a site.

        Raises:
            UnknownNameError: If the store does not have the site.
            OptionError: If the range is not within the rows.
        """
        place, (start, stop) = one_site(site, self.sites), self._range(start, stop)
        parts = [
            self._tensor(number, str(place))[a:b] for number, a, b in self._pieces(start, stop)
        ]
        if not parts:
            width = self.index.widths[self.sites.index(place)]
            return torch.empty(0, width, dtype=self.index.dtype)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def where(self, start: int = 0, stop: int | None = None) -> Where:
        """What the rows from `start` to `stop` were read of.

        Raises:
            OptionError: If the range is not within the rows.
        """
        start, stop = self._range(start, stop)
        pieces = list(self._pieces(start, stop))
        none = torch.empty(0, dtype=torch.long)
        columns = (
            torch.cat([none, *(self._tensor(i, name)[a:b].long() for i, a, b in pieces)])
            for name in COLUMNS
        )
        return Where(torch.arange(start, stop), *columns)

    def of_text(self, site: str | Site, text: int) -> Float[Tensor, "row d"]:
        """The rows of one text, by its place among the texts.

        Raises:
            UnknownNameError: If the store does not have the site.
            OptionError: If there is no such text.
        """
        text = index("text", text)
        if not 0 <= text < self.n_texts:
            raise OptionError("text", f"below the {self.n_texts} texts", text)
        number = next(i for i, shard in enumerate(self.index.shards) if text < shard.texts[1])
        texts, first = self._tensor(number, "text"), self.index.shards[number].rows[0]
        ends = torch.tensor([text, text + 1], dtype=texts.dtype)
        low, high = (first + int(place) for place in torch.searchsorted(texts, ends))
        return self.rows(site, low, high)

    def shuffled(
        self,
        size: int,
        *,
        seed: int,
        sites: Selector = "*",
        stretch: int = 4096,
        window: int = 8,
    ) -> Iterator[tuple[Values, Where]]:
        """Every row once, `size` at a time, in an order that the seed decides.

        Stretches of rows that lie together are drawn, `window` of them are held in memory, and
        their rows are drawn from; so each is read once, at one go. The last batch may be smaller.

        Raises:
            OptionError: If a number is below 1, or the seed below 0.
            UnknownNameError: If the store lacks one of the sites.
        """
        size, window = count("size", size), count("window", window)
        wanted = select(sites, self.sites)
        draws = torch.Generator().manual_seed(count("seed", seed, least=0))
        stretches = list(self._stretches(count("stretch", stretch)))
        order = torch.randperm(len(stretches), generator=draws).tolist()
        return self._drawn(wanted, [stretches[i] for i in order], size, window, draws)

    def pour(self, sinks: Sink[object] | Iterable[Sink[object]], *, sites: Selector = "*") -> None:
        """Pushes all rows into sinks, in order, a stretch at a time.

        Raises:
            OptionError: If a sink is none.
            UnknownNameError: If the store lacks one of the sites.
        """
        parts, wanted = sinks_of(sinks), select(sites, self.sites)
        for start, stop in self._stretches(4096):
            values = {site: self.rows(site, start, stop) for site in wanted}
            push_all(parts, values, self.where(start, stop))

    def verify(self) -> None:
        """Reads every byte and holds it against its digest.

        Raises:
            FormatError: If a shard is not what was written; names the file.
        """
        for number, shard in enumerate(self.index.shards):
            check_bytes(shard_file(self.folder, number), shard)

    def _drawn(
        self,
        sites: Sites,
        stretches: Sequence[tuple[int, int]],
        size: int,
        window: int,
        draws: torch.Generator,
    ) -> Iterator[tuple[Values, Where]]:
        left: list[tuple[Values, Where]] = []
        for first in range(0, len(stretches), window):
            held = [
                ({site: self.rows(site, *ends) for site in sites}, self.where(*ends))
                for ends in stretches[first : first + window]
            ]
            values, where = _joined([*left, *held], sites)
            order = torch.randperm(len(where), generator=draws)
            last = first + window >= len(stretches)
            whole = len(where) if last else len(where) - len(where) % size
            for at in range(0, whole, size):
                some = order[at : min(at + size, whole)]
                yield {site: rows[some] for site, rows in values.items()}, where[some]
            rest = order[whole:]
            left = [({site: rows[rest] for site, rows in values.items()}, where[rest])]

    def _range(self, start: int, stop: int | None) -> tuple[int, int]:
        low, high = index("start", start), self.n_rows if stop is None else index("stop", stop)
        if not 0 <= low <= high <= self.n_rows:
            raise OptionError("start and stop", f"a range within {self.n_rows} rows", (low, high))
        return low, high

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The shards that hold a range, and which of their rows do."""
        for number, shard in enumerate(self.index.shards):
            low, high = max(start, shard.rows[0]), min(stop, shard.rows[1])
            if low < high:
                yield number, low - shard.rows[0], high - shard.rows[0]

    def _stretches(self, length: int) -> Iterator[tuple[int, int]]:
        for shard in self.index.shards:
            for start in range(*shard.rows, length):
                yield start, min(start + length, shard.rows[1])

    def _tensor(self, number: int, name: str) -> Tensor:
        return opened(shard_file(self.folder, number)).get_tensor(name)


def opened(file: Path) -> Any:
    """A shard, mapped.

    Raises:
        FormatError: If it is missing or damaged.
    """
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{file} cannot be read: {error}. {_AGAIN}") from None


_AGAIN = "Delete it and make the call that wrote the store again; it writes what is missing."


def check_shard(folder: Path, index: Index, number: int, shard: Shard) -> None:
    """Refuses a shard whose size or header is not what the index says; reads no more of it.

    Raises:
        FormatError: If so; names the file.
    """
    file = shard_file(folder, number)
    size = file.stat().st_size if file.is_file() else 0
    if size != shard.size:
        raise FormatError(f"{file} has {size:,} bytes, {shard.size:,} were written. {_AGAIN}")
    content = opened(file)
    n_rows = shard.rows[1] - shard.rows[0]
    expected = {
        **{
            str(site): [n_rows, width]
            for site, width in zip(index.sites, index.widths, strict=True)
        },
        **{name: [n_rows] for name in COLUMNS},
    }
    names: list[str] = content.keys()
    found = {name: content.get_slice(name).get_shape() for name in names}
    if found != expected:
        raise FormatError(f"{file} is no shard of this store: it has {found}. {_AGAIN}")


def check_bytes(file: Path, shard: Shard) -> None:
    """Refuses a shard that is not, byte for byte, what was written.

    Raises:
        FormatError: If it is missing or differs.
    """
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FormatError(f"{file} cannot be read: {error}. {_AGAIN}") from None
    if found != shard.sha256:
        raise FormatError(f"{file} has changed since it was written. {_AGAIN}")


def _expected(
    model: Model | None, texts: Sequence[Text] | None, sites: Selector | None
) -> dict[str, object]:
    if model is None:
        if texts is not None or sites is not None:
            raise OptionError("model", "given too, as it reads texts and knows sites", None)
        return {}
    expected: dict[str, object] = {
        "fingerprint": model.fingerprint,
        "model_dtype": str(model.dtype).removeprefix("torch."),
    }
    if texts is not None:
        expected["data"] = tokens_digest(token_rows(model, texts))
    if sites is not None:
        expected["sites"] = tuple(map(str, select(sites, model.sites)))
    return expected


def _joined(parts: Sequence[tuple[Values, Where]], sites: Sites) -> tuple[Values, Where]:
    values = {site: torch.cat([values[site] for values, _ in parts]) for site in sites}
    return values, Where.joined(where for _, where in parts)
