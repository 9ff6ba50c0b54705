"""Two texts in one row, as encoders read them; notable: the tokenizer knows the rule."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.core.asked import Types, knows_types
from workbench.core.errors import AlignmentError, OptionError
from workbench.core.options import iterated

if TYPE_CHECKING:
    from workbench.core.prompts import Prompt
    from workbench.core.protocols import Model


def paired(
    model: "Model", prompt: "Prompt", pair: str | Sequence[str], types: Types
) -> tuple[list[tuple[int, ...]], Types]:
    """The ids of each pair's row; their types, where the model knows any.

    Raises:
        OptionError: If the prompts are no texts, if types are given too, or the tokenizer knows of
            no pairs.
        AlignmentError: If there are neither one nor as many second texts as prompts.
        PromptError: If a text is not valid Unicode.
    """
    from workbench.core.protocols import Pairing  # which builds on batches

    if types is not None:
        raise OptionError("token_types", "left out: the pair says which they are", types)
    if not isinstance(model.tokenizer, Pairing):
        raise OptionError("pair", f"left out: {model.name} has no tokenizer that knows pairs", pair)
    firsts, seconds = _texts("prompt", prompt), _texts("pair", pair)
    if len(seconds) not in (1, len(firsts)):
        message = f"{len(firsts)} prompts need 1 or {len(firsts)} second texts, got {len(seconds)}."
        raise AlignmentError(message)
    seconds = seconds * len(firsts) if len(seconds) == 1 else seconds
    rows = [model.tokenizer.encode_pair(*two) for two in zip(firsts, seconds, strict=True)]
    return [ids for ids, _ in rows], [kind for _, kind in rows] if knows_types(model) else None


def _texts(name: str, given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else list(iterated(name, given))
    if not texts or not all(isinstance(text, str) for text in texts):
        raise OptionError(name, "a text, or several", given)
    return texts
