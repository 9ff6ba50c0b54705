"""Weights out and in by their classic names, as they are or processed."""
# ruff: noqa: FBT001, FBT002 - the classic signatures

from collections.abc import Mapping

from torch import Tensor

from workbench.compat.transformer_lens import processing
from workbench.compat.transformer_lens.describe import config_of
from workbench.compat.transformer_lens.facade.state import State, learning
from workbench.compat.transformer_lens.layouts import constants, grouped
from workbench.compat.transformer_lens.state_dicts import (
    Incompatible,
    loaded,
    unfolded,
)
from workbench.models.transformer import Transformer
from workbench.models.views.folded import Folding
from workbench.models.views.stacks import cloned, like


class Storing(State):
    """State dicts in the layouts of 2.x, and the steps of processing."""

    def state_dict(self, *, buffers: bool = False) -> dict[str, Tensor]:
        """The weights by their classic names: the facade's own tensors, without their graph.

        With `buffers` also the masks and rotary tables that 2.x keeps beside them, so that it
        takes the dict strictly; they cost n_ctx² bytes. What another model holds too is copied.
        """
        found = {name: value.detach() for name, value in self._weights.named().items()}
        found = found if self.cfg.n_key_value_heads is None else grouped(found)
        if not buffers:
            return found
        return found | constants(self._base.stack, self.cfg.n_ctx, self._base.device)

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True
    ) -> Incompatible:
        """Takes weights by their classic names; says which it missed and which it had no place for.

        They may be named block by block, as `state_dict` names them and with the buffers of 2.x,
        or as the stacked properties of the model (`W_Q`, `W_E` …); keys and values of grouped
        heads once per group (`_W_K`) or repeated (`W_K`). A facade that was made from a
        configuration copies them into its own; any other shows a view with them from now on, and
        the loaded model stays as it is.

        Raises:
            WeightsError: If `strict` and names are missing or left over; if shapes differ, a weight
                is given twice, or a mask or rotary table is another model's.
        """
        model, left = loaded(self._base, state_dict, strict=strict, in_place=self._trainable)
        self._bind(model)
        self.parity = None
        return left

    def load_and_process_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Takes weights, missing biases as 0 and norm weights as 1, and shows them processed.

        Reads every layout that `load_state_dict` reads, and norm weights to be folded also where
        the configuration says LNPre or RMSPre, as 2.x does.

        Raises:
            WeightsError: If shapes differ, names are unknown, or a matrix is missing.
        """
        flags = Folding(
            fold_ln,
            center_writing_weights,
            center_unembed,
            fold_value_biases,
            refactor_factored_attn_matrices,
        )
        model = unfolded(self._own(), state_dict) if fold_ln else self._own()
        read, _ = loaded(model, state_dict, strict=True, in_place=False, fill=True)
        self._show(read, flags)

    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Shows the weights processed from now on (value biases too); see `parity`.

        The model it showed stays as it is.

        Raises:
            OptionError: If the view would not say what the model says.
        """
        steps = Folding(
            fold_ln,
            center_writing_weights,
            center_unembed,
            True,  # noqa: FBT003 - always, as in the classic
            refactor_factored_attn_matrices,
        )
        self._show(self._own(), steps)

    def _own(self) -> Transformer:
        """What a view is made of, which freezes it: a copy where the weights are being trained."""
        if not self._trainable:
            return self._base
        return like(self._base, cloned(self._base.stack), "")

    def _show(self, model: Transformer, flags: Folding) -> None:
        view, self.parity = processing.processed(model, flags)
        self.cfg.normalization_type = config_of(view).normalization_type
        self._bind(learning(view) if self._trainable else view)
