"""A model of plain tensors with the classic attributes, and the golden files it is built from.

Stands in for the facade, so that the analysis objects are tested by themselves.
"""

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, final

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import override

import workbench as wb
from tests import tiny
from workbench.compat.transformer_lens.activation_cache import ActivationCache
from workbench.core.errors import TokenError
from workbench.core.sites import Site
from workbench.core.tap import Tap
from workbench.models.transformer import Transformer

GOLDENS = Path(__file__).parent / "goldens"
NAMES = ("ln", "rms")


@cache
def golden(file: str, group: str) -> dict[str, Tensor]:
    """The tensors of one group of a golden file, by name."""
    found = load_file(GOLDENS / f"{file}.safetensors")
    return {k.split("/", 1)[1]: v for k, v in found.items() if k.startswith(f"{group}/")}


@cache
def said() -> dict[str, Any]:
    """What the golden files' maker wrote beside them."""
    return json.loads((GOLDENS / "analysis.json").read_text())


@final
@dataclass(frozen=True)
class Config:
    """The classic configuration's names."""

    n_layers: int = 2
    n_heads: int = 4
    n_key_value_heads: int | None = None
    n_ctx: int = 16
    d_mlp: int | None = 24
    attn_only: bool = False
    normalization_type: str | None = "LN"
    use_normalization_before_and_after: bool = False
    final_rms: bool = False
    positional_embedding_type: str = "standard"
    attention_dir: str = "causal"


@final
@dataclass(frozen=True, eq=False)
class Part:
    """The weights of one sublayer."""

    W_O: Any = None
    W_out: Any = None


@final
@dataclass(frozen=True, eq=False)
class Block:
    """One block."""

    attn: Part
    mlp: Part


@final
@dataclass(frozen=True)
class Point:
    """A site with its hooks."""

    fwd_hooks: tuple[Any, ...]


@final
class Hooked(Tap):
    """Calls classic hooks."""

    def __init__(self, hooks: list[tuple[str, Any]]) -> None:
        self._hooks = hooks

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        for name, hook in self._hooks:
            if name == str(site):
                value = hook(value.clone(), hook=None)
        return value

    @override
    def wants(self, site: Site) -> bool:
        return any(name == str(site) for name, _ in self._hooks)


@final
class Standin:
    """The classic attributes of a model, read from its weights by their classic names."""

    def __init__(self, weights: dict[str, Tensor], cfg: Config, engine: Any = None) -> None:
        self.cfg, self.engine, self._weights = cfg, engine, weights
        self.W_U = weights["unembed.W_U"]
        self.hook_dict: dict[str, Point] = {}
        self.mask: Tensor | None = None
        self.fixed: Tensor | None = None  # what every text is, where it is set
        self.blocks = [self._block(layer) for layer in range(cfg.n_layers)]

    def state_dict(self) -> dict[str, Tensor]:
        return self._weights

    def ln_final(self, x: Tensor) -> Tensor:
        if self.cfg.normalization_type == "LN":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * self._weights["ln_final.w"] + self._weights.get("ln_final.b", torch.zeros(()))

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Tensor:
        names = [f"blocks.{block}.attn.b_O" for block in range(layer + mlp_input)]
        if include_mlp_biases:
            names += [f"blocks.{block}.mlp.b_out" for block in range(layer)]
        kept = [self._weights[name] for name in names if name in self._weights]
        return torch.stack([torch.zeros(len(self.W_U)), *kept]).sum(0)

    def to_single_token(self, string: str) -> int:
        if len(string) != 1:
            raise TokenError(string, string)
        return ord(string) % 40

    def to_tokens(self, input: str | list[str]) -> Tensor:  # noqa: A002
        if self.fixed is not None:
            return self.fixed
        texts = [input] if isinstance(input, str) else input
        return torch.tensor([[self.to_single_token(c) for c in text] for text in texts])

    def run_with_cache(
        self,
        input: Any,  # noqa: A002
        *,
        remove_batch_dim: bool = False,
    ) -> tuple[Tensor, ActivationCache]:
        trace = wb.run(self.engine, input, record="*")
        found = {str(site): value for site, value in trace.items()}
        cached = ActivationCache(found, self)
        return trace.logits, cached.remove_batch_dim() if remove_batch_dim else cached

    def input_to_embed(self, input: Tensor) -> tuple[None, None, None, Tensor | None]:  # noqa: A002
        """Nothing but the mask."""
        return None, None, None, self.mask

    def run_with_hooks(self, input: Tensor, *, fwd_hooks: Any = ()) -> Tensor:  # noqa: A002
        """The logits under one hook after those that stand, by a whole forward."""
        standing = [(name, hook) for name, at in self.hook_dict.items() for hook in at.fwd_hooks]
        return wb.run(self.engine, input, tap=Hooked([*standing, *fwd_hooks])).logits

    def _block(self, layer: int) -> Block:
        at = f"blocks.{layer}"
        attn = Part(W_O=self._weights[f"{at}.attn.W_O"])
        return Block(attn, Part(W_out=self._weights.get(f"{at}.mlp.W_out")))


