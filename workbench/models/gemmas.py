"""What the Gemmas share: norms times 1 + weight, scaled embeddings, soft caps, sandwich blocks."""

from workbench.core.protocols import Sizes
from workbench.models import modern
from workbench.models.config import Activation, Config, gelu_tanh
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.mlp import GatedMLP
from workbench.models.layers.norm import ShiftedRMSNorm
from workbench.models.layers.sandwich import SandwichBlock

READ = (modern.READ - {"hidden_act"}) | frozenset(
    "head_dim hidden_activation attention_bias sliding_window layer_types query_pre_attn_scalar "
    "final_logit_softcapping attn_logit_softcapping".split()
)
SANDWICH = (
    ("input_layernorm", "ln1"),
    ("post_attention_layernorm", "ln1_post"),
    ("pre_feedforward_layernorm", "ln2"),
    ("post_feedforward_layernorm", "ln2_post"),
)


def norm(config: Config, width: int, name: str, layer: int | None) -> ShiftedRMSNorm:
    """A norm of a block, or after all of them."""
    return ShiftedRMSNorm(width, config.number("rms_norm_eps", 1e-6), modern.place(layer), name)


def embedding(sizes: Sizes) -> Embedding:
    """Embeddings times the root of their width."""
    return Embedding(sizes.d_vocab, sizes.d_model, scale=sizes.d_model**0.5)


def unembedding(sizes: Sizes, config: Config, default: float | None) -> Unembedding:
    """Logits, capped where the config says so."""
    capped = cap(config, "final_logit_softcapping", default)
    return Unembedding(sizes.d_model, sizes.d_vocab, cap=capped)


def cap(config: Config, name: str, default: float | None) -> float | None:
    """A soft cap; None where there is none."""
    given = config.values.get(name, default)
    return None if given is None else config.number(name, default or 1.0)


def scale(config: Config) -> float:
    """What multiplies the scores."""
    return float(config.count("query_pre_attn_scalar", default=256)) ** -0.5


def block(layer: int, sizes: Sizes, config: Config, attn: Attention) -> SandwichBlock:
    """A block of Gemma 2 and 3, around its attention."""
    act = activation(config)
    return SandwichBlock(
        in_block(layer),
        ln1=norm(config, sizes.d_model, "ln1", layer),
        attn=attn,
        ln1_post=norm(config, sizes.d_model, "ln1_post", layer),
        ln2=norm(config, sizes.d_model, "ln2", layer),
        mlp=GatedMLP(sizes.d_model, sizes.d_mlp, act, in_block(layer), bias=False),
        ln2_post=norm(config, sizes.d_model, "ln2_post", layer),
    )


def activation(config: Config, key: str = "hidden_activation") -> Activation:
    """The activation; where Gemma's first configs say "gelu", its approximation was meant."""
    act = config.values.get(key)
    return gelu_tanh if act in (None, "gelu") else config.activation(key, "gelu_pytorch_tanh")
