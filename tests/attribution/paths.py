"""Path patching by its definition, one path at a time, to compare with."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from typing_extensions import override

import workbench as wb
from workbench.core.sites import Site
from workbench.core.tap import Tap, chain

INPUTS = tuple(f"blocks.*.hook_{name}" for name in ("q_input", "k_input", "v_input", "mlp_in"))
Edit = tuple[str, int | None, Tensor]  # a site, or a head of it, and what it is set to


class Put(Tap):
    """Sets whole sites, or one head of them, one edit after another; only at some positions."""

    def __init__(self, edits: list[Edit], positions: Sequence[int] | slice = slice(None)) -> None:
        self.edits = [(Site.parse(name), head, value) for name, head, value in edits]
        self.positions = positions

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        for where, head, new in self.edits:
            if where != site:
                continue
            value, at = value.clone(), self.positions
            if head is None:
                value[:, at] = new[:, at]
            else:
                value[:, at, head] = new[:, at, head]
        return value

    @override
    def wants(self, site: Site) -> bool:
        return any(where == site for where, _, _ in self.edits)


def named(label: str) -> tuple[str, int | None]:
    """A label of the axes as a site and a head."""
    site, _, head = label.partition(" H")
    return site, int(head) if head else None


def reached(
    model: wb.Model,
    runs: tuple[wb.Trace, wb.Trace],
    sender: str,
    mlps: str,
    positions: Sequence[int] | slice = slice(None),
) -> wb.Trace:
    """What every receiver reads where the sender alone is patched and the rest is held."""
    base, donor = runs
    held: list[Edit] = [
        (str(site), None, base[site])
        for site in model.sites
        if site.short == "attn.hook_z" or (site.short == "hook_mlp_out" and mlps == "frozen")
    ]
    where, head = named(sender)
    tap = chain(Put(held), Put([(where, head, donor[where])], positions))
    return wb.run(model, base.batch, tap=tap, record=[*INPUTS, end(model)], logits=False)


def brute_force(model: wb.Model, found: wb.Trace, receivers: list[str]) -> Tensor:
    """The answer's logits, by the definition: a path's receivers set to what reaches them."""
    edits = [(site, of, found[site]) for site, of in map(named, receivers)]
    return wb.run(model, found.batch, tap=Put(edits)).answer_logits


def ends(model: wb.Model, contrast: wb.Contrast) -> tuple[wb.Trace, wb.Trace]:
    """Both prompts, with everything recorded."""
    words = contrast.on(model)
    clean, corrupt = (
        wb.run(model, batch, record=model.sites) for batch in (words.clean, words.corrupt)
    )
    return clean, corrupt


def answers(model: wb.Model, contrast: wb.Contrast, logits: Tensor) -> Tensor:
    """The logit difference of answer logits."""
    words, rows = contrast.on(model), torch.arange(len(logits))
    return logits[rows, list(words.target)] - logits[rows, list(words.foil)]


def pairs(found: wb.Result) -> Iterator[tuple[int, str, int, str]]:
    """Every place of a result."""
    for i, sender in enumerate(found.axes[0].labels):
        for j, receiver in enumerate(found.axes[1].labels):
            yield i, sender, j, receiver


def end(model: wb.Model) -> str:
    """The stream after the last block."""
    return f"blocks.{model.sizes.n_layers - 1}.hook_resid_post"
