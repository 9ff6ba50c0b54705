"""Tiny random models with every bias and norm weight drawn, made without a download or a seed.

Weights come from a generator of their own, so the global one is never touched on purpose, and no
parameter is left at a value (0, 1) that would hide a term of the forward.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import torch
from jaxtyping import config
from torch import Tensor
from typing_extensions import override

import workbench as wb
from workbench.core.data import Batch
from workbench.core.errors import TokenError
from workbench.core.sites import Site
from workbench.core.tap import Tap
from workbench.models.transformer import Transformer

EOS, BOS = 256, 257
LLAMA: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,  # not hidden_size / heads
    "max_position_embeddings": 32,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
GPT2: dict[str, Any] = {
    "vocab_size": 258,
    "n_embd": 24,
    "n_inner": 40,
    "n_layer": 3,
    "n_head": 3,
    "n_positions": 32,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
KINDS = ("llama", "gpt2")


@final
@dataclass(frozen=True)
class Bytes:
    """A vocabulary whose tokens are bytes: every text has ids, many ids are no text."""

    bos_id: int | None = BOS
    eos_ids: tuple[int, ...] = (EOS,)
    mask_id: int | None = None

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """UTF-8, nothing around it."""
        return tuple(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """UTF-8 with U+FFFD for what is none; special tokens between angle brackets."""
        text, run = "", b""
        for i in ids:
            if i < 256:
                run += bytes([i])
                continue
            text, run = text + run.decode(errors="replace"), b""
            text += "" if skip_special else f"<{i}>"
        return text + run.decode(errors="replace")

    def token_text(self, token: int) -> str:
        """The byte's character, or its number."""
        return chr(token) if 32 <= token < 127 else f"<{token}>"

    def single(self, text: str) -> int:
        """The byte of an ASCII character."""
        ids = self.encode(text)
        if len(ids) != 1:
            raise TokenError(text, map(self.token_text, ids))
        return ids[0]


def hf_llama(**changes: Any) -> Any:
    """A Hugging Face Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**LLAMA, **changes})
    config._attn_implementation = "eager"  # the only one that returns patterns
    return randomised(LlamaForCausalLM(config))


def hf_gpt2(**changes: Any) -> Any:
    """A Hugging Face GPT-2 with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(**{**GPT2, **changes})
    config._attn_implementation = "eager"
    return randomised(GPT2LMHeadModel(config))


def hf(kind: str, **changes: Any) -> Any:
    """A Hugging Face model of a family."""
    return hf_llama(**changes) if kind == "llama" else hf_gpt2(**changes)


def randomised(model: Any, seed: int = 0, gain: float = 1.2) -> Any:
    """The same model with all its parameters drawn anew, biases and norm weights too.

    `gain` is what a matrix does to the size of what it reads.
    """
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=draws)
            if weight.ndim == 1 and name.endswith("weight"):
                weight.copy_(1 + 0.3 * noise)  # of a norm
            elif weight.ndim == 1:
                weight.copy_(0.3 * noise)
            else:
                narrow = min(weight.shape)
                weight.copy_(noise * gain / narrow**0.5)
    return model.eval()


@cache
def model(kind: str = "llama", dtype: torch.dtype = torch.float32) -> Transformer:
    """The tiny model of a family, with a vocabulary of bytes; shared by all tests, as it may be."""
    changes = {"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}
    return wb.load(hf(kind, **changes), tokenizer=Bytes(), dtype=dtype)


def tokens(*shape: int, seed: int = 0, high: int = 256) -> Tensor:
    """Random ids."""
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(rows: Sequence[Sequence[int]], prompts: Sequence[int], side: str = "right") -> Batch:
    """Finished texts as one batch, of which the first `prompts` tokens are the prompt."""
    longest = max(map(len, rows))
    filled, real = [], []
    for row in rows:
        pads = longest - len(row)
        left, right = (pads, 0) if side == "left" else (0, pads)
        filled.append([0] * left + list(row) + [0] * right)
        real.append([False] * left + [True] * len(row) + [False] * right)
    mask = torch.tensor(real)
    zeros = torch.zeros(len(rows), dtype=torch.long)
    return Batch(
        torch.tensor(filled), None if bool(mask.all()) else mask, zeros, torch.tensor(list(prompts))
    )


@contextmanager
def unchecked() -> Iterator[None]:
    """Functions as users have them: else, in tests, beartype stands before every one of ours.

    For what users may pass of the wrong type, and for suites of thousands of forwards, in which
    the checks of other tests would take three quarters of the time.
    """
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit for bit: -0.0 is not 0.0, NaN equals itself."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    kind = kinds[one.element_size()]
    return torch.equal(one.contiguous().view(kind), other.contiguous().view(kind))


@final
class Spy(Tap):
    """Notes every site it is called at, with the shape; asks for the sites it is told to."""

    def __init__(self, wanted: Callable[[Site], bool] = lambda site: True) -> None:
        self._wanted = wanted
        self.fired: list[tuple[Site, tuple[int, ...]]] = []

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        self.fired.append((site, tuple(value.shape)))
        return value

    @override
    def wants(self, site: Site) -> bool:
        return self._wanted(site)

    @property
    def sites(self) -> list[Site]:
        """Where it was called, in order."""
        return [site for site, _ in self.fired]


def digest(model: Transformer) -> str:
    """Of every byte of the weights."""
    state = hashlib.sha256()
    for name, weight in model.stack.named_parameters(remove_duplicate=False):
        state.update(name.encode())
        state.update(weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def close(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> None:
    """Asserts that no value differs by more than `tolerance`, which float64 keeps at 1e-10."""
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
