"""One facade, sixteen threads, different hooks: nobody sees another's, nothing is wrong.

Some go past the facade and ask the model under it, as the app and a notebook might at once.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.compat.classic import IDS, fresh

THREADS = 16


def scaled(factor: float) -> Callable[..., Tensor]:
    """A hook of one thread's own."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        return value * factor

    return hook


@pytest.mark.parametrize(("kind", "runs"), [("gpt2", 2000), ("llama", 480)])
def test_sixteen_threads_on_one_facade_get_what_each_gets_alone(kind: str, runs: int) -> None:
    facade = fresh(kind)
    facade.add_perma_hook("hook_embed", scaled(1.5))
    site, loss = "blocks.1.hook_resid_post", "loss"

    def hooked(factor: float) -> Tensor:
        pairs = [(site, scaled(factor))]
        return torch.as_tensor(facade.run_with_hooks(IDS, fwd_hooks=pairs))

    def opened(factor: float) -> Tensor:
        with facade.hooks([(site, scaled(factor))]), facade.hooks([("hook_embed", scaled(2.0))]):
            return torch.as_tensor(facade(IDS))

    def cached(factor: float) -> Tensor:
        pairs = [(site, scaled(factor))]
        return facade.run_with_cache(IDS, fwd_hooks=pairs)[1]["resid_post", 2]

    def slopes(factor: float) -> Tensor:
        pairs, wanted = [(site, scaled(factor))], "blocks.0.hook_resid_pre"
        options: Any = {"return_type": loss, "incl_bwd": True, "names_filter": wanted}
        return facade.run_with_cache(IDS, fwd_hooks=pairs, **options)[1][f"{wanted}_grad"]

    def said(factor: float) -> Tensor:
        with facade.hooks([(site, scaled(factor))]):
            return facade.generate(IDS, 4, seed=int(factor), stop_at_eos=False)

    def swept(factor: float) -> Tensor:
        cells = [wb.Intervention(site, wb.ops.scale(factor), positions=pos) for pos in (1, 3)]
        metric = wb.metrics.logit_difference(wb.Contrast("abcab", "xbcxb", "c", "d"))
        return wb.sweep(facade.engine, "abcab", cells, metric).changed

    work = (hooked, opened, cached, slopes, said, swept)
    alone = [[job(float(thread)) for job in work] for thread in range(THREADS)]
    together, before = Barrier(THREADS), tiny.digest(facade.engine)
    draws = torch.get_rng_state()

    def thread(number: int) -> int:
        together.wait()
        return sum(
            not tiny.same_bytes(work[at](float(number)), alone[number][at])
            for at in ((number + turn) % len(work) for turn in range(runs // THREADS))
        )

    with tiny.unchecked(), ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(thread, range(THREADS))) == [0] * THREADS
    assert tiny.digest(facade.engine) == before
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(weight.grad is None for weight in facade.engine.stack.parameters())
    assert not facade.hook_dict[site].fwd_hooks


def test_what_a_hook_keeps_is_its_own_thread_s() -> None:
    facade, together, site = fresh(), Barrier(2, timeout=20), "hook_embed"

    def note(value: Tensor, hook: Any) -> None:
        hook.ctx.setdefault("seen", []).append(float(value[0, 0, 0]))
        together.wait()  # both have written before either goes on

    def thread(factor: float) -> list[float]:
        pairs = [(site, scaled(factor)), (site, note)]
        for _ in range(2):
            facade.run_with_hooks(IDS, fwd_hooks=pairs)
        kept = list(facade.hook_dict[site].ctx["seen"])
        if factor == 2.0:
            facade.reset_hooks()
        together.wait()
        assert ("seen" in facade.hook_dict[site].ctx) == (factor != 2.0)
        return kept

    first = float(facade.W_E[IDS[0, 0], 0])
    with tiny.unchecked(), ThreadPoolExecutor(2) as pool:
        assert list(pool.map(thread, (2.0, 4.0))) == [[2 * first] * 2, [4 * first] * 2]
    assert facade.hook_dict[site].ctx == {}
