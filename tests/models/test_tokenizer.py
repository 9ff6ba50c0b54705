"""Tokens and text: equal to transformers' own on tiny tokenizers of every spelling."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

from tests import tiny
from workbench.core.errors import FormatError, OptionError, PromptError, TokenError
from workbench.core.protocols import Vocabulary
from workbench.core.text_stream import TextStream
from workbench.models.checkpoint import resolve
from workbench.models.pieces import BYTE_OF, Spelling, readable
from workbench.models.tokenizer import Tokenizer, find_tokenizer, has_tokenizer

CORPUS = [
    "the cat sat on the mat",
    "the dog and the cat",
    "Mary Paris Anna",
    " Mary the 12 \n\n x",
] * 4
SPECIAL = ["<|start|>", "<|end|>"]
N_BYTES = 293  # tokens of the byte-level one: special, bytes and merges
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def byte_level() -> Backend:
    """A tiny GPT-2."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = BpeTrainer(
        vocab_size=N_BYTES,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def marked() -> Backend:
    """A tiny Llama 2: spaces marked, lone bytes for what it lacks, BOS in front."""
    pieces = {"<unk>": 0, "<|start|>": 1, "<|end|>": 2}
    pieces |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    pieces |= {piece: 259 + place for place, piece in enumerate(["▁", *"Maryhet", "▁M", "▁Mary"])}
    pieces |= {"▁Ma": 270, "▁Mar": 271}
    merges = [("▁", "M"), ("▁M", "a"), ("▁Ma", "r"), ("▁Mar", "y")]
    backend = Backend(models.BPE(pieces, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    backend.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", pair="<|start|> $A $B", special_tokens=[("<|start|>", 1)]
    )
    return backend


def word_piece() -> Backend:
    """A tiny BERT, with the padding and truncation that such files carry."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = WordPieceTrainer(
        vocab_size=80, special_tokens=["[UNK]", *SPECIAL], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.enable_padding(length=32)
    backend.enable_truncation(max_length=4)
    return backend


KINDS: dict[str, Callable[[], Backend]] = {
    "byte-level": byte_level,
    "marked": marked,
    "word-piece": word_piece,
}
every_kind = pytest.mark.parametrize("kind", KINDS)
TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}Be the user's friend.\n{% endif %}"
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
CONFIG = {"bos_token": "<|start|>", "eos_token": "<|end|>", "chat_template": TEMPLATE}


def write_folder(folder: Path, backend: Backend, config: object = CONFIG) -> Path:
    """A folder with a tokenizer alone."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: write_folder(root / kind, make()) for kind, make in KINDS.items()}


@pytest.fixture(scope="module")
def ours(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    """Our tokenizer of each kind."""
    return {kind: Tokenizer.from_folder(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> dict[str, Any]:
    """transformers' tokenizer of each kind."""
    from transformers import PreTrainedTokenizerFast

    return {
        kind: PreTrainedTokenizerFast.from_pretrained(str(folder))
        for kind, folder in folders.items()
    }


# --- ids --------------------------------------------------------------------------------------


def test_a_tokenizer_is_a_vocabulary(ours: dict[str, Tokenizer]) -> None:
    vocabulary: Vocabulary = ours["byte-level"]  # the type checker's test
    assert isinstance(vocabulary, Vocabulary)


@every_kind
@given(text=texts | st.sampled_from([*CORPUS, "", " ", "<|end|>the", "Mary <|start|> 12"]))
def test_ids_and_text_are_those_of_transformers(
    ours: dict[str, Tokenizer], theirs: dict[str, Any], kind: str, text: str
) -> None:
    own, other = ours[kind], theirs[kind]
    ids = own.encode(text)
    assert ids == tuple(other(text).input_ids)
    bare = other(text, add_special_tokens=False).input_ids
    assert own.encode(text, special=False) == tuple(bare)
    assert own.decode(ids) == other.decode(ids)
    plain = other.decode(ids, skip_special_tokens=True)
    assert own.decode(ids, skip_special=True) == plain


@every_kind
def test_a_copy_from_memory_is_the_same_and_stays_so(
    ours: dict[str, Tokenizer], theirs: dict[str, Any], kind: str
) -> None:
    copy = Tokenizer.from_transformers(theirs[kind])
    for text in CORPUS:
        assert copy.encode(text) == ours[kind].encode(text)
    assert (copy.bos_id, copy.eos_ids, copy.special_ids) == (
        ours[kind].bos_id,
        ours[kind].eos_ids,
        ours[kind].special_ids,
    )
    assert copy.chat_template == TEMPLATE


def test_a_later_change_of_the_original_is_not_seen(folders: dict[str, Path]) -> None:
    from transformers import PreTrainedTokenizerFast

    original = PreTrainedTokenizerFast.from_pretrained(str(folders["byte-level"]))
    copy = Tokenizer.from_transformers(original)
    before = copy.encode("Mary zebra")
    original.add_tokens(["zebra"])
    original("a b c", truncation=True, max_length=2)
    assert copy.encode("Mary zebra") == before


def test_padding_and_truncation_of_the_file_are_off(ours: dict[str, Tokenizer]) -> None:
    assert len(ours["word-piece"].encode("the cat sat on the mat")) == 6


@given(text=texts)
def test_a_byte_level_text_survives_the_round_trip(ours: dict[str, Tokenizer], text: str) -> None:
    own = ours["byte-level"]
    assert own.decode(own.encode(text)) == text


@every_kind
def test_an_empty_text_has_only_what_the_rules_add(ours: dict[str, Tokenizer], kind: str) -> None:
    assert ours[kind].encode("", special=False) == ()
    assert ours[kind].encode("") == ((1,) if kind == "marked" else ())


def test_half_a_character_is_a_typed_error(ours: dict[str, Tokenizer]) -> None:
    with pytest.raises(PromptError, match="valid Unicode"):
        ours["byte-level"].encode("\ud83c")


def test_named_ids_are_those_of_the_config(ours: dict[str, Tokenizer]) -> None:
    own = ours["byte-level"]
    assert (own.bos_id, own.eos_id, own.eos_ids, own.pad_id) == (0, 1, (1,), None)
    assert own.special_ids == {0, 1}
    assert own.n_vocab == N_BYTES


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_tokenizer_json_and_not_flags_beside_it_decides_about_bos(
    tmp_path: Path, bos: bool, eos: bool
) -> None:
    from transformers import PreTrainedTokenizerFast

    config = {**CONFIG, "add_bos_token": bos, "add_eos_token": eos}
    folder = write_folder(tmp_path / "x", byte_level(), config)
    own, other = Tokenizer.from_folder(folder), PreTrainedTokenizerFast.from_pretrained(str(folder))
    for text in ["", "Mary"]:
        assert own.encode(text) == tuple(other(text).input_ids)
        assert own.encode(text) == own.encode(text, special=False)  # tokenizer.json decides


def test_tokens_that_only_the_config_knows_are_added(tmp_path: Path) -> None:
    added = {"293": {"content": "<tool>", "special": True}, "294": {"content": "<x>"}}
    config = {**CONFIG, "pad_token": {"content": "<pad>"}, "added_tokens_decoder": added}
    own = Tokenizer.from_folder(write_folder(tmp_path / "x", byte_level(), config))
    assert own.encode("<tool><x>") == (N_BYTES, N_BYTES + 1)
    assert own.pad_id == N_BYTES + 2
    assert own.special_ids == {0, 1, N_BYTES, N_BYTES + 2}


# --- offsets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trim", [True, False])
@given(text=texts)
def test_offsets_cut_a_byte_level_text_into_its_tokens(
    tmp_path_factory: pytest.TempPathFactory, trim: bool, text: str
) -> None:
    backend = byte_level()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    own = Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("x"), backend))
    ids, offsets = own.encode_with_offsets(text)
    assert ids == own.encode(text)
    for token, (start, stop) in zip(ids, offsets, strict=True):
        piece = own.token_text(token)
        if "\\x" not in piece and piece.strip():
            assert text[start:stop] == piece


def test_offsets_count_characters_and_keep_the_leading_space(ours: dict[str, Tokenizer]) -> None:
    ids, offsets = ours["byte-level"].encode_with_offsets("é the")
    cuts = ["é the"[start:stop] for start, stop in offsets]
    assert cuts == ["é", "é", " the"]
    assert len(ids) == 3


def test_an_added_special_token_stands_for_no_character(ours: dict[str, Tokenizer]) -> None:
    encoding = ours["marked"].encode_with_offsets("Mary")
    assert encoding.ids[0] == 1
    assert encoding.offsets[0] == (0, 0)


# --- single tokens ----------------------------------------------------------------------------


def test_token_text_keeps_the_space_and_shows_broken_characters_as_bytes(
    ours: dict[str, Tokenizer],
) -> None:
    own = ours["byte-level"]
    shown = [own.token_text(token) for token in own.encode(" the é\n")]
    assert shown == [" the", " ", "\\xc3", "\\xa9", "\n"]
    assert own.token_text(0) == "<|start|>"
    assert own.token_text(10_000) == "<10000>"
    with pytest.raises(PromptError, match="got -1"):
        own.token_text(-1)


def test_marked_pieces_are_readable(ours: dict[str, Tokenizer]) -> None:
    own = ours["marked"]
    assert own.token_text(own.single(" Mary")) == " Mary"
    assert own.token_text(3 + 0xE2) == "\\xe2"
    assert own.token_text(3 + 0x0A) == "\n"


def test_every_byte_has_one_character_and_back() -> None:
    assert sorted(BYTE_OF.values()) == list(range(256))
    assert readable("Ġa", Spelling.BYTES) == " a"
    assert readable("##ing", Spelling.PLAIN) == "##ing"
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())


@every_kind
def test_every_token_that_is_text_is_single(ours: dict[str, Tokenizer], kind: str) -> None:
    own = ours[kind]
    for text in [" Mary", " the"] if kind == "byte-level" else [" Mary"] * (kind == "marked"):
        assert own.token_text(own.single(text)) == text


def test_a_text_of_several_tokens_suggests_single_ones(ours: dict[str, Tokenizer]) -> None:
    with pytest.raises(TokenError) as caught:
        ours["byte-level"].single("THE")
    assert "'THE' must be one token and is 3: 'T' + 'H' + 'E'" in str(caught.value)
    assert " the" in caught.value.suggestions
    assert 1 <= len(caught.value.suggestions) <= 3
    for suggestion in caught.value.suggestions:
        ours["byte-level"].single(suggestion)


def test_suggestions_lead_with_what_the_text_began_with(ours: dict[str, Tokenizer]) -> None:
    with pytest.raises(TokenError) as caught:
        ours["byte-level"].single(" thereupon")
    assert caught.value.suggestions[0].startswith(" the")


def test_an_empty_text_is_no_token(ours: dict[str, Tokenizer]) -> None:
    with pytest.raises(TokenError, match="is 0: nothing"):
        ours["byte-level"].single("")


# --- streams ----------------------------------------------------------------------------------


def streamed(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    """What a stream shows of ids, in all."""
    stream = TextStream(vocabulary)
    return "".join(map(stream.push, ids)) + stream.flush()


@given(ids=st.lists(st.integers(0, N_BYTES - 1), max_size=30))
def test_streamed_text_of_any_ids_is_the_decoded_text(
    ours: dict[str, Tokenizer], ids: list[int]
) -> None:
    own = ours["byte-level"]
    assert streamed(own, ids) == own.decode(ids, skip_special=True)


@every_kind
@given(text=texts, ends=st.lists(st.integers(0, 8)))
def test_streamed_text_of_a_text_is_the_decoded_text(
    ours: dict[str, Tokenizer], kind: str, text: str, ends: list[int]
) -> None:
    own = ours[kind]
    ids = list(own.encode(f"{text} Mary the"))
    for place in ends:
        ids.insert(place, 2 if kind == "marked" else 1)  # a special token in between
    if kind != "word-piece":  # whose decoder joins words over any distance
        assert streamed(own, ids) == own.decode(ids, skip_special=True)


# --- chat -------------------------------------------------------------------------------------

CHAT = [
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": " the cat \n"},
    {"role": "user", "content": "a"},
]


@pytest.mark.parametrize("prompted", [True, False])
def test_a_chat_is_what_transformers_makes_of_it(
    ours: dict[str, Tokenizer], theirs: dict[str, Any], prompted: bool
) -> None:
    chat = ours["byte-level"].chat(CHAT, add_generation_prompt=prompted)
    render = theirs["byte-level"].apply_chat_template
    assert chat.text == render(CHAT, tokenize=False, add_generation_prompt=prompted)
    expected = render(CHAT, add_generation_prompt=prompted, return_dict=True)["input_ids"]
    assert chat.ids == tuple(expected)


def test_spans_are_what_each_speaker_said_and_not_the_templates_words(
    ours: dict[str, Tokenizer],
) -> None:
    own = ours["byte-level"]
    chat = own.chat(CHAT)
    assert [span.role for span in chat.spans] == ["user", "assistant", "user"]
    said = [own.decode(chat.ids[span.start : span.stop]).strip() for span in chat.spans]
    assert said == ["user", "the cat", "a"]


def test_a_template_that_rewrites_messages_has_no_spans(ours: dict[str, Tokenizer]) -> None:
    own = ours["byte-level"]
    shouting = Tokenizer(
        own.backend,
        own.named,
        own.eos_ids,
        "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}",
        own.spelling,
        own.special_ids,
    )
    chat = shouting.chat([{"role": "user", "content": "the"}])
    assert chat.text == "THE"
    assert chat.spans == ()


def test_a_template_cannot_reach_outside_its_sandbox(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    hostile = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    folder = write_folder(tmp_path, byte_level(), {**CONFIG, "chat_template": hostile})
    with pytest.raises(FormatError, match="chat template cannot be used"):
        Tokenizer.from_folder(folder).chat(CHAT)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "at least one message"),
        ([{"role": "user"}], "message 0: expected text under 'content', got None"),
        ([{"content": "x"}], "under 'role'"),
    ],
)
def test_what_is_no_conversation_is_a_typed_error(
    ours: dict[str, Tokenizer], messages: list[dict[str, str]], problem: str
) -> None:
    with pytest.raises(PromptError, match=problem):
        ours["byte-level"].chat(messages)


