"""The worker's bench: the models and directions at hand, and prompts and plans made ready for them.

Notable: a model stays loaded while it is used; two are kept, so that two tabs with two models do
not load them in turns. Interventions of the app are optional: one that cannot act says so on its
chip instead of ending the reading.
"""

import gc
import time
from collections import OrderedDict
from typing import Final, TypeVar, final

import torch

import workbench as wb
from app.host import Job
from app.jobs._loading import load
from app.results import Answer, Receipt
from app.specs import resolved
from app.state import Edit, Recipe
from workbench.core.data import token_rows
from workbench.core.direction import Direction
from workbench.core.errors import OptionError, PromptError, TokenError
from workbench.core.protocols import Model, Vocabulary
from workbench.steering import METHODS as STEERING

MODELS: Final = 2
DIRECTIONS: Final = 64
SAID: Final = 16  # prompts whose logits are kept
Key = TypeVar("Key")
Value = TypeVar("Value")


@final
class Bench:
    """Models and directions, kept by name and recipe; used by one thread only."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, Model] = OrderedDict()
        self._said: OrderedDict[tuple[str, tuple[int, ...]], torch.Tensor] = OrderedDict()
        self._pace: dict[str, float] = {}
        self._directions: OrderedDict[tuple[str, Recipe], Direction] = OrderedDict()

    def model(self, name: str) -> Model:
        """The model of that name, loaded unless it is here.

        Raises:
            WorkbenchError: If there is none, or it cannot be loaded.
        """
        if name not in self._models:
            gc.unfreeze()
            self._models[name] = load(name)
            _trim(self._models, MODELS)
            gc.collect()
            gc.freeze()
        self._models.move_to_end(name)
        return self._models[name]

    def said(self, name: str, ids: tuple[int, ...], job: Job) -> torch.Tensor:
        """The logits after a prompt, without any plan; one forward unless just asked."""
        key = (name, ids)
        if key not in self._said:
            model = self.model(name)
            started = time.perf_counter()
            trace = wb.run(model, ids, positions="last", check=job.check)
            self._pace[name] = 1000 * (time.perf_counter() - started)
            self._said[key] = trace.answer_logits[0].float()
            _trim(self._said, SAID)
        self._said.move_to_end(key)
        return self._said[key]

    def milliseconds(self, name: str) -> float:
        """How long that model's latest plain forward took."""
        return self._pace.get(name, float("nan"))

    def direction(self, name: str, recipe: Recipe, job: Job) -> Direction:
        """The direction of a recipe on that model, made unless it is here.

        Raises:
            OptionError: If the recipe names no known method.
        """
        key = (name, recipe)
        if key not in self._directions:
            self._directions[key] = STEERING[recipe.method](
                self.model(name),
                positive=recipe.positive,
                negative=recipe.negative,
                site=recipe.site,
                label=recipe.method,
                check=job.check,
            )
            _trim(self._directions, DIRECTIONS)
        self._directions.move_to_end(key)
        return self._directions[key]

    def plan(self, name: str, edits: tuple[Edit, ...], job: Job) -> wb.Plan:
        """The app's edits as a plan of the library."""
        return wb.Plan(tuple(self._intervention(name, edit, job) for edit in edits))

    def _intervention(self, name: str, edit: Edit, job: Job) -> wb.Intervention:
        positions = list(edit.positions) or None
        if edit.op == "steer":
            if edit.recipe is None:
                raise OptionError("plan", "a recipe beside 'steer'", edit.site)
            direction = self.direction(name, edit.recipe, job)
            return direction.at(edit.strength, unit="gap", positions=positions, optional=True)
        operator = wb.ops.zero() if edit.op == "zero" else wb.ops.scale(edit.factor)
        return wb.Intervention(
            edit.site,
            operator,
            heads=edit.heads or None,
            positions=positions,
            strength=edit.strength,
            optional=True,
            label=edit.label,
        )


def prompt_ids(model: Model, prompt: str) -> tuple[int, ...]:
    """The tokens of a prompt.

    Raises:
        PromptError: If it is empty or too long.
    """
    if not prompt:
        raise PromptError("The prompt is empty; it needs at least one token.")
    return token_rows(model, prompt)[0]


def words(model: Model) -> Vocabulary:
    """The model's vocabulary.

    Raises:
        OptionError: If it has none, so that no text can be read.
    """
    if model.tokenizer is None:
        raise OptionError("model", "one with a tokenizer", model.name)
    return model.tokenizer


def until(ids: tuple[int, ...], pos: int | None) -> tuple[int, ...]:
    """The tokens up to and with the position read."""
    return ids[: resolved(pos, len(ids)) + 1]


def answer(
    model: Model, logits: torch.Tensor, target: str | None, foil: str | None
) -> tuple[Answer, int, int]:
    """Target and foil, and their ids; where not given, the model's likeliest other tokens.

    Raises:
        TokenError: If a given text is not one token.
        OptionError: If both are the same.
    """
    vocabulary = words(model)
    given = [None if text is None else vocabulary.single(text) for text in (target, foil)]
    best = [int(i) for i in logits.topk(min(3, len(logits))).indices]
    first = given[0] if given[0] is not None else next(i for i in best if i != given[1])
    second = given[1] if given[1] is not None else next(i for i in best if i != first)
    if first == second:
        raise OptionError("foil", "another token than the target", foil)
    texts = (vocabulary.token_text(first), vocabulary.token_text(second))
    keys = (key(vocabulary, first), key(vocabulary, second))
    return Answer(*texts, given[0] is None, given[1] is None, *keys), first, second


def key(vocabulary: Vocabulary, token: int) -> str | int:
    """What names a token in Python: its text, or its id where the text does not name it."""
    text = vocabulary.token_text(token)
    try:
        return text if vocabulary.single(text) == token else token
    except TokenError:
        return token


def receipts(trace: wb.Trace) -> tuple[Receipt, ...]:
    """What each intervention of a run did."""
    return tuple(Receipt(r.acted, r.tokens, r.change) for r in trace.receipts)


def _trim(table: OrderedDict[Key, Value], limit: int) -> None:
    while len(table) > limit:
        table.popitem(last=False)
