"""One vector for each text: the mean of an encoder's last stream over its tokens.

Notable: what sentence encoders (MiniLM) are made for. Pads do not count, special tokens do, as in
the library they come from; texts of similar length run together.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from workbench.core.data import Batch, PaddingSide, batch_of
from workbench.core.errors import OptionError
from workbench.core.options import count, flag
from workbench.core.plan import Interventions
from workbench.core.prompts import texts_of
from workbench.core.protocols import Model
from workbench.core.run import run
from workbench.core.sites import Site


def mean_pooled(
    stream: Float[Tensor, "batch pos d_model"], batch: Batch
) -> Float[Tensor, "batch d_model"]:
    """The mean over each row's tokens; pads do not count."""
    if batch.real is None:
        return stream.mean(1)
    real = batch.real[:, :, None].to(stream)
    return (stream * real).sum(1) / real.sum(1)


def embed_texts(
    model: Model,
    texts: str | Sequence[str],
    *,
    normalise: bool = True,
    plan: Interventions = (),
    padding_side: PaddingSide = "right",
    max_tokens: int = 4096,
) -> Float[Tensor, "text d_model"]:
    """The mean of the last stream over each text's tokens, of length 1 with `normalise`.

    The cosine of two is then their product. Costs one forward of every text, in batches of similar
    length of at most `max_tokens` tokens; under a `plan`, which must be data.

    Raises:
        OptionError: If an argument is outside what it may be.
        PromptError: If a text is empty or too long.
    """
    flag("normalise", normalise)
    chosen = texts_of(texts)
    if not chosen:
        raise OptionError("texts", "at least one", "none")
    batch = batch_of(model, list(chosen), padding_side=padding_side)
    last = _last_stream(model)
    budget = count("max_tokens", max_tokens)
    trace = run(model, batch, plan=plan, record=[last], logits=False, max_tokens=budget)
    with torch.no_grad():
        pooled = mean_pooled(trace[last], batch)
        return F.normalize(pooled, dim=-1) if normalise else pooled


def _last_stream(model: Model) -> Site:
    """The stream after the blocks, after the final norm where there is one."""
    final = [site for site in model.sites if str(site) == "ln_final.hook_normalized"]
    blocks = [site for site in model.sites if site.layer is not None]
    return (final or blocks)[-1]
