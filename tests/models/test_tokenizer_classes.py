"""Each tokenizer class of the families here, built without a download: what it does, ours does."""

from pathlib import Path
from typing import Any

import pytest

from tests.vocabularies import CLASSES, built
from workbench.models.tokenizer import Tokenizer

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "tokens.md"
TEXTS = ["the cat", " Mary  had 12", "", "Unïcode 東 🙂", "line\n\nend "]
every_class = pytest.mark.parametrize("name", CLASSES)


def both(theirs: Any, folder: Path) -> tuple[Tokenizer, Any]:
    """Ours and theirs, of the files that theirs was saved in."""
    theirs.save_pretrained(str(folder))
    return Tokenizer.from_folder(folder), type(theirs).from_pretrained(str(folder))


# This class of transformers forgets, on reading, what it wrote into tokenizer.json about BOS.
FORGETFUL = ("GPTNeoXTokenizer", True)
BOS = [(name, bos) for name in CLASSES for bos in (None, True, False) if (name, bos) != FORGETFUL]


@pytest.mark.parametrize(("name", "bos"), BOS, ids=[f"{name}, BOS {bos}" for name, bos in BOS])
def test_texts_and_pairs_begin_and_end_as_transformers_has_them(
    name: str, bos: bool | None, tmp_path: Path
) -> None:
    options = {} if bos is None else {"add_bos_token": bos}
    ours, theirs = both(built(name, **options), tmp_path)
    copied = Tokenizer.from_transformers(theirs)
    for text in TEXTS:
        assert ours.encode(text) == copied.encode(text) == tuple(theirs(text)["input_ids"])
        bare = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, special=False) == tuple(bare)
        two = theirs(text, "the dog", return_token_type_ids=True)
        expected = tuple(two["input_ids"]), tuple(two["token_type_ids"])
        assert ours.encode_pair(text, "the dog") == copied.encode_pair(text, "the dog") == expected


@every_class
def test_tokens_stand_for_the_characters_that_they_show(name: str, tmp_path: Path) -> None:
    ours, _ = both(built(name), tmp_path)
    text = "the cat had 12"
    told = [token for token in ours.tokens(text) if not token.special]
    shown = "".join(token.text.removeprefix("##") for token in told)
    assert shown.split() == text.split() or shown.replace(" ", "") == text.replace(" ", "")
    for token in told:
        cut = text[token.start : token.stop]
        assert token.text.strip().removeprefix("##") == cut.strip()
    assert tuple(token.id for token in ours.tokens(text)) == ours.encode(text)


def rules() -> dict[str, tuple[str, str]]:
    """What the document says of each class: with what a text begins and ends."""
    rows = (line.strip("| ").split(" | ") for line in DOCUMENT.read_text().splitlines())
    named = (row for row in rows if row[0].strip("`") in CLASSES)
    return {row[0].strip("`"): (row[1].strip("` "), row[2].strip("` ")) for row in named}


@every_class
def test_the_document_says_with_what_a_text_begins_and_ends(name: str, tmp_path: Path) -> None:
    ours, _ = both(built(name), tmp_path)
    whole, bare = ours.encode("the cat"), ours.encode("the cat", special=False)
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    begins, ends = whole[:at], whole[at + len(bare) :]
    told = tuple("".join(map(ours.token_text, part)) or "–" for part in (begins, ends))
    assert rules()[name] == told
