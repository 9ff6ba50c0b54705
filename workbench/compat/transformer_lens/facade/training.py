"""The weights as something to train and to move; only a facade's own may be changed."""
# ruff: noqa: FBT001, FBT002 - the classic signatures

from collections.abc import Iterator
from typing import TypeAlias, TypeVar

import torch
from torch import nn

from workbench.compat.transformer_lens import processing
from workbench.compat.transformer_lens.facade.state import State
from workbench.compat.transformer_lens.initialising import initialise
from workbench.compat.transformer_lens.native import native_names
from workbench.core.errors import OptionError

Place: TypeAlias = torch.device | torch.dtype | str
Facade = TypeVar("Facade", bound="Training")


class Training(State):
    """Parameters and their gradients, where they are, and how they begin."""

    def to(self: Facade, device_or_dtype: Place, print_details: bool = True) -> Facade:  # noqa: ARG002
        """Moves or converts the weights; a loaded model stays where it is, and is copied."""
        moved = processing.moved(self._base, device_or_dtype, in_place=self._trainable)
        if moved is not self._base or self._trainable:
            self._bind(moved)
        self.cfg.device, self.cfg.dtype = str(self._base.device), self._base.dtype
        return self

    def cuda(self: Facade, device: int | str | torch.device | None = None) -> Facade:
        """To a GPU."""
        return self.to(f"cuda:{device}" if isinstance(device, int) else device or "cuda")

    def cpu(self: Facade) -> Facade:
        """To the CPU."""
        return self.to("cpu")

    def mps(self: Facade) -> Facade:
        """To an Apple GPU."""
        return self.to("mps")

    def half(self: Facade) -> Facade:
        """To float16."""
        return self.to(torch.float16)

    def bfloat16(self: Facade) -> Facade:
        """To bfloat16."""
        return self.to(torch.bfloat16)

    def float(self: Facade) -> Facade:
        """To float32."""
        return self.to(torch.float32)

    def double(self: Facade) -> Facade:
        """To float64."""
        return self.to(torch.float64)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights; only those of a facade made from a configuration take gradients.

        They are the facade's own: what another model holds too is copied first.
        """
        self._loan.own_all()
        return self._parameters()

    def _parameters(self) -> Iterator[nn.Parameter]:
        return self._base.stack.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same with their classic names, so that "b_" and "W_" choose what they always chose.

        They are the model's own, in its layout: `attn.W_Q` is (head·d_head d_model) here.
        """
        self._loan.own_all()
        stack = self._base.stack
        classic = {own: name for name, own in native_names(stack).items()}
        return ((classic.get(own, own), weight) for own, weight in stack.named_parameters())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of the weights."""
        self._base.stack.zero_grad(set_to_none=set_to_none)

    def train(self: Facade, mode: bool = True) -> Facade:
        """Marks the facade as training.

        Raises:
            OptionError: If the model was loaded: its weights are frozen, and shared.
        """
        if mode and not self._trainable:
            raise OptionError("train", "of a model made from a configuration", repr(self))
        self.training = mode
        return self

    def eval(self: Facade) -> Facade:
        """Marks it as not training."""
        return self.train(mode=False)

    def init_weights(self) -> None:
        """Draws the weights anew, from a generator seeded with `cfg.seed`.

        Raises:
            OptionError: If the model was loaded.
        """
        if not self._trainable:
            raise OptionError("init_weights", "of a model made from a configuration", repr(self))
        initialise(self._base.stack, self.cfg)
