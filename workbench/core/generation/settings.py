"""What each row of a generation is told: its plan, sampler, limit and end tokens and stop strings.

Notable: every option is one value for all rows or a list with one per row; nothing is guessed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from workbench.core.data import Batch
from workbench.core.errors import OptionError, PromptError
from workbench.core.options import count, flag, iterated, texts
from workbench.core.plan import Interventions, Plan, as_plan
from workbench.core.protocols import Model
from workbench.core.sampling import Sampler

Temperature = float | Sequence[float]
TopK = int | None | Sequence[int | None]
TopP = float | None | Sequence[float | None]
Stop = str | Sequence[str] | Sequence[Sequence[str]]
Limit = int | Sequence[int]
StopIds = Sequence[int] | Sequence[Sequence[int]]


@final
@dataclass(frozen=True)
class Settings:
    """The rows' samplers, most tokens, and what ends them; and whose most the context cut."""

    samplers: tuple[Sampler, ...]
    limits: tuple[int, ...]
    stops: tuple[tuple[str, ...], ...]
    ends: tuple[frozenset[int], ...]
    cut: tuple[bool, ...]


def settings_of(  # noqa: PLR0913 - the options of a generation
    model: Model,
    batch: Batch,
    *,
    temperature: Temperature,
    top_k: TopK,
    top_p: TopP,
    max_new_tokens: Limit,
    stop: Stop,
    stop_token_ids: StopIds = (),
    ignore_eos: bool | Sequence[bool] = False,
) -> Settings:
    """The options of each row, checked.

    Raises:
        OptionError: If one is outside its range, or a list is not one per row, or the model reads
            both ways.
        PromptError: If a prompt leaves no room.
    """
    if not (model.causal or model.sizes.predicts):
        raise OptionError(
            "model", "causal: one that reads both ways says no next token", model.name
        )
    rows = len(batch.tokens)
    limits = _each("max_new_tokens", max_new_tokens, rows)
    limits = [count("max_new_tokens", one) for one in limits]
    stops = _stops(stop, rows)
    if any(stops) and model.tokenizer is None:
        raise OptionError("stop", "left out: this model has no tokenizer", stop)
    heats, ks = _each("temperature", temperature, rows), _each("top_k", top_k, rows)
    ps = _each("top_p", top_p, rows)
    samplers = tuple(Sampler(*one) for one in zip(heats, ks, ps, strict=True))
    rooms = (model.sizes.n_ctx - batch.prompt).tolist()
    if min(rooms) < 1:
        raise PromptError(
            f"Prompt {rooms.index(min(rooms))} fills the whole context of {model.sizes.n_ctx} "
            "tokens; nothing can be added. Shorten it."
        )
    cut = tuple(limit > room for limit, room in zip(limits, rooms, strict=True))
    ends = _ends(model, stop_token_ids, rows, ignore=ignore_eos)
    return Settings(samplers, tuple(map(min, limits, rooms)), stops, ends, cut)


def _ends(
    model: Model, ids: StopIds, rows: int, *, ignore: bool | Sequence[bool]
) -> tuple[frozenset[int], ...]:
    """Which tokens end each row: the model's own, unless ignored, and the caller's."""
    given = list[Any](iterated("stop_token_ids", ids))
    nested = bool(given) and all(isinstance(one, Iterable) for one in given)
    each: list[Any] = _each("stop_token_ids", given, rows) if nested else [given] * rows
    known = () if model.tokenizer is None else model.tokenizer.eos_ids
    return tuple(
        frozenset(() if flag("ignore_eos", out) else known)
        | {_token(one, model.sizes.d_vocab) for one in own}
        for own, out in zip(each, _each("ignore_eos", ignore, rows), strict=True)
    )


def _token(token: object, d_vocab: int) -> int:
    """A token of the vocabulary.

    Raises:
        OptionError: If it is none.
    """
    found = count("stop_token_ids", token, least=0)
    if found >= d_vocab:
        raise OptionError("stop_token_ids", f"token ids within 0…{d_vocab - 1}", token)
    return found


def plan_of(plan: Interventions, plans: Iterable[Interventions] | None, rows: int) -> Plan:
    """One plan for the batch: what holds for all rows, then each row's own.

    Raises:
        OptionError: If there are not as many plans as rows, or one of them names rows itself.
    """
    shared = as_plan(plan)
    if plans is None:
        return shared
    own = [as_plan(one) for one in iterated("plans", plans)]
    if len(own) != rows:
        raise OptionError("plans", f"{rows} plans, one per row (() for none)", len(own))
    parts = list(shared)
    # By place in the plans: neighbours that differ in their row alone are done as one.
    for place in range(max(map(len, own), default=0)):
        for row, one in enumerate(own):
            if place < len(one):
                if one[place].rows is not None:
                    raise OptionError(f"plans[{row}][{place}].rows", "left out", one[place].rows)
                parts.append(one[place].on_rows([row]))
    return Plan(tuple(parts))


def _each(option: str, value: Any, rows: int) -> list[Any]:
    """One value per row, of a single one or a list.

    Raises:
        OptionError: If a list is not one per row.
    """
    single = isinstance(value, str) or not isinstance(value, Iterable)
    if single or (isinstance(value, Tensor) and not value.ndim):
        return [value] * rows
    given = list(iterated(option, value))
    if len(given) != rows:
        raise OptionError(option, f"one value, or {rows}, one per row", given)
    return given


def _stops(stop: Stop, rows: int) -> tuple[tuple[str, ...], ...]:
    parts = [stop] if isinstance(stop, str) else list(iterated("stop", stop))
    nested = bool(parts) and not any(isinstance(part, str) for part in parts)
    each: list[Any] = _each("stop", parts, rows) if nested else [parts] * rows
    found = tuple(texts("stop", one) for one in each)
    if any("" in one for one in found):
        raise OptionError("stop", "texts that are not empty", stop)
    return found


def chunk_of(prefill_chunk: int | None, *, use_cache: bool) -> int | None:
    """The columns of one pass over the prompts.

    Raises:
        OptionError: If it is below 1, or there is no cache to keep the chunks in.
    """
    if prefill_chunk is None:
        return None
    if not use_cache:
        raise OptionError("prefill_chunk", "left out with use_cache=False", prefill_chunk)
    return count("prefill_chunk", prefill_chunk)
