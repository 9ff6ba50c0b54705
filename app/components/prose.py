"""Words on the screen: titles, sentences with tokens and numbers in them, cards and messages."""

from collections.abc import Sequence
from typing import Final, Literal

from app.components._mount import register
from app.views.words import Sentence, Words

_PROSE: Final = register("prose")
Kind = Literal["page", "card", "plain", "notice", "error", "wait"]


def prose(
    *sentences: Sentence,
    key: str,
    kind: Kind = "plain",
    title: Words = "",
    rows: Sequence[tuple[str, Words]] = (),
) -> None:
    """Shows a title, sentences and rows of name and value, as text and never as markup."""
    data = {
        "kind": kind,
        "title": _parts(title),
        "sentences": [_parts(sentence) for sentence in sentences],
        "rows": [[name, _parts(value)] for name, value in rows],
    }
    _PROSE(key=key, data=data)


def _parts(words: Words) -> list[list[str]]:
    if isinstance(words, str):
        return [[words, ""]] if words else []
    return [[words.text, words.kind] for words in words]
