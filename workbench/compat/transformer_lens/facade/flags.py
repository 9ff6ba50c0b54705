"""The classic flags: accepted, though asking for a site is enough here."""
# ruff: noqa: FBT001 - the classic signatures

from workbench.compat.transformer_lens.facade.state import State
from workbench.core.errors import OptionError


class Flags(State):
    """What a cache of everything holds beside what it always does."""

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether a cache of everything holds `hook_result`; asking for it is enough otherwise."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """The same for `hook_q_input`, `hook_k_input` and `hook_v_input`."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """The same for `hook_mlp_in`."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """The same for `hook_attn_in`.

        Raises:
            OptionError: If heads are grouped, so that no one tensor feeds all three.
        """
        if use_attn_in and self._grouped:
            raise OptionError("use_attn_in", "False with grouped heads", use_attn_in)
        self.cfg.use_attn_in = use_attn_in

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        """Whether keys and values have a head for every query head, and not one per group.

        What runs is then a view whose heads can be told apart at `hook_k`, `hook_v` and their
        inputs; it says the same, and costs the repeated weights. `W_K` and state dicts stay.

        Raises:
            OptionError: If the weights are being trained, and a view would not follow them.
        """
        if ungroup_grouped_query_attention and self._trainable and self._grouped:
            allowed = "False where weights are trained: a view would not follow them"
            raise OptionError("ungroup_grouped_query_attention", allowed, True)  # noqa: FBT003
        self.cfg.ungroup_grouped_query_attention = ungroup_grouped_query_attention
        self._choose()

    @property
    def _grouped(self) -> bool:
        return self.cfg.groups != self.cfg.n_heads
