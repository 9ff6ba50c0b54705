"""Tiny tokenizers of each class that the families have, built without a download."""

import json
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

from tests.families import kind_named

CORPUS = ["the cat sat on the mat", "the dog and the cat", "Mary had 12 lambs", "Paris, France"] * 4
BYTES = pre_tokenizers.ByteLevel.alphabet()


def trained(backend: Backend, trainer: Any) -> dict[str, Any]:
    """The model of a tokenizer trained on a few lines, as its file has it."""
    backend.train_from_iterator(CORPUS, trainer)
    return json.loads(backend.to_str())["model"]


def byte_pairs() -> dict[str, Any]:
    """Vocabulary and merges over bytes."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=BYTES, show_progress=False)
    found = trained(backend, trainer)
    return {"vocab": found["vocab"], "merges": [tuple(merge) for merge in found["merges"]]}


def marked_pairs() -> dict[str, Any]:
    """Vocabulary and merges over characters, spaces marked, with every byte for what is left."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    found = trained(backend, BpeTrainer(vocab_size=80, show_progress=False))
    special = ["<unk>", "<s>", "</s>", "<pad>", "<eos>", "<bos>", "<mask>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *found["vocab"]]
    vocab = {piece: place for place, piece in enumerate(pieces)}
    return {"vocab": vocab, "merges": [tuple(merge) for merge in found["merges"]]}


def ended_pairs() -> dict[str, Any]:
    """Vocabulary and merges over characters, the end of a word marked."""
    backend = Backend(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder()
    trainer = BpeTrainer(
        vocab_size=90, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    found = trained(backend, trainer)
    return {"vocab": found["vocab"], "merges": [tuple(merge) for merge in found["merges"]]}


def word_pieces() -> dict[str, Any]:
    """A vocabulary of words and their parts."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    return {"vocab": trained(backend, trainer)["vocab"]}


def unigrams(*special: str) -> Callable[[], dict[str, Any]]:
    """Pieces with their log-probabilities, after some special ones."""

    def make() -> dict[str, Any]:
        backend = Backend(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = UnigramTrainer(
            vocab_size=60, special_tokens=list(special), unk_token="<unk>", show_progress=False
        )
        return {"vocab": [tuple(piece) for piece in trained(backend, trainer)["vocab"]]}

    return make


# The parts each class is built of; families of these model types have it.
CLASSES: dict[str, Callable[[], dict[str, Any]]] = {
    "GPT2Tokenizer": byte_pairs,
    "GPTNeoXTokenizer": byte_pairs,
    "Qwen2Tokenizer": byte_pairs,
    "CohereTokenizer": byte_pairs,
    "RobertaTokenizer": byte_pairs,
    "LlamaTokenizer": marked_pairs,
    "GemmaTokenizer": marked_pairs,
    "OpenAIGPTTokenizer": ended_pairs,
    "BertTokenizer": word_pieces,
    "AlbertTokenizer": unigrams("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    "DebertaV2Tokenizer": unigrams("[PAD]", "[CLS]", "[SEP]", "<unk>", "[UNK]", "[MASK]"),
    "T5Tokenizer": unigrams("<pad>", "</s>", "<unk>"),
}


def built(name: str, **options: Any) -> Any:
    """A tokenizer of transformers."""
    kind: Any = kind_named(name)
    return kind(**CLASSES[name](), **options)
