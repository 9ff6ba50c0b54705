"""Induction by two heads: "… a b … a" is continued by "b"; built by hand, every weight known.

Residual slices TOK(16) POS(16) PRV(16) OUT(16) NULL(6). Head 0.0 attends to the previous position
and copies its token to PRV; head 1.0 looks for positions whose PRV is the current token and copies
their token to OUT. Heads 0.1 and 1.1 are random distractors that write where nobody reads. In
float64, without norms, MLPs or biases, scores unscaled, sharpened by `BETA`.
"""

from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.attribution.known_truth.symbols import Symbols
from workbench.attribution.known_truth.truth import KnownTruth
from workbench.core.data import Contrast
from workbench.core.protocols import Sizes
from workbench.models.layers.attention import Attention
from workbench.models.layers.context import in_block
from workbench.models.layers.embed import Embedding, Unembedding
from workbench.models.layers.norm import NoNorm
from workbench.models.transformer import Block, Stack, Transformer

N = 16  # tokens, and positions
D_MODEL, D_HEAD = 4 * N + 6, N
TOK, POS, PRV, OUT = (slice(i * N, (i + 1) * N) for i in range(4))
NULL = slice(4 * N, D_MODEL)
BETA = 40.0
CLEAN = "fbhadgecfbhad"  # a permutation of a…h, then its first five again; "g" comes next
CORRUPT = "njpilomknjpil"  # the same, eight letters on: no token in common
SIZES = Sizes(
    n_layers=2,
    d_model=D_MODEL,
    n_heads=2,
    n_key_value_heads=2,
    d_head=D_HEAD,
    d_mlp=1,
    d_vocab=N,
    n_ctx=N,
)

Matrices = dict[str, Float[Tensor, "_ _"]]  # by name; out, in: each of its own size


def build(beta: float = BETA) -> KnownTruth:
    """The induction model, a contrast it solves, and its heads' exact effects.

    With 13 tokens the average of head 1.0's attention on the corrupt keys leaves 1/13 of the right
    answer, hence -10 * 12/13 for head 0.0. The values are those of the default `beta`; softer
    attention has smaller ones (4 leaves 7.561 of the clean 10).
    """
    with torch.device("meta"):
        stack = Stack(
            sizes=SIZES,
            embed=Embedding(N, D_MODEL, N),
            blocks=[_block(layer) for layer in range(2)],
            ln_final=NoNorm(),
            unembed=Unembedding(D_MODEL, N),
            rotary=None,
        )
    stack.load_state_dict(weights(beta), assign=True, strict=True)
    letters = Symbols("abcdefghijklmnop")
    return KnownTruth(
        name="induction",
        model=Transformer(stack, name="induction", fingerprint=f"b{beta:g}", tokenizer=letters),
        contrast=Contrast(clean=CLEAN, corrupt=CORRUPT, target="g", foil="a"),
        clean=10.0,
        corrupt=0.0,
        resample=MappingProxyType({(0, 0): -10 * 12 / 13, (1, 0): -10.0}),
    )


def weights(beta: float = BETA) -> dict[str, Tensor]:
    """Every weight, by the stack's names."""
    zero, one = torch.zeros(N, D_MODEL, dtype=torch.float64), torch.eye(N, dtype=torch.float64)
    tokens, positions, unembed = zero.clone(), zero.clone(), zero.clone()
    tokens[:, TOK], positions[:, POS], unembed[:, OUT] = one, one, 10 * one
    draws = torch.Generator().manual_seed(0)
    blocks = {
        0: _join(_previous(beta), _distractor(draws)),
        1: _join(_induce(beta), _distractor(draws)),
    }
    heads = {
        f"blocks.{layer}.attn.{name}.weight": matrix
        for layer, block in blocks.items()
        for name, matrix in block.items()
    }
    return {
        "embed.tokens": tokens,
        "embed.positions": positions,
        "unembed.weight": unembed,
        **heads,
    }


def _block(layer: int) -> Block:
    at = in_block(layer)
    attention = Attention(
        layer, D_MODEL, 2, 2, D_HEAD, at, scale=1.0, rotary=False, bias=False, out_bias=False
    )
    return Block(at, ln1=NoNorm(), attn=attention, ln2=NoNorm(), mlp=None)


def _empty() -> Matrices:
    reads = {name: torch.zeros(D_HEAD, D_MODEL, dtype=torch.float64) for name in "qkv"}
    return {**reads, "o": torch.zeros(D_MODEL, D_HEAD, dtype=torch.float64)}


def _previous(beta: float) -> Matrices:
    """Head 0.0: from position p look at p - 1, copy its token to PRV."""
    head, one = _empty(), torch.eye(N, dtype=torch.float64)
    before = one[[max(p - 1, 0) for p in range(N)]]  # row p: the unit vector of p - 1
    head["q"][:, POS] = beta * before.T
    head["k"][:, POS], head["v"][:, TOK], head["o"][PRV] = one, one, one
    return head


def _induce(beta: float) -> Matrices:
    """Head 1.0: look where PRV is my token, copy the token there to OUT."""
    head, one = _empty(), torch.eye(N, dtype=torch.float64)
    head["q"][:, TOK] = beta * one
    head["k"][:, PRV], head["v"][:, TOK], head["o"][OUT] = one, one, one
    return head


def _distractor(draws: torch.Generator) -> Matrices:
    """A random head that reads everything but NULL and writes only there."""
    head = _empty()
    for name in "qkv":
        head[name][:, : 4 * N] = 0.3 * torch.randn(
            D_HEAD, 4 * N, generator=draws, dtype=torch.float64
        )
    head["o"][NULL] = torch.randn(6, D_HEAD, generator=draws, dtype=torch.float64)
    return head


def _join(first: Matrices, second: Matrices) -> Matrices:
    reads = {name: torch.cat([first[name], second[name]]) for name in "qkv"}
    return {**reads, "o": torch.cat([first["o"], second["o"]], dim=1)}
