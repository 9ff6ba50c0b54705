"""The parts of a facade by name: what `named_modules` and its like list in the classic."""

from collections.abc import Iterator

from workbench.compat.transformer_lens.facade.hooking import Hooking
from workbench.compat.transformer_lens.facade.weights import Weights
from workbench.compat.transformer_lens.weights import NormWeights


class Naming(Hooking, Weights):
    """Parts and hook points under the names they have in the classic; none is a torch module."""

    def named_modules(self) -> Iterator[tuple[str, object]]:
        """Each part and hook point by its full name, the facade itself first, under ""."""
        yield "", self
        for name, part in self._parts():
            yield name, part
            yield from self._points_of(name)
        yield from self._points_of("")

    def modules(self) -> Iterator[object]:
        """The same without names."""
        return (part for _, part in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, object]]:
        """The parts and hook points that are attributes of the facade itself."""
        return ((name, part) for name, part in self.named_modules() if name and "." not in name)

    def children(self) -> Iterator[object]:
        """The same without names."""
        return (part for _, part in self.named_children())

    def _parts(self) -> Iterator[tuple[str, object]]:
        embed = self.embed
        yield "embed", embed
        yield from self._norm("embed.ln", embed.ln)
        if self._base.stack.embed.positions is not None:
            yield "pos_embed", self.pos_embed
        yield "blocks", self.blocks
        for layer, block in enumerate(self.blocks):
            here = f"blocks.{layer}"
            yield here, block
            yield f"{here}.ln1", block.ln1
            yield from self._norm(f"{here}.ln1_post", block.ln1_post)
            yield f"{here}.attn", block.attn
            yield from self._norm(f"{here}.attn.q_norm", block.q_norm)
            yield from self._norm(f"{here}.attn.k_norm", block.k_norm)
            if not self.cfg.attn_only:
                yield f"{here}.ln2", block.ln2
                yield from self._norm(f"{here}.ln2_post", block.ln2_post)
                yield f"{here}.mlp", block.mlp
                yield from self._norm(f"{here}.mlp.ln", block.mlp.ln)
        yield "ln_final", self.ln_final
        yield "unembed", self.unembed

    def _norm(self, name: str, norm: NormWeights) -> Iterator[tuple[str, object]]:
        """A norm that not every model has."""
        if f"{name}.hook_scale" in self.hook_dict:
            yield name, norm

    def _points_of(self, place: str) -> Iterator[tuple[str, object]]:
        points = self.hook_dict.items()
        return ((name, point) for name, point in points if name.rpartition(".")[0] == place)
