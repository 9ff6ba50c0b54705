"""Text to tokens and back, as the model's own tokenizer has it, with offsets and chat templates.

Notable: the `tokenizers` library does the work, without transformers (which takes seconds to
import). The backend is never changed after it was built, so threads may share a tokenizer; padding
and truncation, which others keep as state on it, are off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, final

from tokenizers import Tokenizer as Backend

from workbench.core.errors import FormatError, OptionError, PromptError, TokenError
from workbench.models.chat import ChatPrompt, Message, Span, check_messages, render, said
from workbench.models.pieces import SPACE, Spelling, readable, spelling_of
from workbench.models.tables import as_ids
from workbench.models.tokenizer_files import (
    NAMED,
    complete,
    default_template,
    named_tokens,
    optional_table,
    read_backend,
    template_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Without `tokenizer.json`, what transformers can build a tokenizer from.
OLD_FILES = (
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
MAX_SUGGESTIONS = 3


class Encoding(NamedTuple):
    """Tokens, and the characters each stands for (start, stop), its leading space included."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


class Token(NamedTuple):
    """One token of a text, as a person reads it, and the characters it stands for."""

    id: int
    text: str
    start: int
    stop: int
    special: bool


class Pair(NamedTuple):
    """Two texts as one row, and of which of them each token is: its type."""

    ids: tuple[int, ...]
    types: tuple[int, ...]


