"""Which heads attend as a known kind of head does: previous token, duplicate token, induction.

Notable: nothing is written into a cache that is handed in, and a list of texts keeps every option;
2.x does neither.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.compat.transformer_lens._protocols import PatternCache, ReadableModel
from workbench.compat.transformer_lens._terminal import say
from workbench.compat.transformer_lens.utils import is_lower_triangular, is_square
from workbench.core.errors import OptionError, PromptError, ShapeError, UnknownNameError

HeadName: TypeAlias = Literal["previous_token_head", "duplicate_token_head", "induction_head"]
ErrorMeasure: TypeAlias = Literal["abs", "mul"]
HEAD_NAMES: tuple[str, ...] = get_args(HeadName)
Heads = Sequence[tuple[int, int]] | Mapping[int, Sequence[int]] | None
Square = Float[Tensor, "dest src"]


def detect_head(  # noqa: PLR0913 - the classic signature
    model: ReadableModel,
    seq: str | list[str],
    detection_pattern: Tensor | HeadName,
    heads: Heads = None,
    cache: PatternCache | None = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: ErrorMeasure = "mul",
) -> Float[Tensor, "layer head"]:
    """How far each head's attention is that of a kind of head, or of a pattern of your own.

    "mul" is the share of the attention that lies on the pattern: Σ A·D / Σ A. "abs" is
    1 − (positions · mean |A − D|), rounded to three places. `exclude_bos` leaves out attention to
    the first token, `exclude_current_token` that of a token to itself. Heads not asked for are −1.
    Of several texts the scores' mean. One forward per text, unless there is a cache of it.

    Raises:
        UnknownNameError: If there is no such kind of head.
        OptionError: If the measure is another, a head is not the model's, or a cache comes with
            several texts.
        PromptError: If a text has fewer than two tokens, or fills the context.
        ShapeError: If a pattern is not lower triangular, of the text's length, or the cache has
            more than one row.
    """
    if error_measure not in ("abs", "mul"):
        raise OptionError("error_measure", "'abs' or 'mul'", error_measure)
    if isinstance(seq, list):
        if cache is not None:
            raise OptionError("cache", "left out for several texts: it is one text's", len(seq))
        if not seq:
            raise PromptError("detect_head needs at least one text.")
    found = [
        _scores(
            model,
            text,
            detection_pattern,
            _chosen(model, heads),
            cache,
            lambda a, d: compute_head_attention_similarity_score(
                a,
                d,
                exclude_bos=exclude_bos,
                exclude_current_token=exclude_current_token,
                error_measure=error_measure,
            ),
        )
        for text in ([seq] if isinstance(seq, str) else seq)
    ]
    return torch.stack(found).mean(0)


def _scores(
    model: ReadableModel,
    text: str,
    pattern: Tensor | str,
    heads: Sequence[tuple[int, int]],
    cache: PatternCache | None,
    score: Callable[[Square, Square], float],
) -> Float[Tensor, "layer head"]:
    tokens = model.to_tokens(text)
    length = tokens.shape[-1]
    if not 1 < length < model.cfg.n_ctx:
        raise PromptError(
            f"A text must have 2…{model.cfg.n_ctx - 1} tokens, this one has {length}."
        )
    wanted = _pattern(pattern, tokens)
    if not is_lower_triangular(wanted) or len(wanted) != length:
        triangle = f"a lower triangular ({length}, {length})"
        raise ShapeError("detection_pattern", triangle, f"{tuple(wanted.shape)}")
    recorded: PatternCache = (
        model.run_with_cache(tokens, remove_batch_dim=True)[1] if cache is None else cache
    )
    found = torch.full((model.cfg.n_layers, model.cfg.n_heads), -1.0)
    for layer, head in heads:
        attention = recorded["pattern", layer]
        if attention.shape != (model.cfg.n_heads, length, length):
            row = f"one row's ({model.cfg.n_heads}, {length}, {length})"
            raise ShapeError(f"the cache's pattern {layer}", row, f"{tuple(attention.shape)}")
        found[layer, head] = score(attention[head], wanted.to(attention))
    return found


def compute_head_attention_similarity_score(
    attention_pattern: Square,
    detection_pattern: Square,
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: ErrorMeasure,
) -> float:
    """One head's score; what is excluded counts neither for nor against it.

    Raises:
        ShapeError: If the attention is not square.
    """
    if not is_square(attention_pattern):
        shape = f"{tuple(attention_pattern.shape)}"
        raise ShapeError("attention_pattern", "a square one", shape)
    kept = torch.ones_like(attention_pattern)
    if exclude_bos:
        kept[:, 0] = 0
    if exclude_current_token:
        kept.fill_diagonal_(0)
    if error_measure == "mul":
        attention = attention_pattern * kept
        return float((attention * detection_pattern).sum() / attention.sum())
    difference = (attention_pattern - detection_pattern).abs() * kept
    return 1 - round(float(difference.mean()) * len(difference), 3)


def get_previous_token_head_detection_pattern(tokens: Int[Tensor, "1 pos"]) -> Square:
    """Each token attends to the one before it."""
    length = tokens.shape[-1]
    return torch.ones(length, length).tril(-1).triu(-1)


def get_duplicate_token_head_detection_pattern(tokens: Int[Tensor, "1 pos"]) -> Square:
    """Each token attends to the same token, where it stood before."""
    row = tokens[0].cpu()
    return (row[:, None] == row).float().tril(-1)


def get_induction_head_detection_pattern(tokens: Int[Tensor, "1 pos"]) -> Square:
    """Each token attends to what came after the same token, where it stood before."""
    before = get_duplicate_token_head_detection_pattern(tokens)
    return torch.nn.functional.pad(before[:, :-1], (1, 0)).tril()


def get_supported_heads() -> None:
    """Prints the kinds of heads."""
    say(f"Supported heads: {HEAD_NAMES}")


_PATTERNS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "previous_token_head": get_previous_token_head_detection_pattern,
    "duplicate_token_head": get_duplicate_token_head_detection_pattern,
    "induction_head": get_induction_head_detection_pattern,
}


def _pattern(given: Tensor | str, tokens: Tensor) -> Tensor:
    if isinstance(given, Tensor):
        return given
    if given not in _PATTERNS:
        raise UnknownNameError("kind of head", given, HEAD_NAMES)
    return _PATTERNS[given](tokens)


def _chosen(model: ReadableModel, heads: Heads) -> list[tuple[int, int]]:
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if heads is None:
        return [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    if isinstance(heads, Mapping):
        pairs = [(layer, head) for layer, some in heads.items() for head in some]
    else:
        pairs = [(layer, head) for layer, head in heads]
    for layer, head in pairs:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise OptionError("heads", f"of {n_layers} layers with {n_heads} heads", (layer, head))
    return pairs
