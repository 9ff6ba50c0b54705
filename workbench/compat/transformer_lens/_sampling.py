"""Drawing the next token, as the classic `generate` does; the global generator is never touched."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.errors import OptionError
from workbench.core.options import count, number

Draws = torch.Generator | Sequence[torch.Generator] | None
_OUT = float("-inf")


def sample_logits(  # noqa: PLR0913 - the classic signature, and where the draws come from
    final_logits: Float[Tensor, "batch d_vocab"],
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float | int = 1.0,
    freq_penalty: float | int = 0.0,
    tokens: Int[Tensor, "batch pos"] | None = None,
    *,
    generator: Draws = None,
) -> Int[Tensor, " batch"]:
    """One token per row: the likeliest at temperature 0, else a draw.

    Logits are divided by the temperature, then lessened by `freq_penalty` for each time a token
    stands in `tokens`; then `top_k` *or* `top_p` truncates (top_k, where both are given; top_p
    keeps the token that crosses p). With one generator per row a row's draw depends on nothing
    else in the batch; None takes a new generator, seeded by the operating system.

    Raises:
        OptionError: If an option is out of range, or a penalty comes without tokens.
    """
    if number("temperature", temperature) == 0:
        return final_logits.argmax(-1)
    logits = final_logits.float() / temperature
    if number("freq_penalty", freq_penalty) > 0:
        logits = logits - freq_penalty * _counts(tokens, logits)
    weights = _truncated(logits, top_k, top_p).softmax(-1)
    chosen = [
        torch.multinomial(row, 1, generator=draws)
        for row, draws in zip(weights, _per_row(generator, logits), strict=True)
    ]
    return torch.cat(chosen)


def _counts(tokens: Tensor | None, logits: Tensor) -> Tensor:
    if tokens is None:
        raise OptionError("tokens", "given where there is a freq_penalty", tokens)
    ones = torch.ones_like(tokens, dtype=logits.dtype)
    return torch.zeros_like(logits).scatter_add(1, tokens.to(logits.device), ones)


def _truncated(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    if top_k is not None:
        kept = min(count("top_k", top_k), logits.shape[-1])
        return logits.masked_fill(logits < logits.topk(kept).values[:, -1:], _OUT)
    if top_p is None:
        return logits
    if not 0 < number("top_p", top_p) <= 1:
        raise OptionError("top_p", "above 0 and at most 1", top_p)
    ordered, order = logits.sort(descending=True, stable=True)
    mass = ordered.softmax(-1)
    cut = torch.zeros_like(mass, dtype=torch.bool).scatter(1, order, mass.cumsum(-1) - mass > top_p)
    return logits.masked_fill(cut, _OUT)


def _per_row(generator: Draws, logits: Tensor) -> list[torch.Generator]:
    if isinstance(generator, Sequence):
        if len(generator) != len(logits):
            raise OptionError("generator", f"one, or one for each of {len(logits)} rows", generator)
        return list(generator)
    if generator is None:
        generator = torch.Generator(logits.device)
        generator.seed()  # of this generator alone
    return [generator] * len(logits)
