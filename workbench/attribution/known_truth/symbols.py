"""A vocabulary of single letters, for models built by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from workbench.core.errors import PromptError, TokenError


@final
@dataclass(frozen=True)
class Symbols:
    """Each letter of `letters` is a token; nothing else is one."""

    letters: str
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:  # noqa: ARG002 - none
        """The ids of the letters of a text.

        Raises:
            PromptError: If a character is not one of `letters`.
        """
        strange = sorted(set(text) - set(self.letters))
        if strange:
            raise PromptError(
                f"This model reads the letters {self.letters!r} only, got {''.join(strange)!r}. "
                "Load a language model to read text."
            )
        return tuple(self.letters.index(letter) for letter in text)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:  # noqa: ARG002
        """The letters of ids."""
        return "".join(self.letters[i] for i in ids)

    def token_text(self, token: int) -> str:
        """The letter of a token."""
        return self.letters[token]

    def single(self, text: str) -> int:
        """The token of a letter.

        Raises:
            TokenError: If it is not exactly one of them.
        """
        if len(text) != 1 or text not in self.letters:
            raise TokenError(text, list(text), self.letters[:3])
        return self.letters.index(text)
