"""What families of encoders share: which head a checkpoint has, blocks, and weights by two tables.

Notable: a checkpoint of one architecture may hold heads of others (Google's BERT for masked words
has a next-sentence head too); those that the config's `architectures` does not name are left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from workbench.core.errors import OptionError
from workbench.core.protocols import Output, Sizes
from workbench.models.config import Activation, Config
from workbench.models.family import renamed, tie
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import in_block, outside_blocks
from workbench.models.layers.disentangled import Disentangled
from workbench.models.layers.head import AnyHead
from workbench.models.layers.heads import Classifier, Headless, Pooler
from workbench.models.layers.mlp import MLP
from workbench.models.layers.norm import LayerNorm
from workbench.models.layers.post_norm import PostNormBlock
from workbench.models.transformer import Stack

MASKED, MODEL, PRETRAINING = "MaskedLM", "Model", "PreTraining"
TEXTS, WORDS = "SequenceClassification", "TokenClassification"
KINDS = (MASKED, MODEL, TEXTS, WORDS)
ANSWERS: Mapping[str, Output] = {
    MASKED: Output("vocabulary", "mask"),
    PRETRAINING: Output("vocabulary", "mask"),
    "NextSentencePrediction": Output("labels", "first", ("it follows", "it does not")),
    MODEL: Output("stream", "first"),
}


def kind_of(config: Config, kinds: Sequence[str] = KINDS) -> str:
    """Which head the config's `architectures` names; without that, a masked language model's.

    Raises:
        OptionError: If it is none of `kinds`.
    """
    named: Any = config.values.get("architectures") or [f"For{MASKED}"]
    name = str(cast("Sequence[object]", named)[0]) if isinstance(named, list | tuple) else ""
    kind = name.rpartition("For")[2] if "For" in name else name[-len(MODEL) :]
    if kind not in kinds:
        allowed = f"one of …{', …'.join(kinds)}"
        raise OptionError(f"{config.family}: config key 'architectures'", allowed, named)
    return kind


def output_of(kind: str, config: Config) -> Output:
    """What a head says, and where it is read."""
    if kind in ANSWERS:
        return ANSWERS[kind]
    return Output("labels", "asked" if kind == WORDS else "first", labels_of(config))


def labels_of(config: Config) -> tuple[str, ...]:
    """The names of a classifier's labels; two without names where the config says nothing.

    Raises:
        OptionError: If they are not a table from 0 up.
    """
    given: object = config.values.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}
    if not isinstance(given, Mapping):
        raise OptionError(f"{config.family}: config key 'id2label'", "a table", given)
    named = {str(key): str(name) for key, name in cast("Mapping[object, object]", given).items()}
    numbers = [str(number) for number in range(len(named))]
    if sorted(named) != sorted(numbers):
        allowed = "labels by number, from 0 up"
        raise OptionError(f"{config.family}: config key 'id2label'", allowed, given)
    return tuple(named[number] for number in numbers)


def head_of(kind: str, sizes: Sizes, of_texts: Pooler | None, of_model: Pooler | None) -> AnyHead:
    """A head but a language model's; the poolers are those of a text classifier and of none."""
    if kind == MODEL:
        return Headless(of_model)
    return Classifier(sizes.d_model, len(sizes.output.labels), None if kind == WORDS else of_texts)


def d_head_of(config: Config, d_model: int, n_heads: int) -> int:
    """The width of a head.

    Raises:
        OptionError: If the heads do not divide d_model.
    """
    if d_model % n_heads:
        allowed = f"a multiple of the number of heads, {n_heads}"
        raise OptionError(f"{config.family}: the hidden size", allowed, d_model)
    return d_model // n_heads