def test_a_template_that_refuses_says_why(tmp_path: Path) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    folder = write_folder(tmp_path, byte_level(), {**CONFIG, "chat_template": template})
    with pytest.raises(PromptError, match="refuses these 3 messages: roles must alternate"):
        Tokenizer.from_folder(folder).chat(CHAT)


def test_a_model_without_a_template_says_that_it_does_not_chat(tmp_path: Path) -> None:
    own = Tokenizer.from_folder(write_folder(tmp_path, byte_level(), {}))
    with pytest.raises(FormatError, match="no chat template"):
        own.chat(CHAT)


@pytest.mark.parametrize("where", ["file", "named"])
def test_templates_are_found_where_they_are_kept(tmp_path: Path, where: str) -> None:
    named = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    config = {**CONFIG, "chat_template": named}
    folder = write_folder(tmp_path, byte_level(), config)
    if where == "file":
        (folder / "chat_template.jinja").write_text("F")
    template = Tokenizer.from_folder(folder).chat_template
    assert template == ("F" if where == "file" else "D")


# --- folders ----------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert not has_tokenizer(tmp_path)
    assert find_tokenizer(tmp_path) is None
    with pytest.raises(FormatError, match=r"has no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[", '{"model": 7}'])
def test_a_broken_tokenizer_file_is_a_typed_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(FormatError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_folder(tmp_path)


def test_older_files_are_read_through_transformers(tmp_path: Path) -> None:
    backend = byte_level()
    backend.model.save(str(tmp_path))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    own = Tokenizer.from_folder(tmp_path)
    assert own.encode(" Mary the") == tuple(backend.encode(" Mary the").ids)


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(OptionError, match="a Hugging Face tokenizer, got 'str'"):
        Tokenizer.from_transformers("gpt2")


def test_a_tokenizer_of_python_alone_says_what_to_do() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(FormatError, match=r"ByT5Tokenizer is written in Python only"):
        Tokenizer.from_transformers(ByT5Tokenizer())


# --- threads and the real one -----------------------------------------------------------------


def test_threads_share_a_tokenizer(ours: dict[str, Tokenizer]) -> None:
    own = ours["byte-level"]
    expected = {text: own.encode(text) for text in CORPUS}
    wrong: list[str] = []

    def work() -> None:
        for _ in range(200):
            wrong.extend(text for text, ids in expected.items() if own.encode(text) != ids)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.asset
def test_the_default_tokenizer_is_transformers_own() -> None:
    from transformers import AutoTokenizer

    folder = resolve("smollm2-135m-instruct")
    own, other = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(str(folder))
    for text in ["Hello", "", "\n\n1. One", "a  12", "héllo 你好 🎉", "<|im_end|>x", "x²½"]:
        assert own.encode(text) == tuple(other(text).input_ids)
        assert own.decode(own.encode(text)) == text
    assert (own.bos_id, own.eos_ids, own.pad_id, own.n_vocab) == (1, (2,), 2, 49152)
    assert own.encode("Hello")[0] != own.bos_id
    chat = own.chat([{"role": "user", "content": "Hi"}])
    assert chat.text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert own.token_text(own.single(" Mary")) == " Mary"


@pytest.mark.parametrize(
    "changes",
    [
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"-5": "a"}},
    ],
)
def test_a_malformed_list_of_added_tokens_is_a_typed_error(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = write_folder(tmp_path / "odd", byte_level(), {**CONFIG, **changes})
    with pytest.raises(FormatError, match="added_tokens_decoder must be a table from token ids"):
        Tokenizer.from_folder(folder)


def test_odd_templates_and_tokens_are_passed_over(tmp_path: Path) -> None:
    odd = {"added_tokens_decoder": {"5": "plain"}, "chat_template": [5, {"name": "default"}]}
    tokenizer = Tokenizer.from_folder(
        write_folder(tmp_path / "odd", byte_level(), {**CONFIG, **odd})
    )
    assert tokenizer.chat_template is None
    (tmp_path / "odd" / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path / "odd")


@pytest.mark.parametrize("token", [-1, 2**31, 2**40])
def test_an_id_beyond_any_vocabulary_is_refused(ours: dict[str, Tokenizer], token: int) -> None:
    for tokenizer in ours.values():
        with pytest.raises(PromptError, match="A token id must be 0 or more and below"):
            tokenizer.decode([token])
        with pytest.raises(PromptError, match="A token id must be 0 or more and below"):
            tokenizer.token_text(token)


def test_a_text_is_no_conversation(ours: dict[str, Tokenizer]) -> None:
    chat: Any = next(iter(ours.values())).chat
    with tiny.unchecked(), pytest.raises(PromptError, match="message 0: expected a table with"):
        chat("hi")
