"""Forwards: plain, with hooks of their own, from the embedding on, and their loss."""
# ruff: noqa: FBT001, FBT002, PLR0913, A002 - the classic signatures

from jaxtyping import Float, Int
from torch import Tensor

from workbench.compat.transformer_lens.calls import Call, Given, Returned, ReturnType, run_call
from workbench.compat.transformer_lens.facade.hooking import Hooking
from workbench.compat.transformer_lens.hooks import Pairs
from workbench.compat.transformer_lens.key_value_cache import HookedTransformerKeyValueCache
from workbench.compat.transformer_lens.taps import check_fired
from workbench.compat.transformer_lens.tokens import PaddingSide
from workbench.compat.transformer_lens.utils import lm_cross_entropy_loss


class Running(Hooking):
    """What a facade computes of an input."""

    def forward(
        self,
        input: Given,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
    ) -> Returned:
        """Logits, loss (nats), both, or None; with `stop_at_layer` the stream before that block.

        Runs the blocks from `start_at_layer` (then `input` is the stream there) to `stop_at_layer`,
        exclusive, and no others; both as Python slices. A list of texts is masked where it is
        padded, ids only where `attention_mask` (1 is real) or left padding says so.

        Raises:
            PromptError: If the input cannot be run.
            OptionError: If an option is outside what it may be.
            ShapeError: If a hook returns a tensor of another shape.
        """
        call = Call(
            input, return_type, loss_per_token, prepend_bos, padding_side, start_at_layer,
            tokens, shortformer_pos_embed, attention_mask, stop_at_layer, past_kv_cache,
        )  # fmt: skip
        reading = self._reading(call)
        return run_call(call, reading, self._model, self._tap(reading.batch))

    __call__ = forward

    def run_with_hooks(
        self,
        input: Given,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
        *,
        fwd_hooks: Pairs = (),
        bwd_hooks: Pairs = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Returned:
        """A forward with hooks of this call only, (name or predicate, function of value and hook).

        `bwd_hooks` see the gradient when the caller goes backward from what is returned.

        Raises:
            UnknownNameError: If a hook names no site.
            NeverActedError: If a hook by an exact name was never reached.
        """
        call = Call(
            input, return_type, loss_per_token, prepend_bos, padding_side, start_at_layer,
            tokens, shortformer_pos_embed, attention_mask, stop_at_layer, past_kv_cache,
        )  # fmt: skip
        reading = self._reading(call)
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            tap = self._tap(reading.batch)
            output = run_call(call, reading, self._model, tap)
        check_fired(tap, [name for name, _ in fwd_hooks], call.ran(self.cfg.n_layers))
        return output

    def input_to_embed(
        self,
        input: Given,
        prepend_bos: bool | None = None,
        padding_side: PaddingSide | None = None,
        attention_mask: Tensor | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor | None, None, Tensor | None]:
        """The stream before block 0, the ids, None (no shortformer), and the mask if there is one.

        With `start_at_layer=0`, and the mask, the rest of a forward.

        Raises:
            PromptError: If the input cannot be run.
        """
        call = Call(
            input,
            prepend_bos=prepend_bos,
            padding_side=padding_side,
            attention_mask=attention_mask,
            past_kv_cache=past_kv_cache,
        )
        reading = self._reading(call)
        stream = self._model.embed(reading.batch, self._tap(reading.batch))
        mask = None if reading.real is None else reading.real.int()
        return stream, reading.ids, None, mask

    def loss_fn(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Tensor | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """The next-token loss in nats: the mean, or each (batch pos−1), 0 where masked."""
        real = None if attention_mask is None else attention_mask.to(logits.device).bool()
        return lm_cross_entropy_loss(logits, tokens.to(logits.device), real, per_token)
