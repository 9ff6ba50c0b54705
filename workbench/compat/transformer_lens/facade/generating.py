"""Text that goes on from a prompt."""
# ruff: noqa: FBT001, FBT002, PLR0913, A002 - the classic signature

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.compat.transformer_lens.calls import Call, Read
from workbench.compat.transformer_lens.facade.state import State
from workbench.compat.transformer_lens.generation import Sampling, continued
from workbench.compat.transformer_lens.tokens import PaddingSide
from workbench.core.data import Batch
from workbench.core.errors import OptionError
from workbench.core.tap import UNTAPPED

Form = Literal["input", "str", "tokens", "embeds"]
FORMS = ("input", "str", "tokens", "embeds")


class Generating(State):
    """What a facade writes."""

    def generate(
        self,
        input: str | list[str] | Int[Tensor, "batch pos"] = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        return_type: Form = "input",
        verbose: bool = True,  # noqa: ARG002 - nothing is ever printed
        *,
        seed: int | None = None,
    ) -> Any:
        """The prompt with what comes after it: text for text, ids for ids, or as asked.

        Row i draws with `seed + i` (None: a fresh seed); the process's random state is not used.

        Raises:
            OptionError: If an option is outside what it may be.
            PromptError: If the prompt cannot be run.
        """
        if return_type not in FORMS:
            raise OptionError("return_type", "'input', 'str', 'tokens' or 'embeds'", return_type)
        side: PaddingSide = "left" if isinstance(input, list) else self._side
        reading = self._reading(
            Call(input, prepend_bos=prepend_bos, padding_side=padding_side or side)
        )
        new = continued(
            self._model,
            reading.batch,
            self._tap,
            Sampling(do_sample, top_k, top_p, temperature, freq_penalty),
            steps=max_new_tokens,
            ends=self._ends(eos_token_id) if stop_at_eos else (),
            use_cache=use_past_kv_cache,
            seed=seed,
        )
        own = "str" if isinstance(input, str | list) else "tokens"
        return self._finished(reading, new, own if return_type == "input" else return_type)

    def _ends(self, eos: int | Sequence[int] | None) -> tuple[int, ...]:
        if isinstance(eos, int):
            return (eos,)
        if eos is not None:
            return tuple(eos)
        return () if self._vocabulary is None else tuple(self._vocabulary.eos_ids)

    def _finished(self, reading: Read, new: Tensor, form: str) -> Any:
        whole = torch.cat([reading.batch.tokens, new], 1)
        if form == "tokens":
            return whole
        real = torch.ones_like(whole, dtype=torch.bool)
        if reading.batch.real is not None:
            real[:, : reading.batch.real.shape[1]] = reading.batch.real
        if form == "embeds":
            zeros = torch.zeros(len(whole), dtype=torch.long, device=whole.device)
            padded = None if reading.batch.real is None else real
            return self._model.embed(Batch(whole, padded, zeros, zeros), UNTAPPED)
        vocabulary = self._texts().vocabulary
        rows = [row[mask].tolist() for row, mask in zip(whole, real, strict=True)]
        texts = [vocabulary.decode(row, skip_special=True) for row in rows]
        return texts[0] if len(texts) == 1 else texts
