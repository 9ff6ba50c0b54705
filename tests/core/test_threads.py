"""Threads share one model: different plans, gradients and generations at once, no wrong result.

The claim that libraries with hooks on modules cannot make. Every result of a thread is compared
with the same call made alone, before: bit for bit, since shapes and arithmetic are the same.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny

THREADS = 8
RUNS = 504  # 56 rounds of each of the nine
PROMPT = "the quick brown fox"


def jobs(model: wb.Model) -> list[Callable[[], Tensor]]:
    """Nine things to do with one model, no two alike."""
    contrast = wb.Contrast(clean="abcab", corrupt="xbcxb", target="c", foil="d")
    metric = wb.metrics.logit_difference(contrast)
    draws = torch.Generator().manual_seed(1)
    vector = torch.randn(model.sizes.d_model, generator=draws)
    cut = wb.Intervention("blocks.1.attn.hook_z", wb.ops.zero(), heads=[1])
    other = wb.Intervention("blocks.1.attn.hook_z", wb.ops.zero(), heads=[2])
    push = wb.Intervention("blocks.0.hook_resid_post", wb.ops.add(vector), positions=[-1])
    gone = wb.Intervention("blocks.*.hook_resid_pre", wb.ops.project_out(vector))
    open_pattern = "blocks.*.attn.hook_pattern"

    def steered() -> Tensor:
        made = wb.generate(model, "ab", plan=[push], max_new_tokens=6, temperature=1.0, seed=3)
        return torch.tensor(made.tokens[0] + made.prompt[0])

    def each_its_own() -> Tensor:
        made = wb.generate(
            model,
            ["abc", "abc", "xyz"],
            plans=[[], [push], [gone]],
            temperature=[0.0, 1.0, 1.5],
            max_new_tokens=[6, 4, 5],
            seed=[1, 2, 3],
            record="blocks.2.hook_resid_post",
        )
        return torch.cat(list(made["blocks.2.hook_resid_post"]))

    return [
        lambda: wb.run(model, PROMPT).logits,
        lambda: wb.run(model, PROMPT, plan=[cut]).logits,
        lambda: wb.run(model, PROMPT, plan=[other]).logits,
        lambda: wb.run(model, PROMPT, plan=[push, gone]).logits,
        lambda: wb.run(model, PROMPT, record=open_pattern)["blocks.2.attn.hook_pattern"],
        lambda: wb.gradients(model, contrast.clean, "blocks.0.hook_resid_pre", metric)[
            wb.Site.parse("blocks.0.hook_resid_pre")
        ],
        lambda: wb.sweep(model, contrast.clean, [cut, other], metric).changed,
        steered,
        each_its_own,
    ]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_eight_threads_on_one_model_get_what_each_gets_alone(kind: str) -> None:
    model = tiny.model(kind)
    work = jobs(model)
    alone = [job() for job in work]
    together = Barrier(THREADS)

    def thread(first: int) -> list[tuple[int, Tensor]]:
        together.wait()
        order = [(first + turn) % len(work) for turn in range(RUNS // THREADS)]
        return [(which, work[which]()) for which in order]

    with ThreadPoolExecutor(THREADS) as pool:
        results = [one for rows in pool.map(thread, range(THREADS)) for one in rows]
    wrong = [which for which, value in results if not torch.equal(value, alone[which])]
    assert len(results) == RUNS
    assert wrong == []


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_no_thread_leaves_anything_behind(kind: str) -> None:
    model = tiny.model(kind)
    before = {name: tensor.clone() for name, tensor in model.stack.state_dict().items()}
    state = torch.get_rng_state()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda job: job(), jobs(model)))
    assert all(parameter.grad is None for parameter in model.stack.parameters())
    assert not any(parameter.requires_grad for parameter in model.stack.parameters())
    assert all(torch.equal(before[n], t) for n, t in model.stack.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.stack.modules())


def test_the_eight_jobs_are_eight_different_results() -> None:
    model = tiny.model("llama")
    runs = [job() for job in jobs(model)[:4]]
    same = [(i, j) for i in range(4) for j in range(i) if torch.equal(runs[i], runs[j])]
    assert same == []  # or the test above could not see a mix-up
