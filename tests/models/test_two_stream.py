"""XLNet's query stream and memory: what transformers says, and what the engine does with them."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.families import hf
from workbench.core.data import Batch, batch_of
from workbench.core.errors import OptionError, PromptError, ShapeError, WorkbenchError
from workbench.core.operators import Scale, Zero
from workbench.core.predictions import next_batch, target_batch
from workbench.core.program import block_of
from workbench.core.sites import Site
from workbench.core.tap import UNTAPPED
from workbench.models.two_stream import Predicting, TwoStream, memory_of

TOLERANCE = 1e-5  # float32: the same sums in another order
VARIANTS: dict[str, dict[str, Any]] = {
    "both ways": {},
    "one way": {"attn_type": "uni"},
    "one way, same length": {"attn_type": "uni", "same_length": True},
    "short distances": {"clamp_len": 3},
    "halves": {"bi_data": True},
    "halves, short distances": {"bi_data": True, "clamp_len": 2},
    "one layer": {"n_layer": 1},
    "no head": {"head": "Model"},
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
TARGETS = [[1, 4, 8], [0, 7, 3]]
TYPES = [[0, 0, 0, 0, 1, 1, 1, 1, 2]] * 2
IDS = tiny.tokens(2, 9)
ROWS = [tiny.tokens(n, seed=n).tolist() for n in (9, 5, 3)]
ASKED = [[2, 7], [-1], [0, 1]]


def content_of(theirs: Any, **options: Any) -> TwoStream:
    model = wb.load(theirs, **options)
    assert isinstance(model, TwoStream)
    return model


def predicting(tokenizer: Any = None, **changes: Any) -> Predicting:
    return content_of(hf("xlnet", **changes), tokenizer=tokenizer).predicting


def exact() -> Predicting:
    return content_of(hf("xlnet"), dtype=torch.float64).predicting


def asked(model: Predicting, **options: Any) -> Batch:
    """Three rows of unlike length, asked about unlike numbers of tokens."""
    return target_batch(model, ROWS, ASKED, **options)


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """A batch of ours as transformers takes it."""
    source, columns = batch.source, batch.targets
    assert source is not None
    assert source.seen is not None
    assert columns is not None
    mapping = torch.nn.functional.one_hot(columns, source.tokens.shape[1]).float()
    if batch.real is not None:  # of two queries at one place theirs would take the sum
        mapping = mapping * batch.real[:, :, None]
    perm = (~source.seen[:, 0]).float()
    rows = len(source.tokens)
    made = {"perm_mask": perm.expand(rows, -1, -1).contiguous(), "target_mapping": mapping}
    if source.real is not None:
        made["attention_mask"] = source.real.float()
    if source.types is not None:
        made["token_type_ids"] = source.types
    return {"input_ids": source.tokens, **made}


def drawn_mask(rows: int, width: int) -> Tensor:
    """A factorisation order of each row: a token sees those before it in that order."""
    places = torch.stack([torch.randperm(width, generator=draws) for _ in range(rows)])
    return places[:, :, None] <= places[:, None, :]


draws = torch.Generator().manual_seed(3)
ORDERS = drawn_mask(2, 9)


def said(output: Any) -> Tensor:
    return output.last_hidden_state if output.get("logits") is None else output.logits


def rows_of(changes: Mapping[str, Any]) -> int:
    """One way, transformers adds a mask by row to one of no row in place: it reads one row only."""
    return 1 if changes.get("attn_type") == "uni" else 2


@variants
@pytest.mark.parametrize("orders", [None, ORDERS], ids=["masked", "a factorisation order"])
def test_both_streams_say_what_transformers_says(
    changes: Mapping[str, Any], orders: Tensor | None
) -> None:
    theirs, n = hf("xlnet", **changes), rows_of(changes)
    ours, orders = content_of(theirs).predicting, None if orders is None else orders[:n]
    batch = target_batch(ours, IDS[:n], TARGETS[:n], perm_mask=orders, token_types=TYPES[:n])
    with torch.no_grad():
        expected = theirs(
            **inputs_of(batch), output_hidden_states=True, output_attentions=True, use_mems=False
        )
    trace = wb.run(ours, batch, record="*")
    tiny.close(wb.run(ours, batch).logits, said(expected), TOLERANCE)
    tiny.close(trace.logits, said(expected), TOLERANCE)
    at = torch.tensor(TARGETS[:n])[:, None, :, None].expand(-1, ours.sizes.n_heads, -1, 9)
    for layer in range(ours.sizes.n_layers):
        streams = expected.hidden_states[2 * layer : 2 * layer + 2]
        for stack, stream in zip(("blocks", "query"), streams, strict=True):
            tiny.close(trace[f"{stack}.{layer}.hook_resid_pre"], stream, TOLERANCE)
        content, query = expected.attentions[layer]
        tiny.close(trace[f"blocks.{layer}.attn.hook_pattern"], content, TOLERANCE)
        tiny.close(trace[f"query.{layer}.attn.hook_pattern"], query.gather(2, at), TOLERANCE)
    last = f"blocks.{ours.sizes.n_layers - 1}.hook_normalized_resid_post"
    tiny.close(trace[last], expected.hidden_states[-2], TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["bi", "uni"])
def test_padding_on_either_side_changes_nothing(side: Any, kind: str) -> None:
    theirs = hf("xlnet", attn_type=kind)
    ours = content_of(theirs).predicting
    batch = asked(ours, padding_side=side)
    trace = wb.run(ours, batch)
    assert batch.real is not None
    if kind == "bi":  # one way, theirs reads one row only
        with torch.no_grad():
            expected = theirs(**inputs_of(batch), use_mems=False).logits
        tiny.close(trace.logits[batch.real], expected[batch.real], TOLERANCE)
    for row, (ids, targets) in enumerate(zip(ROWS, ASKED, strict=True)):
        alone = wb.run(ours, target_batch(ours, [ids], targets)).logits[0]
        tiny.close(trace.logits[row, : len(targets)], alone, TOLERANCE)
    content = content_of(theirs)
    plain = wb.run(content, ROWS, padding_side=side)
    for row, ids in enumerate(ROWS):
        own = plain.logits[row, -len(ids) :] if side == "left" else plain.logits[row, : len(ids)]
        tiny.close(own, wb.run(content, [ids]).logits[0], TOLERANCE)


@variants
@pytest.mark.parametrize("kept", [{}, {"mem_len": 5}, {"mem_len": 6, "reuse_len": 4}])
def test_segments_are_remembered_as_in_transformers(
    changes: Mapping[str, Any], kept: Mapping[str, Any]
) -> None:
    theirs = hf("xlnet", **changes, **kept)
    content = content_of(theirs)
    mems: Any = None
    memory: tuple[Tensor, ...] = ()
    for segment in range(3):
        n = rows_of(changes)
        ids, types = tiny.tokens(n, 7, seed=segment), [[0, 0, 0, 1, 1, 1, 1]] * n
        given: dict[str, Any] = {"token_types": types, "memory": memory}
        plain = batch_of(content, ids, **given)
        asking = target_batch(content.predicting, ids, [2, 6], **given)
        told = {"token_type_ids": torch.tensor(types), "mems": mems}
        with torch.no_grad():
            expected = theirs(ids, **told)
            of_targets = theirs(**inputs_of(asking), mems=mems)
        trace = wb.run(content, plain, record="blocks.*.hook_resid_pre")
        tiny.close(trace.logits, said(expected), TOLERANCE)
        tiny.close(wb.run(content.predicting, asking).logits, said(of_targets), TOLERANCE)
        mems, memory = expected.mems, memory_of(trace)
        for one, other in zip(memory, mems, strict=True):
            tiny.close(one, other.transpose(0, 1), TOLERANCE)
        two = wb.run(content.predicting, asking, record="blocks.*.hook_resid_pre")
        assert [m.shape for m in memory_of(two)] == [m.shape for m in memory]


def test_with_a_memory_a_trace_replays_and_keys_keep_their_positions() -> None:
    content = content_of(hf("xlnet"))
    first = wb.run(content, IDS, record="blocks.*.hook_resid_pre")
    batch = batch_of(content, tiny.tokens(2, 6), memory=memory_of(first))
    site = "blocks.1.attn.hook_pattern"
    lazy, eager = wb.run(content, batch, record="all"), wb.run(content, batch, record="*")
    assert lazy.replay is not None
    for one in content.sites:
        tiny.close(lazy[one], eager[one], TOLERANCE)
    assert eager[site].shape[-1] == 9 + 6
    plan = [wb.Intervention(site, Zero(), keys=[2], positions=[3])]
    changed = wb.run(content, batch, plan=plan, record=site)[site]
    assert (changed == 0).nonzero()[:, 2:].unique(dim=0).tolist() == [[3, 9 + 2]]


@pytest.mark.parametrize("rows", [[IDS[0].tolist()], ROWS], ids=["one", "three"])
def test_it_writes_what_transformers_writes(rows: list[list[int]]) -> None:
    theirs = hf("xlnet")
    ours = content_of(theirs).predicting
    with tiny.unchecked():
        made = wb.generate(ours, rows, max_new_tokens=6)
    for row, ids in enumerate(rows):
        text = list(ids)
        with torch.no_grad():
            for _ in range(6):
                given = theirs.prepare_inputs_for_generation(torch.tensor([text]), use_mems=False)
                logits = theirs(**given).logits
                tiny.close(wb.run(ours, [text]).logits, logits, TOLERANCE)
                text.append(int(logits[0, -1].argmax()))
        assert list(made.tokens[row]) == text[len(ids) :]


def test_a_plan_acts_on_both_streams_while_it_writes() -> None:
    model = predicting()
    text = IDS[0].tolist()
    push = wb.ops.add(4 * tiny.normal(24))
    for site in ("blocks.1.hook_resid_pre", "query.1.hook_resid_pre"):
        plan = [wb.Intervention(site, push)]
        made, told = wb.generate(model, [text], plan=plan, max_new_tokens=4), list(text)
        for _ in range(4):
            told.append(int(wb.run(model, [told], plan=plan).logits[0, -1].argmax()))
        assert list(made.tokens[0]) == told[len(text) :]
        plain = wb.generate(model, [text], max_new_tokens=4)
        moved = torch.tensor(made.log_probabilities) - torch.tensor(plain.log_probabilities)
        assert moved.abs().min() > 1e-3
    with pytest.raises(OptionError, match="run the finished text"):
        wb.generate(model, [text], max_new_tokens=1, record="query.0.hook_resid_pre")


def test_a_text_goes_on_without_special_tokens() -> None:
    model = predicting(tiny.Bytes())
    batch = batch_of(model, ["abc", "abcdef"])
    assert batch.source is not None
    assert batch.source.tokens[0].tolist() == [97, 98, 99, 0, 0, 0, 0]
    assert batch.targets is not None
    assert batch.targets.tolist() == [[3], [6]]
    assert wb.run(model, ["abc", "abcdef"]).logits.shape == (2, 1, 258)
    typed = next_batch(model, [[1, 2, 3], [4]], token_types=[[0, 0, 1], [2]])
    assert typed.source is not None
    assert typed.source.types is not None
    assert typed.source.types.tolist() == [[0, 0, 1, 1], [2, 2, 0, 0]]


@pytest.mark.parametrize("layers", [1, 3])
def test_the_sites_listed_are_those_that_fire(layers: int) -> None:
    model, spy = predicting(n_layer=layers), tiny.Spy()
    wb.run(model, asked(model), tap=spy)
    assert spy.sites == list(model.sites)
    assert all(Site.parse(str(site)) == site for site in model.sites)
    assert all(len(shape) == len(site.axes) for site, shape in spy.fired)
    blocks = [block_of(site, model) for site in model.sites]
    assert blocks == sorted(blocks)
    content = {site for site in model.sites if site.stack == "blocks"}
    assert {s for s in content_of(hf("xlnet", n_layer=layers)).sites if s.layer is not None} == (
        content
    )


def test_what_is_looked_at_changes_nothing() -> None:
    model = predicting()
    batch = asked(model)
    plain = wb.run(model, batch).logits
    for site in model.sites:  # each by itself, so that no other opens a fused kernel
        tiny.close(wb.run(model, batch, record=str(site)).logits, plain, TOLERANCE)


READ_BY_TARGETS = {"hook_attn_in", "hook_k_input", "hook_v_input", "attn.hook_k", "attn.hook_v"}


def test_a_change_at_each_site_changes_the_output_if_a_target_reads_it() -> None:
    model = predicting()
    batch = target_batch(model, tiny.tokens(1, 6), [2, 5])
    plain, last = wb.run(model, batch).logits, model.sizes.n_layers - 1
    for site in model.sites:

        def tilted(value: Tensor) -> Tensor:
            return value * torch.linspace(0.5, 1.5, value.numel()).view_as(value)

        changed = wb.run(model, batch, plan=[wb.Intervention(str(site), tilted)]).logits
        moved = float((changed - plain).abs().max())
        ends = site.stack == "blocks" and site.layer == last
        if ends and site.short not in {*READ_BY_TARGETS, "hook_resid_pre"}:
            assert moved == 0, site  # nobody reads what the last block adds to the content
        else:
            assert moved > 1e-6, site


def test_the_query_stream_sums_up_as_the_content_does() -> None:
    model = predicting()
    trace = wb.run(model, asked(model), record="*")
    for layer in range(model.sizes.n_layers):
        for stack in ("blocks", "query"):
            at = f"{stack}.{layer}."
            mid = trace[f"{at}hook_resid_pre"] + trace[f"{at}hook_attn_out"]
            tiny.close(mid, trace[f"{at}hook_resid_mid"], TOLERANCE)
            written = trace[f"{at}ln1.hook_normalized"] + trace[f"{at}hook_mlp_out"]
            tiny.close(written, trace[f"{at}hook_resid_post"], TOLERANCE)
            after = trace[f"{at}hook_normalized_resid_post"]
            tiny.close(after, trace[f"{at}ln2.hook_normalized"], TOLERANCE)
            heads = trace[f"{at}attn.hook_result"].sum(2)
            tiny.close(heads, trace[f"{at}hook_attn_out"], TOLERANCE)
            whole = trace[f"{at}attn.hook_pattern"].sum(-1)
            tiny.close(whole, torch.ones_like(whole), TOLERANCE)


def test_nobody_sees_the_token_at_a_target() -> None:
    model, other = predicting(), IDS.clone()
    other[:, [2, 5]] = 250
    plain, changed = (
        wb.run(model, target_batch(model, ids, [2, 5]), record="query.*.attn.hook_pattern")
        for ids in (IDS, other)
    )
    assert torch.equal(plain.logits, changed.logits)
    assert not plain["query.0.attn.hook_pattern"][..., [2, 5]].any()
    seen = wb.run(model, target_batch(model, other, [2, 5], perm_mask=torch.zeros(1, 9, 9)))
    assert (seen.logits - plain.logits).abs().max() > 1e-3


def test_a_query_that_sees_none_reads_all_alike() -> None:
    model, mask = predicting(), torch.ones(1, 9, 9)
    site = "query.0.attn.hook_pattern"
    trace = wb.run(model, target_batch(model, ROWS, [0], perm_mask=mask), record=site)
    for row, ids in enumerate(ROWS):
        n = len(ids)
        expected = torch.cat([torch.full((n,), 1 / n), torch.zeros(9 - n)])
        tiny.close(trace[site][row], expected.expand(3, 1, -1), 1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_count_targets_in_the_query_stream(side: Any) -> None:
    model = predicting()
    batch = asked(model, padding_side=side)
    for site, lengths in (
        ("query.1.hook_resid_pre", [len(one) for one in ASKED]),
        ("blocks.1.hook_resid_pre", [len(one) for one in ROWS]),
    ):
        plan = [wb.Intervention(site, Zero(), positions=[1])]
        found = wb.run(model, batch, plan=plan, record=site)[site].abs().sum(-1) == 0
        for row, n in enumerate(lengths):
            left = side == "left" and site.startswith("blocks")
            first = found.shape[1] - n if left else 0
            assert found[row].nonzero()[:, 0].tolist() == ([first + 1] if n > 1 else [])
    site = "query.0.attn.hook_attn_scores"
    plan = [wb.Intervention(site, wb.ops.set(torch.tensor(7.0)), keys=[4], positions=[0])]
    seven = wb.run(model, batch, plan=plan, record=site)[site][:, 0] == 7.0
    for row, ids in enumerate(ROWS):
        pads = 9 - len(ids) if side == "left" else 0
        assert seven[row].nonzero().tolist() == ([[0, pads + 4]] if len(ids) > 4 else [])


def gap(logits: Tensor) -> Tensor:
    return logits[:, 3] - logits[:, 5]


def test_a_sweep_is_a_loop() -> None:
    model = predicting()
    batch = target_batch(model, ROWS, ASKED, answer=0, padding_side="left")
    cells = [
        wb.Intervention(str(site), Scale(0.5), positions=[0], optional=True)
        for site in model.sites
        if "pos" in site.axes and site.axes[-1] != "d_vocab"
    ]
    with tiny.unchecked():
        swept = wb.sweep(model, batch, cells, gap)
        for index, cell in enumerate(cells):
            trace = wb.run(model, batch, plan=[cell], positions="answer")
            tiny.close(swept.changed[index], gap(trace.logits[:, 0]), TOLERANCE)


@pytest.mark.parametrize("stack", ["blocks", "query"])
def test_patching_with_another_batch_is_a_loop_of_runs(stack: str) -> None:
    model, other = predicting(), IDS.clone()
    other[:, 3] = 9
    batch, donor = (target_batch(model, ids, TARGETS) for ids in (IDS, other))
    grid = wb.Grid(f"{stack}.*.hook_resid_post", ("layer", "pos"))
    swept = wb.sweep(model, batch, grid, gap, source=donor)
    given = wb.run(model, donor, record=f"{stack}.*.hook_resid_post")
    for layer in range(3):
        site = f"{stack}.{layer}.hook_resid_post"
        for pos in range(3):
            plan = [wb.Intervention(site, wb.ops.set(given[site]), positions=pos)]
            alone = wb.run(model, batch, plan=plan, positions="answer").logits[:, 0]
            tiny.close(swept.changed[layer, pos], gap(alone), TOLERANCE)
    with pytest.raises(OptionError, match="a Batch, with the targets"):
        wb.sweep(model, batch, grid, gap, source=other)


@pytest.mark.parametrize("stack", ["blocks", "query"])
def test_a_grid_has_the_places_of_its_stream(stack: str) -> None:
    model = predicting()
    batch = target_batch(model, IDS, TARGETS, answer=1)
    grid = wb.Grid(f"{stack}.*.hook_resid_pre", ("layer", "pos"), Zero())
    swept = wb.sweep(model, batch, grid, gap)
    assert tuple(swept.changed.shape) == (3, 3 if stack == "query" else 9, 2)
    plan = [wb.Intervention(f"{stack}.1.hook_resid_pre", Zero(), positions=[2])]
    alone = wb.run(model, batch, plan=plan, positions="answer").logits[:, 0]
    tiny.close(swept.changed[1, 2], gap(alone), TOLERANCE)


@pytest.mark.parametrize("site", ["hook_embed", "query.hook_embed", "query.1.attn.hook_q"])
def test_gradients_are_the_slopes_of_the_run(site: str) -> None:
    model = exact()
    batch = asked(model)
    [slope] = wb.gradients(model, batch, site, gap).values()
    step = tiny.normal(*slope.shape, dtype=torch.float64)

    def at(size: float) -> Tensor:
        moved = wb.Intervention(site, lambda value: value + size * step)
        return gap(wb.run(model, batch, plan=[moved]).answer_logits)

    measured, expected = (at(1e-6) - at(-1e-6)) / 2e-6, (slope * step).flatten(1).sum(1)
    assert expected.abs().max() > 1e-3
    tiny.close(measured, expected, 1e-7)


@pytest.mark.parametrize("first", range(4))
def test_a_run_starts_at_any_layer(first: int) -> None:
    model = exact()
    batch = asked(model)
    stream = model.layers(model.embed(batch, UNTAPPED), batch, UNTAPPED, last=first)
    started = wb.run(model, batch, start=(first, stream))
    tiny.close(started.logits, wb.run(model, batch).logits)


def test_threads_share_both_models() -> None:
    content = content_of(hf("xlnet"))
    model = content.predicting
    batch = asked(model)
    sites = ["blocks.1.attn.hook_z", "query.0.attn.hook_z", "query.2.attn.hook_z"]
    plans = [[wb.Intervention(site, Scale(0.3))] for site in sites] + [[]]
    alone = [wb.run(model, batch, plan=plan).logits for plan in plans]
    plain = wb.run(content, IDS).logits

    def work(k: int) -> bool:
        same = torch.equal(wb.run(model, batch, plan=plans[k % 4]).logits, alone[k % 4])
        return same and torch.equal(wb.run(content, IDS).logits, plain)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))


def test_rows_that_run_backwards_are_the_second_half_of_a_batch() -> None:
    model = content_of(hf("xlnet", bi_data=True))
    both = torch.cat([IDS[:1], IDS[:1]])
    trace = wb.run(model, both, record="blocks.0.attn.hook_pattern")
    forward, backward = trace["blocks.0.attn.hook_pattern"]
    assert (forward - backward).abs().max() > 1e-3
    mirrored = wb.run(model, both.flip(1), record="blocks.0.attn.hook_pattern")
    tiny.close(mirrored["blocks.0.attn.hook_pattern"][1].flip(-1, -2), forward, TOLERANCE)
    grid = wb.Grid("blocks.*.hook_resid_pre", ("layer", "pos"), Zero())
    swept = wb.sweep(model, both, grid, gap)
    plan = [wb.Intervention("blocks.1.hook_resid_pre", Zero(), positions=[2])]
    alone = wb.run(model, both, plan=plan).answer_logits
    tiny.close(swept.changed[1, 2], gap(alone), TOLERANCE)
    with pytest.raises(OptionError, match="an even number"):
        wb.run(model, IDS[:1])


def test_in_parts_a_memory_stays_with_its_row() -> None:
    content = content_of(hf("xlnet"))
    first = wb.run(content, tiny.tokens(3, 4), record="blocks.*.hook_resid_pre")
    batch = batch_of(content, ROWS, memory=memory_of(first))
    together, apart = wb.run(content, batch), wb.run(content, batch, max_tokens=6)
    for row, ids in enumerate(ROWS):
        tiny.close(together.logits[row, : len(ids)], apart.logits[row, : len(ids)], TOLERANCE)


def test_what_fits_no_stream_is_refused(tmp_path: Any) -> None:
    content = content_of(hf("xlnet"))
    model = content.predicting
    first = wb.run(content, IDS, record="blocks.*.hook_resid_pre")
    memory = memory_of(first)
    padded = wb.run(content, ROWS, record="blocks.*.hook_resid_pre")
    cases: list[tuple[type[WorkbenchError], str, Any]] = [
        (OptionError, "with a query stream", lambda: target_batch(content, IDS, [1])),
        (OptionError, "a Batch of another", lambda: wb.run(model, batch_of(content, IDS))),
        (OptionError, "a Batch of another", lambda: wb.run(content, asked(model))),
        (OptionError, "has no encoder", lambda: wb.run(model, IDS, target=[[1]])),
        (OptionError, "positions", lambda: target_batch(model, IDS, [9])),
        (OptionError, "zeros and ones", lambda: masked(model, torch.full((1, 9, 9), 0.5))),
        (ShapeError, "perm_mask", lambda: masked(model, torch.zeros(2, 9, 8))),
        (ShapeError, "memory", lambda: batch_of(content, IDS, memory=memory[:2])),
        (ShapeError, "memory", lambda: batch_of(content, IDS[:1], memory=memory)),
        (OptionError, "of rows of one length", lambda: memory_of(padded)),
        (OptionError, "one stack", lambda: wb.run(model, IDS, record="*", spill=tmp_path)),
        (PromptError, "outside", lambda: target_batch(model, [[999]], [0])),
        (OptionError, "of one stack and one stream", content.folded),
    ]
    for kind, words, call in cases:
        with pytest.raises(kind, match=words):
            call()
    labels = content_of(hf("xlnet", head="ForTokenClassification", num_labels=2))
    with pytest.raises(OptionError, match="a language model"):
        _ = labels.predicting
    llama = wb.load(hf("llama"))
    with pytest.raises(OptionError, match="has none"):
        batch_of(llama, [[1, 2]], memory=(torch.zeros(1, 2, 24),))


def masked(model: Predicting, mask: Tensor) -> Batch:
    return target_batch(model, IDS, [1], perm_mask=mask)


def test_a_config_says_what_it_can() -> None:
    for key, value in (
        ("attn_type", "both"),
        ("summary_type", "mean"),
        ("d_head", 5),
        ("d_model", 9),
        ("untie_r", False),
    ):
        config = {**hf("xlnet").config.to_dict(), key: value}
        config["architectures"] = ["XLNetForSequenceClassification"]
        with pytest.raises(WorkbenchError, match=key):
            wb.models.new(config)


def test_one_can_be_made_of_a_config() -> None:
    config = hf("xlnet").config.to_dict()
    made = wb.models.new(config, seed=1)
    assert isinstance(made, TwoStream)
    assert wb.run(made.predicting, IDS).logits.shape == (2, 1, 258)
