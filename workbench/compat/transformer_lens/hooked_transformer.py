"""`HookedTransformer`: the classic interface as a facade over a model of this library.

Notable: hooks, flags and defaults live here, never on the model; so one facade may be shared by
threads, each with its own `run_with_hooks`, `run_with_cache` and `hooks()`. The class is as wide as
the one it stands for, so it is put together of parts, one subject a file, in `facade/`; none of
them overrides another, and this file says only how a facade is made.
"""
# ruff: noqa: FBT001, FBT002, PLR0913 - the classic signatures

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from typing_extensions import override

from workbench.compat.transformer_lens import processing
from workbench.compat.transformer_lens.config import HookedTransformerConfig
from workbench.compat.transformer_lens.describe import config_of
from workbench.compat.transformer_lens.facade.caching import Caching
from workbench.compat.transformer_lens.facade.flags import Flags
from workbench.compat.transformer_lens.facade.generating import Generating
from workbench.compat.transformer_lens.facade.naming import Naming
from workbench.compat.transformer_lens.facade.running import Running
from workbench.compat.transformer_lens.facade.storing import Storing
from workbench.compat.transformer_lens.facade.training import Training
from workbench.compat.transformer_lens.tokens import PaddingSide
from workbench.models.load import load
from workbench.models.transformer import Transformer
from workbench.models.views.folded import Folding
from workbench.models.views.stacks import cloned, first_blocks, like

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@final
class HookedTransformer(Running, Caching, Generating, Storing, Naming, Training, Flags):
    """The classic interface over a model that is loaded, or built from a configuration.

    `model` wraps a model that is there already, as `from_pretrained` does; else one is built, with
    fresh weights, which are the facade's own and may be trained. `default_padding_side` and
    `cfg.default_prepend_bos` stand where a call leaves them out.

    Raises:
        OptionError: If the configuration asks for what is not built here; names the option.
    """

    def __init__(
        self,
        cfg: HookedTransformerConfig | Mapping[str, Any],
        tokenizer: object | None = None,
        move_to_device: bool = True,
        default_padding_side: PaddingSide = "right",
        *,
        model: Transformer | None = None,
    ) -> None:
        super().__init__(cfg, tokenizer, default_padding_side, model)
        if model is not None:
            return
        if self.cfg.init_weights:
            self.init_weights()
        if move_to_device and self.cfg.device is not None:
            self.to(self.cfg.device, print_details=False)

    @classmethod
    def from_pretrained(
        cls,
        model_name: "str | Path | Transformer",
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        hf_model: "PreTrainedModel | None" = None,
        device: str | torch.device | None = None,
        n_devices: int = 1,
        tokenizer: object | None = None,
        move_to_device: bool = True,
        fold_value_biases: bool = True,
        default_prepend_bos: bool | None = None,
        default_padding_side: PaddingSide = "right",
        dtype: torch.dtype | str = "float32",
        first_n_layers: int | None = None,
        n_ctx: int | None = None,
    ) -> "HookedTransformer":
        """A facade over what `wb.load` loads by that name, its weights processed as a view.

        The model in the cache stays as it is; `parity` says how far the view is from it.

        Raises:
            UnknownNameError: If there is no such model.
            OptionError: If an option asks for what is not built here.
        """
        processing.refuse_checkpoints(checkpoint_index, checkpoint_value, n_devices)
        flags = Folding(
            fold_ln, center_writing_weights, center_unembed, fold_value_biases,
            refactor_factored_attn_matrices,
        )  # fmt: skip
        if isinstance(model_name, Transformer):
            model = model_name
        else:
            source = model_name if hf_model is None else hf_model
            where = device if move_to_device else None
            kind = processing.as_dtype(dtype)
            # Its weights are to be written to, or folded; a second form of them would be stale.
            model = load(source, tokenizer=tokenizer, dtype=kind, device=where, rearrange=False)
        model = first_blocks(model, first_n_layers, n_ctx)
        view, parity = processing.processed(model, flags)
        cfg = config_of(view)
        cfg.default_prepend_bos = True if default_prepend_bos is None else default_prepend_bos
        made = cls(cfg, tokenizer, move_to_device, default_padding_side, model=view)
        made.parity = parity
        return made

    @classmethod
    def from_pretrained_no_processing(
        cls,
        model_name: "str | Path | Transformer",
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        center_unembed: bool = False,
        refactor_factored_attn_matrices: bool = False,
        fold_value_biases: bool = False,
        dtype: torch.dtype | str = torch.float32,
        default_prepend_bos: bool | None = None,
        default_padding_side: PaddingSide = "right",
        *,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        hf_model: "PreTrainedModel | None" = None,
        device: str | torch.device | None = None,
        n_devices: int = 1,
        tokenizer: object | None = None,
        move_to_device: bool = True,
        first_n_layers: int | None = None,
        n_ctx: int | None = None,
    ) -> "HookedTransformer":
        """The same with the weights as they are, but for what is asked for.

        Raises:
            UnknownNameError: If there is no such model.
            OptionError: If an option asks for what is not built here.
        """
        return cls.from_pretrained(
            model_name, fold_ln, center_writing_weights, center_unembed,
            refactor_factored_attn_matrices, checkpoint_index, checkpoint_value, hf_model, device,
            n_devices, tokenizer, move_to_device, fold_value_biases, default_prepend_bos,
            default_padding_side, dtype, first_n_layers, n_ctx,
        )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, object]) -> "HookedTransformer":
        """One with weights of its own, and the hooks that were added to this one."""
        model = like(self._base, cloned(self._base.stack), "")
        made = HookedTransformer(self.cfg, self._vocabulary, False, self._side, model=model)  # noqa: FBT003
        made._trainable, made.training, made.parity = self._trainable, self.training, self.parity
        for weight, own in zip(self._parameters(), made._parameters(), strict=True):
            own.requires_grad = weight.requires_grad
        made._bind(model)
        made._hooks.take(self._hooks)
        memo[id(self)] = made
        return made

    @override
    def __repr__(self) -> str:
        return f"HookedTransformer({self._model!r})"