@final
@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary and its rules; frozen. Meets `core.protocols.Vocabulary`."""

    backend: Backend = field(repr=False)
    named: Mapping[str, str] = field(default_factory=dict[str, str])  # "bos_token" -> its text
    eos_ids: tuple[int, ...] = ()
    chat_template: str | None = field(default=None, repr=False)
    spelling: Spelling = Spelling.PLAIN
    special_ids: frozenset[int] = field(default=frozenset(), repr=False)

    @staticmethod
    def from_folder(folder: Path) -> "Tokenizer":
        """The tokenizer of a Hugging Face style folder.

        From `tokenizer.json` in 0.2 s; from older files through transformers, in seconds.

        Raises:
            FormatError: If the folder has none, or its files are damaged.
        """
        config = optional_table(folder / "tokenizer_config.json")
        if not has_tokenizer(folder):
            raise FormatError(f"{folder} has no tokenizer.json, nor {', '.join(OLD_FILES)}.")
        if not (folder / "tokenizer.json").exists():
            return _through_transformers(folder)
        backend = read_backend(folder / "tokenizer.json")
        named = named_tokens(folder, config)
        if backend.padding:
            named.setdefault("pad_token", str(backend.padding["pad_token"]))
        complete(backend, config, named)
        generation = optional_table(folder / "generation_config.json")
        eos = as_ids(generation.get("eos_token_id")) or _ids(backend, named, ("eos_token",))
        return _build(backend, named, eos, template_of(folder, config))

    @staticmethod
    def from_transformers(tokenizer: object) -> "Tokenizer":
        """A frozen copy of a Hugging Face tokenizer; later changes to it are not seen.

        Raises:
            OptionError: If it is no Hugging Face tokenizer.
            FormatError: If it is written in Python only and cannot be converted.
        """
        from transformers import PreTrainedTokenizerBase

        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise OptionError("tokenizer", "a Hugging Face tokenizer", type(tokenizer).__name__)
        backend = Backend.from_str(_backend_of(tokenizer).to_str())
        special: Mapping[str, object] = tokenizer.special_tokens_map
        named = {key: str(value) for key, value in special.items() if key in NAMED}
        untyped: Any = tokenizer
        template = default_template(untyped.chat_template)
        return _build(backend, named, _ids(backend, named, ("eos_token",)), template)

    @property
    def n_vocab(self) -> int:
        """How many tokens there are; the model's `d_vocab` may be padded beyond."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def mask_id(self) -> int | None:
        """The token that stands for a word to be found, where there is one."""
        text = self.named.get("mask_token")
        return None if text is None else self.backend.token_to_id(text)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, where there is one."""
        return self._named_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The first of the tokens that end a text."""
        return next(iter(self.eos_ids), None)

    @property
    def pad_id(self) -> int | None:
        """The token that others fill rows up with; a run of ours masks them and needs none."""
        return self._named_id("pad_token")

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """The ids of a text, with the special tokens its model expects around it.

        Raises:
            PromptError: If the text is not valid Unicode.
        """
        return tuple(self._encode(text, special=special).ids)

    def encode_with_offsets(self, text: str, *, special: bool = True) -> Encoding:
        """Ids, and which characters of `text` each token stands for.

        A special token that the rules add stands for none (0, 0), and so does a mark that some put
        before a text; tokens that share a character
        have the same offsets.

        Raises:
            PromptError: If the text is not valid Unicode.
        """
        encoded = self._encode(text, special=special)
        ids, offsets = tuple(encoded.ids), list(encoded.offsets)
        stop = 0
        for place, (start, end) in enumerate(offsets):
            shown = self.token_text(ids[place])
            leading = start > stop and text[start - 1 : start] == " "
            if leading and shown[:1] == " ":
                # some tokenizers trim it, some do not; a mark alone stands for nothing else
                offsets[place] = (start - 1, start if shown == " " else end)
            elif shown == " " != text[start:end]:
                offsets[place] = (start, start)  # a mark before the text, of no character
            stop = max(stop, end)
        return Encoding(ids, tuple(offsets))

    def tokens(self, text: str, *, special: bool = True) -> tuple[Token, ...]:
        """The tokens of a text: id, readable text, characters, and whether it is a special one.

        Raises:
            PromptError: If the text is not valid Unicode.
        """
        pairs = zip(*self.encode_with_offsets(text, special=special), strict=True)
        return tuple(
            Token(one, self.token_text(one), *place, one in self.special_ids)
            for one, place in pairs
        )

    def encode_pair(self, first: str, second: str) -> Pair:
        """Two texts as their model expects them in one row, and the type of each token.

        Raises:
            PromptError: If a text is not valid Unicode.
        """
        encoded = self._encode(first, second, special=True)
        return Pair(tuple(encoded.ids), tuple(encoded.type_ids))

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of ids; an incomplete character is U+FFFD.

        Raises:
            PromptError: If an id is negative or beyond any vocabulary.
        """
        for token in ids:
            _check_id(token)
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_text(self, token: int) -> str:
        """One token, readable: a leading space as ' ', an incomplete character as its bytes.

        Raises:
            PromptError: If it is negative or beyond any vocabulary.
        """
        _check_id(token)
        piece = self.backend.id_to_token(token)
        if piece is None:
            return f"<{token}>"  # the model has more rows than the vocabulary
        return piece if token in self.special_ids else readable(piece, self.spelling)

    def single(self, text: str) -> int:
        """The one token that `text` is.

        Raises:
            TokenError: If it is none or several; suggests near ones.
        """
        token = self._single(text)
        if token is not None:
            return token
        pieces = (self.token_text(token) for token in self.encode(text, special=False))
        raise TokenError(text, pieces, self._near(text))

    def chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> ChatPrompt:
        """A conversation as the model was trained to read it; imports transformers once.

        Raises:
            FormatError: If the model has no chat template, or a broken one.
            PromptError: If the messages are not a conversation the template can show.
        """
        check_messages(messages)
        if self.chat_template is None:
            raise FormatError(
                "The model has no chat template, so it was not tuned to chat; give it plain text."
            )
        text = render(
            self.chat_template, messages, self.named, add_generation_prompt=add_generation_prompt
        )
        ids, offsets = self.encode_with_offsets(text, special=False)
        places = said(self.chat_template, messages, self.named, text)
        spans = tuple(
            Span(message["role"], *_tokens_within(offsets, *place))
            for message, place in zip(messages[: len(places)], places, strict=True)
        )
        return ChatPrompt(text, ids, spans)

    def _encode(self, text: str, second: str | None = None, *, special: bool) -> Any:
        try:
            return self.backend.encode(text, second, add_special_tokens=special)
        except TypeError:
            got = repr(text if second is None else (text, second))
            raise PromptError(
                f"A text must be valid Unicode, got {got:.80}; is half a character left over?"
            ) from None

    def _single(self, text: str) -> int | None:
        if self.spelling is Spelling.MARKED:  # it would put a space before the text
            token = self.backend.token_to_id(text.replace(" ", SPACE))
            if token is not None:
                return token
        ids = self.encode(text, special=False)
        return ids[0] if len(ids) == 1 else None

    def _near(self, text: str) -> list[str]:
        word = text.strip()
        forms = [word, word.capitalize(), word.lower(), word.upper()]
        spaced = text[:1] == " "
        sides = (" ", "") if spaced else ("", " ")
        whole = [side + form for form in forms for side in sides]
        parts = [side + word[:end] for end in range(len(word) - 1, 0, -1) for side in sides]
        singles: list[str] = []
        for candidate in dict.fromkeys([*whole, *parts]):
            if candidate not in ("", " ", text) and self._single(candidate) is not None:
                singles.append(candidate)
            if len(singles) == MAX_SUGGESTIONS:
                break
        return singles

    def _named_id(self, name: str) -> int | None:
        text = self.named.get(name)
        return None if text is None else self.backend.token_to_id(text)


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder, or None where it holds a model alone.

    Raises:
        FormatError: If its files are damaged.
    """
    return Tokenizer.from_folder(folder) if has_tokenizer(folder) else None


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has files of a tokenizer; a model alone may have none."""
    return any((folder / name).exists() for name in ("tokenizer.json", *OLD_FILES))


def _build(
    backend: Backend, named: Mapping[str, str], eos_ids: tuple[int, ...], template: str | None
) -> Tokenizer:
    backend.no_padding()
    backend.no_truncation()
    added = backend.get_added_tokens_decoder()
    special = frozenset(token for token, entry in added.items() if entry.special)
    table = MappingProxyType(dict(named))
    return Tokenizer(backend, table, eos_ids, template, spelling_of(backend), special)


def _ids(backend: Backend, named: Mapping[str, str], keys: Sequence[str]) -> tuple[int, ...]:
    ids = (backend.token_to_id(named[key]) for key in keys if key in named)
    return tuple(token for token in ids if token is not None)


def _through_transformers(folder: Path) -> Tokenizer:
    import transformers

    auto: Any = transformers.AutoTokenizer  # untyped
    try:
        return Tokenizer.from_transformers(auto.from_pretrained(str(folder)))
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FormatError(f"{folder}: transformers cannot read the tokenizer: {reason}") from None


def _backend_of(tokenizer: "PreTrainedTokenizerBase") -> Backend:
    import transformers.convert_slow_tokenizer as slow
    from transformers import PreTrainedTokenizerFast

    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return tokenizer.backend_tokenizer
    try:
        untyped: Any = slow
        return untyped.convert_slow_tokenizer(tokenizer)
    except (ValueError, AttributeError, ImportError) as error:
        raise FormatError(
            f"{type(tokenizer).__name__} is written in Python only and cannot be converted "
            f"({error}); save it as tokenizer.json, or pass another as tokenizer=."
        ) from None


def _check_id(token: int) -> None:
    if not 0 <= token < 2**31:
        raise PromptError(f"A token id must be 0 or more and below 2**31, got {token}.")


def _tokens_within(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """The tokens that touch the characters from `start` to `stop`."""
    inside = [place for place, (a, b) in enumerate(offsets) if a < stop and b > start]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)
