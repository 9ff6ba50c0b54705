r"""A GGUF file into a Hugging Face style folder: float32 weights, tied tensors once, tokenizer.

Notable: transformers reads the file (names, dequantisation, the permuted q and k of llama.cpp). It
is corrected in two places. It knows only some of the ways in which llama.cpp splits text before
byte pair encoding, and takes GPT-2's for the rest: for SmolLM2, which splits digits off first,
that would give "\n\n1" other tokens than the model was trained on. And it adds
GPT-2's own special token where the file has none, with an id the model has no row for.
"""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.core.errors import FormatError
from workbench.core.store import write_json
from workbench.models.archives import sha256
from workbench.models.cache import install, workbench_cache
from workbench.models.gguf_header import Header, read_header
from workbench.models.tables import read_table

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedModel

CONVERTER = "1"  # raise it when a conversion writes something else than before

# llama.cpp's names of ways to split text (`tokenizer.ggml.pre`)
LIKE_GPT2 = {None, "", "default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe"}
DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}

# What the file's reader puts into a config that says where it was read, not what it is.
NOT_CONFIG = (
    "quantization_config",
    "_name_or_path",
    "_model_name_or_path",
    "unk_token_id",
    "feed_forward_length",
)
# Sizes that the reader puts under a key its model does not read: they would be at their default.
MISREAD: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"gpt2": {"context_length": "n_positions", "feed_forward_length": "n_inner"}}
)

log = logging.getLogger(__name__)


def cached_gguf(file: Path) -> Path:
    """The folder that a `.gguf` file converts into, made once and kept in the user's cache.

    Costs one reading of the file, to know it by its content; the first time the conversion too.

    Raises:
        WeightsError: If it is no GGUF file, or cut off.
        FormatError: If its architecture or tokenizer cannot be converted.
    """
    read_header(file)  # before hashing what may be gigabytes of something else
    content = sha256(file)
    folder = workbench_cache() / "gguf" / f"{content[:16]}-{CONVERTER}"
    identity = {"sha256": content, "converter": CONVERTER}

    def build(_work: Path, target: Path) -> None:
        log.info("Converting %s once, into %s", file.name, folder)
        convert_gguf(file, target)

    return install(folder, identity, build, about={"name": file.name})


def convert_gguf(file: Path, destination: Path) -> Path:
    """Writes config, float32 weights and tokenizer of a GGUF file into `destination`.

    Takes memory for the weights in float32, about twice; 30 s for 135 million of them.

    Raises:
        WeightsError: If it is no GGUF file, or cut off.
        FormatError: If its architecture or tokenizer cannot be converted.
    """
    header = read_header(file)
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        # A folder of its own: transformers would also read configs that lie beside the file.
        alone = Path(name, "model.gguf")
        alone.symlink_to(file.resolve())
        try:
            _convert_model(alone, destination, header)
            _convert_tokenizer(alone, destination, header)
        except FormatError:
            raise
        except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception
            kind = header.text("general.architecture")
            raise FormatError(
                f"{file}: transformers cannot convert this GGUF file of architecture {kind!r} "
                f"({error}). Load the model's Hugging Face folder or hub id instead."
            ) from None
    return destination


def _convert_model(file: Path, destination: Path, header: Header) -> None:
    import safetensors.torch
    import transformers

    untyped: Any = transformers
    place: dict[str, Any] = {"gguf_file": file.name}
    config = untyped.AutoConfig.from_pretrained(str(file.parent), **place)
    architecture = header.text("general.architecture") or ""
    for key, name in MISREAD.get(architecture, {}).items():
        config.update({name: header.number(f"{architecture}.{key}")})
    model: PreTrainedModel = untyped.AutoModelForCausalLM.from_pretrained(
        str(file.parent), **place, config=config, dtype=torch.float32
    )
    weights = untied(dict(model.state_dict()))
    files: Any = safetensors.torch
    files.save_file(weights, destination / "model.safetensors", metadata={"format": "pt"})
    text = model.config.to_json_string(use_diff=True)
    write_json(destination / "config.json", plain_config(text, type(model).__name__))
    ends = [header.number(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot")]
    eos = list(dict.fromkeys(end for end in ends if end is not None))
    generation = {
        "bos_token_id": header.number("tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": header.number("tokenizer.ggml.padding_token_id"),
    }
    present = {key: value for key, value in generation.items() if value is not None}
    write_json(destination / "generation_config.json", present)


def untied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once: of several names for the same memory the first is kept."""
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in weights.items():
        first.setdefault((tensor.data_ptr(), tensor.shape), name)
    return {name: weights[name].detach().contiguous() for name in first.values()}


def plain_config(text: str, architecture: str) -> dict[str, Any]:
    """A `config.json` that says what the model is, and nothing about where it was read from."""
    data: dict[str, Any] = json.loads(text)
    kept = {key: value for key, value in data.items() if key not in NOT_CONFIG}
    return {**kept, "architectures": [architecture], "dtype": "float32"}


def _convert_tokenizer(file: Path, destination: Path, header: Header) -> None:
    import transformers

    auto: Any = transformers.AutoTokenizer  # untyped
    tokenizer: Any = auto.from_pretrained(str(file.parent), gguf_file=file.name)
    backend: Backend = tokenizer.backend_tokenizer
    if header.text("tokenizer.ggml.model") == "gpt2":
        correct_split(backend, header.text("tokenizer.ggml.pre"))
    tokenizer.save_pretrained(str(destination))
    rows = next((t.shape[-1] for t in header.tensors if t.name == "token_embd.weight"), None)
    kept = backend if rows is None else without_additions(backend, rows)
    kept.save(str(destination / "tokenizer.json"), pretty=False)
    config = read_table(destination / "tokenizer_config.json")
    known = {
        key: value
        for key, value in config.items()
        if not key.endswith("_token") or kept.token_to_id(str(value)) is not None
    }
    write_json(destination / "tokenizer_config.json", known)


def without_additions(backend: "Backend", n_rows: int) -> "Backend":
    """The tokenizer without tokens the model has no row for, which its class adds by default."""
    state: dict[str, Any] = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < n_rows]
    return type(backend).from_str(json.dumps(state))


def correct_split(backend: "Backend", way: str | None) -> None:
    """Makes a byte-level tokenizer split text as llama.cpp's `way` does.

    Raises:
        FormatError: If that way is unknown here and to transformers.
    """
    from tokenizers import pre_tokenizers

    state: dict[str, Any] = json.loads(backend.to_str())["pre_tokenizer"] or {}
    if state.get("type") != "ByteLevel" or not state.get("use_regex") or way in LIKE_GPT2:
        return  # transformers knew it, or it is GPT-2's
    if way not in DIGITS_FIRST:
        raise FormatError(
            f"The GGUF file's tokenizer splits text in the way {way!r}, which is not known here; "
            "load the model's Hugging Face folder or hub id instead."
        )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