@final
@dataclass(frozen=True)
class Golden:
    """One golden model, its recorded runs, and what TransformerLens 2.18 made of them."""

    name: str

    @property
    def weights(self) -> dict[str, Tensor]:
        return golden(f"analysis_{self.name}", "weight")

    @property
    def tokens(self) -> dict[str, Tensor]:
        return golden(f"analysis_{self.name}", "tokens")

    def expected(self, group: str) -> dict[str, Tensor]:
        return golden(f"analysis_{self.name}_expected", group)

    @cached_property
    def model(self) -> Standin:
        changes: dict[str, Any] = {}
        if self.name == "rms":
            changes = {"n_key_value_heads": 2, "positional_embedding_type": "rotary"}
        cfg = Config(normalization_type=self.name.upper(), **changes)
        return Standin(self.weights, cfg, engine(self.name))

    def cache(self) -> ActivationCache:
        """A cache of its own, made of the recorded activations."""
        return ActivationCache(golden(f"analysis_{self.name}", "clean"), self.model)


@cache
def engine(name: str) -> Transformer:
    """The engine's model with a golden model's weights, through Hugging Face's own names."""
    made = _llama() if name == "rms" else _gpt2()
    weights = golden(f"analysis_{name}", "weight")
    state = _llama_weights(weights) if name == "rms" else _gpt2_weights(weights)
    made.load_state_dict(state, strict=True)
    return wb.load(made, tokenizer=tiny.Bytes())


def _gpt2() -> Any:
    return tiny.hf_gpt2(
        vocab_size=40, n_embd=32, n_inner=24, n_layer=2, n_head=4, n_positions=16,
        bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip


def _llama() -> Any:
    return tiny.hf_llama(
        vocab_size=40, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=16,
        bos_token_id=0, eos_token_id=1, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5,
    )  # fmt: skip


def _gpt2_weights(w: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {
        "transformer.wte.weight": w["embed.W_E"],
        "transformer.wpe.weight": w["pos_embed.W_pos"],
        "transformer.ln_f.weight": w["ln_final.w"],
        "transformer.ln_f.bias": w["ln_final.b"],
        "lm_head.weight": w["unembed.W_U"].T,
    }
    for layer in range(2):
        old, new = f"blocks.{layer}", f"transformer.h.{layer}"
        qkv = [_joined(w[f"{old}.attn.W_{part}"]) for part in "QKV"]
        state |= {
            f"{new}.ln_1.weight": w[f"{old}.ln1.w"],
            f"{new}.ln_1.bias": w[f"{old}.ln1.b"],
            f"{new}.ln_2.weight": w[f"{old}.ln2.w"],
            f"{new}.ln_2.bias": w[f"{old}.ln2.b"],
            f"{new}.attn.c_attn.weight": torch.cat(qkv, 1),
            f"{new}.attn.c_attn.bias": torch.cat([w[f"{old}.attn.b_{p}"].flatten() for p in "QKV"]),
            f"{new}.attn.c_proj.weight": w[f"{old}.attn.W_O"].flatten(0, 1),
            f"{new}.attn.c_proj.bias": w[f"{old}.attn.b_O"],
            f"{new}.mlp.c_fc.weight": w[f"{old}.mlp.W_in"],
            f"{new}.mlp.c_fc.bias": w[f"{old}.mlp.b_in"],
            f"{new}.mlp.c_proj.weight": w[f"{old}.mlp.W_out"],
            f"{new}.mlp.c_proj.bias": w[f"{old}.mlp.b_out"],
        }
    return state


def _llama_weights(w: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {
        "model.embed_tokens.weight": w["embed.W_E"],
        "model.norm.weight": w["ln_final.w"],
        "lm_head.weight": w["unembed.W_U"].T,
    }
    for layer in range(2):
        old, new = f"blocks.{layer}", f"model.layers.{layer}"
        state |= {
            f"{new}.input_layernorm.weight": w[f"{old}.ln1.w"],
            f"{new}.post_attention_layernorm.weight": w[f"{old}.ln2.w"],
            f"{new}.self_attn.o_proj.weight": w[f"{old}.attn.W_O"].flatten(0, 1).T,
            f"{new}.self_attn.o_proj.bias": w[f"{old}.attn.b_O"],
            f"{new}.mlp.gate_proj.weight": w[f"{old}.mlp.W_gate"].T,
            f"{new}.mlp.gate_proj.bias": torch.zeros(24),
            f"{new}.mlp.up_proj.weight": w[f"{old}.mlp.W_in"].T,
            f"{new}.mlp.up_proj.bias": torch.zeros(24),
            f"{new}.mlp.down_proj.weight": w[f"{old}.mlp.W_out"].T,
            f"{new}.mlp.down_proj.bias": w[f"{old}.mlp.b_out"],
        }
        for part, name in (("Q", "W_Q"), ("K", "_W_K"), ("V", "_W_V")):
            to = f"{new}.self_attn.{part.lower()}_proj"
            state[f"{to}.weight"] = _joined(w[f"{old}.attn.{name}"]).T
            state[f"{to}.bias"] = w[f"{old}.attn.{name.replace('W', 'b')}"].flatten()
    return state


def _joined(weight: Tensor) -> Tensor:
    return rearrange(weight, "head d_model d_head -> d_model (head d_head)")


LN, RMS = Golden("ln"), Golden("rms")
BOTH = (LN, RMS)


def close(one: Tensor, other: Tensor, tolerance: float = 2e-5) -> None:
    """Asserts equality up to float32's rounding of sums over a width of 32, which is here 1e-5."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=tolerance)
