"""Threads share one model: different plans, gradients and generations at once, no wrong result.

The claim that libraries with hooks on modules cannot make. Every result of a thread is compared
with the same call made alone, before: bit for bit, since shapes and arithmetic are the same.
"""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.models.transformer import Transformer

THREADS = 16
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


@pytest.mark.parametrize(("kind", "runs"), [("llama", 2016), ("gpt2", 576)])
def test_sixteen_threads_on_one_model_get_what_each_gets_alone(kind: str, runs: int) -> None:
    model = tiny.model(kind)
    work = jobs(model)
    alone = [job() for job in work]
    together, before = Barrier(THREADS), left_behind(model)

    def thread(first: int) -> list[int]:
        together.wait()
        order = [(first + turn) % len(work) for turn in range(runs // THREADS)]
        return [which for which in order if not tiny.same_bytes(work[which](), alone[which])]

    with tiny.unchecked(), ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(thread, range(THREADS))) == [[]] * THREADS
    assert left_behind(model) == before


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_nothing_of_a_job_stays_behind(kind: str) -> None:
    model = tiny.model(kind)
    with tiny.unchecked():  # beartype draws from Python's generator
        for job in jobs(model):
            before = left_behind(model)
            job()
            assert left_behind(model) == before


def left_behind(model: Transformer) -> tuple[object, ...]:
    """Everything of a process that a run could change: weights, hooks, gradients, draws."""
    return (
        tiny.digest(model),
        [buffer.tolist() for buffer in model.stack.buffers()],
        [(weight.grad, weight.requires_grad) for weight in model.stack.parameters()],
        [len(module._forward_hooks) for module in model.stack.modules()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        [np.asarray(part).tolist() for part in np.random.get_state()],  # noqa: NPY002 - not ours
    )


def test_the_plans_of_the_jobs_differ_in_what_they_give() -> None:
    model = tiny.model("llama")
    runs = [job() for job in jobs(model)[:4]]
    same = [(i, j) for i in range(4) for j in range(i) if torch.equal(runs[i], runs[j])]
    assert same == []  # or the test above could not see a mix-up
