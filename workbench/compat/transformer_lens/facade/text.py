"""Text and tokens by the classic rules."""
# ruff: noqa: FBT001, FBT002, A002 - the classic signatures

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.compat.transformer_lens.facade.state import State
from workbench.compat.transformer_lens.tokens import PaddingSide
from workbench.core.protocols import Vocabulary
from workbench.models.load import as_vocabulary


class Text(State):
    """What a facade's vocabulary makes of texts and ids; nothing here ever changes it."""

    @property
    def tokenizer(self) -> Vocabulary | None:
        """The vocabulary; nothing here ever changes it."""
        return self._vocabulary

    def set_tokenizer(self, tokenizer: object, default_padding_side: PaddingSide = "right") -> None:
        """Gives the facade a vocabulary, or a Hugging Face tokenizer, of which it takes a copy.

        Raises:
            OptionError: If it is neither, or the side is none.
        """
        self._speak(as_vocabulary(tokenizer), default_padding_side)

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """The ids of a text or texts, the beginning token first, padded on one side.

        Raises:
            PromptError: If there is no tokenizer.
        """
        texts = self._texts().given(prepend_bos, padding_side)
        device = self._model.device if move_to_device else torch.device("cpu")
        return texts.padded(texts.rows(input, truncate=truncate), device).ids

    def to_string(self, tokens: Any) -> str | list[str]:
        """The text of ids (pos), or of each row (batch pos).

        Raises:
            PromptError: If there is no tokenizer.
        """
        return self._texts().text(tokens)

    def to_str_tokens(
        self,
        input: Any,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
    ) -> list[str] | list[list[str]]:
        """Each token of a text or of ids as a text of its own; of each of a list.

        Raises:
            PromptError: If there is no tokenizer.
        """
        texts = self._texts().given(prepend_bos, padding_side)
        return texts.pieces(input, self._model.device)

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token.

        Raises:
            TokenError: If it is none or several.
        """
        return self._texts().single(string)

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one id.

        Raises:
            PromptError: If there is no tokenizer.
        """
        return self._texts().vocabulary.decode([int_token])

    def get_token_position(
        self,
        single_token: str | int | Int[Tensor, ""],
        input: str | Int[Tensor, "..."],
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
    ) -> int:
        """Where a token stands first, or last, in a text or in ids (pos) or (1 pos).

        Raises:
            TokenError: If it does not occur.
        """
        texts = self._texts()
        return texts.given(prepend_bos, padding_side).position(single_token, input, mode)

    def tokens_to_residual_directions(
        self, tokens: str | int | Int[Tensor, "..."]
    ) -> Float[Tensor, "... d_model"]:
        """The columns of W_U of these tokens: the logit is the product with it, on folded weights.

        Raises:
            TokenError: If a text is not one token.
        """
        if isinstance(tokens, Tensor) and tokens.numel() > 1:
            return self._read.W_U[:, tokens].movedim(0, -1)
        token = self.to_single_token(tokens) if isinstance(tokens, str) else int(tokens)
        return self._read.W_U[:, token].clone()
