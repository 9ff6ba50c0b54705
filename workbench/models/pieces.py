r"""How a tokenizer spells its tokens, and how a person reads them.

Notable: a token may hold half a character. Its bytes are then shown as Python would (`\xe2`), so
that two tokens never look alike only because neither can be displayed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, cast

from tokenizers import Tokenizer as Backend


class Spelling(Enum):
    """The ways of writing text as tokens, and the rest."""

    BYTES = auto()  # each byte a printable character, a space is 'Ġ': GPT-2, Llama 3, SmolLM2
    MARKED = auto()  # a space is '▁', a lone byte '<0xE2>': SentencePiece, Llama 2, Gemma
    ENDED = auto()  # '</w>' ends a word, and a space comes after it: OpenAI GPT
    PLAIN = auto()  # as it is; WordPiece's '##' stays


END = "</w>"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def spelling_of(backend: Backend) -> Spelling:
    r"""How a tokenizer spells, by the way it decodes."""
    if backend.decoder is None:
        return Spelling.PLAIN
    state: object = json.loads(backend.decoder.__getstate__())
    kinds = set(_kinds(state))
    if "ByteLevel" in kinds:
        return Spelling.BYTES
    if "BPEDecoder" in kinds:
        return Spelling.ENDED
    return Spelling.MARKED if kinds & {"Metaspace", "Replace", "ByteFallback"} else Spelling.PLAIN


def _kinds(state: object) -> Iterator[str]:
    if isinstance(state, dict):
        table = cast("dict[str, Any]", state)
        if isinstance(table.get("type"), str):
            yield table["type"]
        for part in cast("list[object]", table.get("decoders", [])):
            yield from _kinds(part)


def _byte_alphabet() -> Mapping[str, int]:
    """GPT-2's character for each byte: itself where it prints, else one from 256 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in prints]
    shifted = {chr(256 + place): byte for place, byte in enumerate(others)}
    return MappingProxyType({**{chr(byte): byte for byte in prints}, **shifted})


BYTE_OF = _byte_alphabet()


def readable(piece: str, spelling: Spelling) -> str:
    """A token's text, the space at its side kept and its incomplete characters shown as bytes."""
    if spelling is Spelling.BYTES and all(character in BYTE_OF for character in piece):
        return bytes(BYTE_OF[character] for character in piece).decode(errors="backslashreplace")
    if spelling is Spelling.MARKED:
        lone = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        if lone:
            return bytes.fromhex(lone[1]).decode(errors="backslashreplace")
        return piece.replace(SPACE, " ")
    return piece.removesuffix(END) + " " if spelling is Spelling.ENDED and END in piece else piece
