"""Generation by the classic rules: penalties, one truncation, and rows filled up at their end.

Notable: hooks see every site in every step, with the positions of that step; the cache, the masks
and the random numbers are this call's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.data import Batch
from workbench.core.errors import OptionError
from workbench.core.options import count, number
from workbench.core.protocols import Model, new_cache
from workbench.core.run import unembed_at
from workbench.core.sampling import Sampler, generators
from workbench.core.tap import Tap


@final
@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; `top_k` wins over `top_p`, as in the classic.

    `freq_penalty` is taken off a logit once for each time its token is in the row, prompt included.
    """

    do_sample: bool = True
    top_k: int | None = None
    top_p: float | None = None
    temperature: float = 1.0
    freq_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            OptionError: If one is outside its range.
        """
        number("freq_penalty", self.freq_penalty)
        self.sampler()

    def sampler(self) -> Sampler:
        """The core's sampler of the same rule."""
        if not self.do_sample or self.temperature == 0:
            return Sampler()
        top_p = None if self.top_k is not None else self.top_p
        return Sampler(self.temperature, self.top_k, top_p)

    def choose(
        self,
        logits: Float[Tensor, "batch d_vocab"],
        said: Int[Tensor, "batch d_vocab"],
        draws: Sequence[torch.Generator],
    ) -> Int[Tensor, " batch"]:
        """The next token of each row, of which `said` counts the tokens so far."""
        sampler = self.sampler()
        if sampler.temperature and self.freq_penalty:  # after the temperature, as the classic
            logits = logits - self.freq_penalty * self.temperature * said
        return sampler.choose(logits, draws)


def continued(  # noqa: PLR0913 - the arguments of a generation
    model: Model,
    batch: Batch,
    tap_of: Callable[[Batch], Tap],
    sampling: Sampling,
    *,
    steps: int,
    ends: tuple[int, ...],
    use_cache: bool,
    seed: int | None,
) -> Int[Tensor, "batch new"]:
    """The new tokens; a row that has ended is filled up with the first end token.

    Stops when every row has ended. Costs a forward over the prompt and a decode step per token.

    Raises:
        OptionError: If the seed is out of range.
    """
    count("max_new_tokens", steps, least=0)
    rows = len(batch.tokens)
    start = torch.Generator().seed() >> 2 if seed is None else seed
    draws = generators(start, rows, model.device)
    room = int((model.sizes.n_ctx - batch.prompt).min())
    if room < steps:
        raise OptionError("max_new_tokens", f"{room} or less: the context ends there", steps)
    cache = new_cache(model, rows, batch.tokens.shape[1] + steps) if use_cache else None
    said = _counts(batch, model.sizes.d_vocab)
    made: list[Tensor] = []
    ended = torch.zeros(rows, dtype=torch.bool, device=model.device)
    stops = torch.tensor(ends, dtype=torch.long, device=model.device)
    with torch.no_grad():
        for _ in range(steps):
            tap = tap_of(batch)
            resid = model.layers(model.embed(batch, tap), batch, tap, cache=cache)
            logits = unembed_at(model, resid, tap, batch.last[:, None])[:, 0]
            chosen = sampling.choose(logits, said, draws)
            if ends:
                chosen = torch.where(ended, stops[0], chosen)
                ended = ended | torch.isin(chosen, stops)
            made.append(chosen)
            if bool(ended.all()):
                break
            said = said.scatter_add(1, chosen[:, None], torch.ones_like(chosen)[:, None])
            batch = _next(batch, chosen, cached=cache is not None)
    return torch.stack(made, 1) if made else batch.tokens[:, :0]


def _next(batch: Batch, chosen: Tensor, *, cached: bool) -> Batch:
    if cached:
        return Batch(chosen[:, None], None, batch.start + batch.lengths, batch.prompt)
    tokens = torch.cat([batch.tokens, chosen[:, None]], 1)
    if batch.real is None:
        return Batch(tokens, None, batch.start, batch.prompt)
    real = torch.cat([batch.real, torch.ones_like(batch.real[:, :1])], 1)
    return Batch(tokens, real, batch.start, batch.prompt)


def _counts(batch: Batch, d_vocab: int) -> Int[Tensor, "batch d_vocab"]:
    ones = torch.ones_like(batch.tokens) if batch.real is None else batch.real.long()
    empty = torch.zeros((len(batch.tokens), d_vocab), dtype=torch.long, device=ones.device)
    return empty.scatter_add(1, batch.tokens, ones)
