"""What every model family keeps to; one to come needs a tiny config in `tests/families`."""

import inspect
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.families import EXAMPLES, hf, only_activation, said, said_like
from tests.two_stacks import TWO_STACKS
from workbench.core.data import Batch, batch_of
from workbench.core.errors import UnknownConfigKeyError
from workbench.core.operators import Scale, Zero
from workbench.core.sites import Site
from workbench.models.family import FAMILIES
from workbench.models.load import assemble
from workbench.models.transformer import Transformer

TOLERANCE = 1e-5  # float32: the same sums in another order
PROMPTS = ["abcdef", "ab", "hello you"]
CASES = [(name, change) for name in EXAMPLES for change in EXAMPLES[name].variants]
families = pytest.mark.parametrize("name", list(EXAMPLES))
# What only chooses an activation function is compared with transformers, and needs no more.
BUILT = [(n, change) for n, change in CASES if not only_activation(EXAMPLES[n].variants[change])]
variants = pytest.mark.parametrize(
    ("name", "change", "changes"),
    [(name, change, EXAMPLES[name].variants[change]) for name, change in CASES],
    ids=[f"{name}: {change}" for name, change in CASES],
)
built = pytest.mark.parametrize(
    ("name", "change", "changes"),
    [(name, change, EXAMPLES[name].variants[change]) for name, change in BUILT],
    ids=[f"{name}: {change}" for name, change in BUILT],
)
quick = pytest.mark.usefixtures("unchecked")
decoders = pytest.mark.parametrize("name", [name for name in EXAMPLES if EXAMPLES[name].causal])
WRITERS = [(name, change) for name, change in BUILT if EXAMPLES[name].causal]
writers = pytest.mark.parametrize(
    ("name", "change", "changes"),
    [(name, change, EXAMPLES[name].variants[change]) for name, change in WRITERS],
    ids=[f"{name}: {change}" for name, change in WRITERS],
)


def model_of(name: str, **changes: Any) -> Transformer:
    """A family's tiny model, over a vocabulary of bytes."""
    return wb.load(hf(name, **changes), tokenizer=tiny.Bytes())


def placed(name: str, theirs: Any, batch: Batch) -> Mapping[str, Tensor]:
    """Where the tokens stand, for those that do not find out by themselves."""
    asked = "position_ids" in inspect.signature(theirs.forward).parameters
    first = theirs.config.pad_token_id + 1 if EXAMPLES[name].after_padding else 0
    return {"position_ids": batch.positions + first} if asked else {}


def test_every_family_has_a_tiny_model() -> None:
    assert sorted(FAMILIES) == sorted([*EXAMPLES, *TWO_STACKS])


@variants
def test_it_says_what_transformers_says(name: str, change: str, changes: Mapping[str, Any]) -> None:
    theirs = hf(name, **changes)
    ours, ids = wb.load(theirs), tiny.tokens(2, 11)
    with torch.no_grad():
        like = change not in EXAMPLES[name].unlike
        expected = theirs(ids, output_hidden_states=True, output_attentions=like)
    trace, answer = wb.run(ours, ids, record=ours.sites), said(expected)
    tiny.close(said_like(wb.run(ours, ids), answer), answer, TOLERANCE)
    tiny.close(said_like(trace, answer), answer, TOLERANCE)
    for layer in range(ours.sizes.n_layers):  # their last hidden state is after the final norm
        stream = trace[f"blocks.{layer}.hook_resid_pre"]
        tiny.close(stream, expected.hidden_states[layer], TOLERANCE)
        if like:
            pattern = trace[f"blocks.{layer}.attn.hook_pattern"]
            tiny.close(pattern, expected.attentions[layer], TOLERANCE)


@quick
@built
def test_every_layer_s_streams_sum_up(name: str, change: str, changes: Mapping[str, Any]) -> None:
    model, example = wb.load(hf(name, **changes)), EXAMPLES[name]
    trace = wb.run(model, tiny.tokens(2, 7), record=model.sites)
    for layer in range(model.sizes.n_layers):
        example.identities.get(change, example.identity)(trace, layer)


@quick
@built
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(
    name: str, change: str, changes: Mapping[str, Any], side: Any
) -> None:
    theirs = hf(name, **changes)
    ours = wb.load(theirs)
    rows = [tiny.tokens(length, seed=length).tolist() for length in (9, 4, 1)]
    trace = wb.run(ours, rows, padding_side=side)
    mask = trace.batch.real
    assert mask is not None
    with torch.no_grad():
        expected = said(
            theirs(
                trace.batch.tokens, attention_mask=mask.long(), **placed(name, theirs, trace.batch)
            )
        )
    if expected.shape[:2] == mask.shape:  # theirs would take a pad for the first token
        tiny.close(said_like(trace, expected)[mask], expected[mask], TOLERANCE)
    for row, ids in enumerate(rows):
        tiny.close(trace.logits[row][mask[row]], wb.run(ours, [ids]).logits[0], TOLERANCE)


@quick
@writers
def test_it_writes_what_transformers_writes(
    name: str, change: str, changes: Mapping[str, Any]
) -> None:
    theirs = hf(name, **changes)
    ours, rows = wb.load(theirs), [tiny.tokens(5).tolist(), tiny.tokens(9, seed=1).tolist()]
    with tiny.unchecked():
        together = wb.generate(ours, rows, max_new_tokens=6)
        alone = [wb.generate(ours, [row], max_new_tokens=6) for row in rows]
    for row, ids in enumerate(rows):
        said = list(ids)
        with torch.no_grad():
            for _ in range(6):  # without a cache: the longest way there is
                logits = theirs(torch.tensor([said]), use_cache=False).logits
                said.append(int(logits[0, -1].argmax()))
        assert list(alone[row].tokens[0]) == list(together.tokens[row]) == said[len(ids) :]