def sizes_of(config: Config, n_ctx: int, output: Output) -> Sizes:
    """The sizes of a config with BERT's keys."""
    d_model, n_heads = config.count("hidden_size"), config.count("num_attention_heads")
    return Sizes(
        n_layers=config.layers("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=d_head_of(config, d_model, n_heads),
        d_mlp=config.count("intermediate_size"),
        d_vocab=config.count("vocab_size"),
        n_ctx=n_ctx,
        output=output,
    )


def block_of(
    layer: int,
    sizes: Sizes,
    act: Activation,
    eps: float,
    *,
    scale: float | None = None,
    relative: Disentangled | None = None,
) -> PostNormBlock:
    """A post-norm block of LayerNorms and a plain feed-forward, with biases everywhere."""
    at = in_block(layer)
    attention = Attention(
        layer,
        sizes.d_model,
        sizes.n_heads,
        sizes.n_heads,
        sizes.d_head,
        at,
        scale=sizes.d_head**-0.5 if scale is None else scale,
        rotary=False,
        bias=True,
        out_bias=True,
        relative=relative,
    )
    return PostNormBlock(
        at,
        attn=attention,
        ln1=LayerNorm(sizes.d_model, eps, at, "ln1"),
        mlp=MLP(sizes.d_model, sizes.d_mlp, act, at, bias=True),
        ln2=LayerNorm(sizes.d_model, eps, at, "ln2"),
    )


def norm_of(width: int, eps: float, name: str) -> LayerNorm:
    """A LayerNorm outside the blocks."""
    return LayerNorm(width, eps, outside_blocks, name)


def both(names: Mapping[str, str]) -> dict[str, str]:
    """Weight and bias of each."""
    kinds = ("weight", "bias")
    return {f"{old}.{kind}": f"{new}.{kind}" for old, new in names.items() for kind in kinds}


def in_layers(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """Weight and bias of each part of a layer."""
    return both({f"{prefix}.{{}}.{old}": f"blocks.{{}}.{new}" for old, new in names.items()})


BERT_LAYER = {
    "attention.self.query": "attn.q",
    "attention.self.key": "attn.k",
    "attention.self.value": "attn.v",
    "attention.output.dense": "attn.o",
    "attention.output.LayerNorm": "ln1",
    "intermediate.dense": "mlp.up",
    "output.dense": "mlp.down",
    "output.LayerNorm": "ln2",
}


def bert_body(prefix: str) -> dict[str, str]:
    """The names of the embedding and blocks of BERT and its nearest."""
    embeddings = {
        f"{prefix}.embeddings.{old}_embeddings.weight": f"embed.{new}"
        for old, new in (("word", "tokens"), ("position", "positions"), ("token_type", "types"))
    }
    norm = both({f"{prefix}.embeddings.LayerNorm": "embed.ln"})
    return {**embeddings, **norm, **in_layers(f"{prefix}.encoder.layer", BERT_LAYER)}


def matched(
    weights: Mapping[str, Tensor],
    stack: Stack,
    body: Mapping[str, str],
    heads: Iterable[tuple[str, str]],
    *,
    prefix: str,
    ignored: tuple[str, ...] = ("embeddings.position_ids",),
) -> Mapping[str, Tensor]:
    """Weights by the table of the body, and those of the heads that this stack has.

    Of several old names for one weight the first that is there counts. A bare model's names have
    no `prefix`.
    """
    pairs = tuple(heads)
    known = {name for name, _ in stack.named_parameters(remove_duplicate=False)}
    own = (prefix, *(old.partition(".")[0] for old, _ in pairs))
    full = {
        name if name.startswith(tuple(f"{start}." for start in own)) else f"{prefix}.{name}": tensor
        for name, tensor in _spelt_anew(weights).items()
    }
    used = {old: new for old, new in reversed(pairs) if new in known and old in full}
    first = {new: old for old, new in used.items()}
    used = {old: new for new, old in first.items()}
    spare = {old for old, _ in pairs} - set(used)
    kept = {name: tensor for name, tensor in full.items() if name not in spare}
    found = renamed(kept, {**body, **used}, stack.sizes.n_layers, ignored)
    return tie(found, stack, "unembed.words.weight")


def _spelt_anew(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Norms' weights as they are named today; the first checkpoints say gamma and beta."""
    new = {".gamma": ".weight", ".beta": ".bias"}
    return {
        next(
            (name.removesuffix(old) + to for old, to in new.items() if name.endswith(old)), name
        ): t
        for name, t in weights.items()
    }
