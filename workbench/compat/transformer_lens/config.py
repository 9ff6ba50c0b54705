"""`HookedTransformerConfig`: the sizes and choices of one transformer, by their classic names.

Notable: it may be written to, as classic code does; a facade keeps a copy of its own. A seed seeds
a generator, never the process.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import sqrt
from typing import Any, final

import torch

from workbench.core.errors import OptionError, UnknownNameError

ACTIVATION_NAMES = (
    "relu",
    "gelu",
    "gelu_new",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "silu",
    "solu",
    "solu_ln",
    "xielu",
)
NORMALIZATIONS = ("LN", "LNPre", "RMS", "RMSPre", None)
POSITIONS = ("standard", "rotary", "shortformer", "alibi", "relative_positional_bias")
DIRECTIONS = ("causal", "bidirectional")
INIT_MODES = (
    "gpt2",
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "muP",
)


@final
@dataclass
class HookedTransformerConfig:
    """What a classic model is built from; fields, defaults and derived values as in 2.x.

    `n_heads` -1 is d_model // d_head, `d_mlp` None is 4 d_model, `d_vocab_out` -1 is d_vocab,
    `rotary_dim` None is d_head, `attn_scale` -1 is the root of d_head (scores are divided by it).
    `n_params` counts hidden weights only: no biases, norms or embeddings.
    """

    n_layers: int
    d_model: int
    n_ctx: int
    d_head: int
    model_name: str = "custom"
    n_heads: int = -1
    d_mlp: int | None = None
    act_fn: str | None = None
    d_vocab: int = -1
    eps: float = 1e-5
    use_attn_result: bool = False
    use_attn_scale: bool = True
    attn_scale: float = -1.0
    use_split_qkv_input: bool = False
    use_hook_mlp_in: bool = False
    use_attn_in: bool = False
    use_qk_norm: bool = False
    use_local_attn: bool = False
    ungroup_grouped_query_attention: bool = False
    original_architecture: str | None = None
    from_checkpoint: bool = False
    checkpoint_index: int | None = None
    checkpoint_label_type: str | None = None
    checkpoint_value: int | None = None
    tokenizer_name: str | None = None
    window_size: int | None = None
    attn_types: list[str] | None = None
    init_mode: str = "gpt2"
    normalization_type: str | None = "LN"
    device: str | None = None
    n_devices: int = 1
    attention_dir: str = "causal"
    attn_only: bool = False
    seed: int | None = None
    initializer_range: float = -1.0
    init_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    positional_embedding_type: str = "standard"
    final_rms: bool = False
    d_vocab_out: int = -1
    parallel_attn_mlp: bool = False
    rotary_dim: int | None = None
    n_params: int | None = None
    use_hook_tokens: bool = False
    gated_mlp: bool = False
    default_prepend_bos: bool = True
    dtype: torch.dtype = torch.float32
    tokenizer_prepends_bos: bool | None = None
    n_key_value_heads: int | None = None
    post_embedding_ln: bool = False
    rotary_base: int | float = 10000
    rotary_base_local: int | float | None = None
    trust_remote_code: bool = False
    rotary_adjacent_pairs: bool = False
    load_in_4bit: bool = False
    num_experts: int | None = None
    experts_per_token: int | None = None
    relative_attention_max_distance: int | None = None
    relative_attention_num_buckets: int | None = None
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_normalization_before_and_after: bool = False
    attn_scores_soft_cap: float = -1.0
    output_logits_soft_cap: float = -1.0
    use_NTK_by_parts_rope: bool = False  # noqa: N815 - the classic's name
    NTK_by_parts_low_freq_factor: float = 1.0
    NTK_by_parts_high_freq_factor: float = 4.0
    NTK_by_parts_factor: float = 8.0
    NTK_original_ctx_len: int = 8192

    def __post_init__(self) -> None:
        """Derives what was left out.

        Raises:
            OptionError: If a field is outside what it may be.
        """
        for name in ("n_layers", "d_model", "n_ctx", "d_head"):
            _positive(name, self.__dict__[name])
        self.n_heads = self.d_model // self.d_head if self.n_heads == -1 else self.n_heads
        _positive("n_heads", self.n_heads)
        _one_of("normalization_type", self.normalization_type, NORMALIZATIONS)
        _one_of("positional_embedding_type", self.positional_embedding_type, POSITIONS)
        _one_of("attention_dir", self.attention_dir, DIRECTIONS)
        _one_of("init_mode", self.init_mode, INIT_MODES)
        self._derive_mlp()
        self._derive_attention()
        if self.initializer_range < 0:
            self.initializer_range = 0.8 / sqrt(self.d_model) if self.init_mode == "gpt2" else 1.0
        self.d_vocab_out = self.d_vocab if self.d_vocab_out == -1 else self.d_vocab_out
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.n_params = self._count()

    @property
    def groups(self) -> int:
        """The key-value heads: as many as heads, without grouping."""
        return self.n_heads if self.n_key_value_heads is None else self.n_key_value_heads

    @property
    def key_heads(self) -> int:
        """The heads of keys and values where they are seen: one per group, unless ungrouped."""
        return self.n_heads if self.ungroup_grouped_query_attention else self.groups

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> "HookedTransformerConfig":
        """A config from its fields by name.

        Raises:
            UnknownNameError: If a key is no field; names the nearest.
        """
        known = [field.name for field in fields(cls)]
        for name in config_dict:
            if name not in known:
                raise UnknownNameError("config field", name, known)
        return cls(**config_dict)

    @classmethod
    def unwrap(
        cls, config: "Mapping[str, Any] | HookedTransformerConfig"
    ) -> "HookedTransformerConfig":
        """A config, from one or from its fields by name."""
        return config if isinstance(config, HookedTransformerConfig) else cls.from_dict(config)

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)

    def is_layer_norm_activation(self) -> bool:
        """Whether the activation function has a norm of its own."""
        return self.act_fn is not None and self.act_fn.endswith("_ln")

    def _derive_mlp(self) -> None:
        if (self.num_experts is None) != (self.experts_per_token is None):
            both = "given with experts_per_token, or neither"
            raise OptionError("num_experts", both, self.num_experts)
        if self.attn_only:
            return
        self.d_mlp = 4 * self.d_model if self.d_mlp is None else self.d_mlp
        _one_of("act_fn", self.act_fn, ACTIVATION_NAMES)

    def _derive_attention(self) -> None:
        if self.use_local_attn and (self.window_size is None or self.attn_types is None):
            raise OptionError("use_local_attn", "given with window_size and attn_types", True)  # noqa: FBT003
        if self.n_heads % self.groups:
            raise OptionError("n_key_value_heads", f"a divisor of {self.n_heads}", self.groups)
        if self.positional_embedding_type == "rotary" and self.rotary_dim is None:
            self.rotary_dim = self.d_head
        if self.use_attn_scale and self.attn_scale == -1.0:
            self.attn_scale = sqrt(self.d_head)

    def _count(self) -> int:
        attention = 4 * self.d_model * self.d_head * self.n_heads
        if self.attn_only or self.d_mlp is None:
            return self.n_layers * attention
        mlp = self.d_model * self.d_mlp * (2 + self.gated_mlp)
        if self.num_experts:
            mlp = (mlp + self.d_model) * self.num_experts
        return self.n_layers * (attention + mlp)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise OptionError(name, "1 or more", value)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise OptionError(name, f"one of {', '.join(map(repr, allowed))}", value)