@quick
@families
def test_the_sites_listed_are_those_that_fire(name: str) -> None:
    model, spy = model_of(name), tiny.Spy()
    wb.run(model, PROMPTS, tap=spy)
    assert spy.sites == list(model.sites)
    assert all(Site.parse(str(site)) == site for site in model.sites)
    assert all(len(shape) == len(site.axes) for site, shape in spy.fired)


@quick
@families
def test_what_is_looked_at_changes_nothing(name: str) -> None:
    model = model_of(name)
    plain = wb.run(model, PROMPTS).logits
    for site in model.sites:  # each by itself, so that no other opens a fused kernel
        tiny.close(wb.run(model, PROMPTS, record=str(site)).logits, plain, TOLERANCE)


def tilted(value: Tensor) -> Tensor:
    """Something no norm and no softmax undoes; of whole numbers, another order."""
    if not value.is_floating_point():
        return value.flip(-1)
    return value * torch.linspace(0.5, 1.5, value.numel()).view_as(value)


@quick
@families
def test_a_change_at_each_site_changes_the_output(name: str) -> None:
    model, ids = model_of(name), tiny.tokens(1, 6)
    plain = wb.run(model, ids).logits
    for site in model.sites:
        changed = wb.run(model, ids, plan=[wb.Intervention(str(site), tilted)])
        assert (changed.logits - plain).abs().max() > 1e-6, site


@quick
@families
def test_what_the_heads_write_sums_to_what_attention_writes(name: str) -> None:
    model, ids = model_of(name), tiny.tokens(2, 7)
    trace = wb.run(model, ids, record=model.sites)
    plain = wb.run(model, ids, record="blocks.*.hook_attn_out")
    for layer in range(model.sizes.n_layers):
        site = f"blocks.{layer}.hook_attn_out"
        tiny.close(trace[site], plain[site], TOLERANCE)  # the heads one by one, or all at once
        zeroed = wb.Intervention(f"blocks.{layer}.attn.hook_result", Zero())
        bias = wb.run(model, ids, plan=[zeroed], record=site)[site]
        assert (bias - trace[site]).abs().max() > 1e-4  # and they are what it writes


@quick
@decoders
def test_chunks_and_a_cache_write_what_whole_passes_write(name: str) -> None:
    model, rows = model_of(name), [tiny.tokens(n, seed=n).tolist() for n in (13, 4, 9)]
    with tiny.unchecked():
        plain = wb.generate(model, rows, max_new_tokens=5)
        ways = {
            "uncached": wb.generate(model, rows, max_new_tokens=5, use_cache=False),
            "chunks": wb.generate(model, rows, max_new_tokens=5, prefill_chunk=3),
            "alone": wb.generate(model, rows, max_new_tokens=5, share_prefix=False),
        }
    for way, found in ways.items():
        assert found.tokens == plain.tokens, way
        for one, other in zip(found.log_probabilities, plain.log_probabilities, strict=True):
            tiny.close(torch.tensor(one), torch.tensor(other), TOLERANCE)


@quick
@families
def test_a_sweep_is_a_loop(name: str) -> None:
    model, rows = model_of(name), [tiny.tokens(n, seed=n).tolist() for n in (8, 5)]
    batch = batch_of(model, rows, padding_side="left", answer=-1)
    cells = [
        wb.Intervention(str(site), Scale(0.5), positions=positions)
        for site in model.sites
        if "pos" in site.axes and site.axes[-1] not in ("d_vocab", "k")  # no numbers to scale
        for positions in ([1], [4])
    ]
    with tiny.unchecked():
        swept = wb.sweep(model, batch, cells, gap)
        for index, cell in enumerate(cells):
            trace = wb.run(model, batch, plan=[cell], positions="last")
            tiny.close(swept.changed[index], gap(trace.logits[:, -1]), TOLERANCE)


def gap(logits: Tensor) -> Tensor:
    """A number for each row."""
    return logits[:, 3] - logits[:, 5]


@quick
@families
def test_original_checkpoints_say_the_same(name: str) -> None:
    theirs, spelling = hf(name), EXAMPLES[name].spelling
    if spelling is None:
        return  # its checkpoints spell as transformers does
    config = {**theirs.config.to_dict(), "model_type": theirs.config.model_type}
    ours = assemble(config, spelling(theirs.state_dict()), name="original")
    ids = tiny.tokens(1, 5)
    assert torch.equal(wb.run(ours, ids).logits, wb.run(wb.load(theirs), ids).logits)


@quick
@families
def test_threads_share_one_model(name: str) -> None:
    model, ids = model_of(name), tiny.tokens(2, 8)
    plans = [[wb.Intervention(f"blocks.{k % 2}.attn.hook_z", Scale(0.1 * k))][:k] for k in range(4)]
    alone = [wb.run(model, ids, plan=plan).logits for plan in plans]

    def work(k: int) -> bool:
        return torch.equal(wb.run(model, ids, plan=plans[k % 4]).logits, alone[k % 4])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))


@quick
@families
def test_a_config_key_it_does_not_know_is_refused(name: str) -> None:
    theirs: Any = hf(name)
    theirs.config.residual_gain = 0.5
    with pytest.raises(UnknownConfigKeyError, match=f"{name}: config key 'residual_gain' = 0.5"):
        wb.load(theirs, tokenizer=tiny.Bytes())


@quick
@families
def test_loading_freezes_every_weight_and_takes_no_gradient(name: str) -> None:
    model = model_of(name)
    assert all(not p.requires_grad and p.grad is None for p in model.stack.parameters())
    assert not model.stack.training
