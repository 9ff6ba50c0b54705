"""The files of a tokenizer as Hugging Face folders hold them; notable: one may correct another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from workbench.core.errors import FormatError
from workbench.core.store import read_text
from workbench.models.tables import read_table

NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


def read_backend(file: Path) -> Backend:
    """The tokenizer of a `tokenizer.json`.

    Raises:
        FormatError: If it is none.
    """
    try:
        return Backend.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise FormatError(f"{file} cannot be read ({error}); download it again.") from None


def optional_table(file: Path) -> dict[str, Any]:
    """A JSON table, empty where there is no file."""
    return read_table(file) if file.exists() else {}


def named_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the tokens that have a name, "bos_token" and the like."""
    older = optional_table(folder / "special_tokens_map.json")
    texts = {key: _content(config.get(key, older.get(key))) for key in NAMED}
    return {key: text for key, text in texts.items() if text is not None}


def _content(token: object) -> str | None:
    match token:
        case str(text) | {"content": str(text)}:
            return text
        case _:
            return None


def complete(backend: Backend, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Applies what transformers takes from `tokenizer_config.json` beyond `tokenizer.json`."""
    untyped: Any = backend
    for entry in _added(config.get("added_tokens_decoder") or {}):
        text = _content(entry)
        if text is not None and backend.token_to_id(text) is None:
            special = isinstance(entry, dict) and bool(cast("dict[str, Any]", entry).get("special"))
            untyped.add_tokens([AddedToken(text, special=special, normalized=False)])
    missing = [text for text in named.values() if backend.token_to_id(text) is None]
    untyped.add_special_tokens(missing)


def _added(listed: object) -> list[object]:
    """The added tokens in the order of their ids.

    Raises:
        FormatError: If the table is none.
    """
    table = cast("dict[str, object]", listed) if isinstance(listed, dict) else {"": listed}
    if not all(key.isascii() and key.isdigit() for key in table):
        raise FormatError("added_tokens_decoder must be a table from token ids to tokens.")
    return [table[key] for key in sorted(table, key=int)]


def template_of(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: of a file of its own, else of the config."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return read_text(file)
    return default_template(config.get("chat_template"))


def default_template(template: object) -> str | None:
    """Of several templates the default one; older files list them by name."""
    match template:
        case str(text) | {"default": str(text)}:
            return text
        case list():
            listed = [entry for entry in cast("list[object]", template) if isinstance(entry, dict)]
            entries = cast("list[dict[str, object]]", listed)
            return default_template({str(e.get("name")): e.get("template") for e in entries})
        case _:
            return None
