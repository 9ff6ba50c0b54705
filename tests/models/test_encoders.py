"""What is particular to encoders: where they answer, token types, heads, pooled sentences."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.families import hf
from workbench.core.errors import OptionError, ShapeError
from workbench.core.operators import Scale, Zero
from workbench.models.pooling import embed_texts

MASK = 63  # "?"
BLANKS = replace(tiny.Bytes(), mask_id=MASK)
ASKED = "a cat ? milk"
CONTRAST = wb.Contrast(ASKED, "a dog ? milk", "x", "y")


def model_of(family: str = "bert", **changes: Any) -> Any:
    """A tiny encoder over bytes, whose mask is the question mark."""
    return wb.load(hf(family, **changes), tokenizer=BLANKS)


def test_a_metric_reads_the_masked_token() -> None:
    model = model_of()
    trace = wb.run(model, [ASKED, "? b"])
    assert trace.batch.answer.tolist() == [6, 0]
    assert torch.equal(trace.answer_logits, torch.stack([trace.logits[0, 6], trace.logits[1, 0]]))
    metric = wb.metrics.logit_difference(CONTRAST)
    run = wb.run(model, CONTRAST.clean, positions="answer")
    assert run.logits.shape == (1, 1, 258)
    x, y = ord("x"), ord("y")
    tiny.close(metric(run), trace.logits[:1, 6, x] - trace.logits[:1, 6, y], 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_it_is_found_under_padding(side: Any) -> None:
    model = model_of()
    trace = wb.run(model, ["? b", "a cat ? milk"], padding_side=side)
    for row, text in enumerate(["? b", "a cat ? milk"]):
        tiny.close(trace.answer_logits[row], wb.run(model, text).answer_logits[0], 1e-5)


def test_without_one_mask_a_metric_asks_where() -> None:
    model = model_of()
    trace = wb.run(model, ["a cat", "? ?"])  # runs as it did
    with pytest.raises(OptionError, match=r"must be given for the rows \[0, 1\], which have"):
        _ = trace.answer_logits
    batch = wb.batch_of(model, ["a cat", "? ?"], answer=[-1, 2])
    assert batch.answer.tolist() == [4, 2]
    with pytest.raises(OptionError, match="positions must be below 3"):
        wb.batch_of(model, ["a cat", "? ?"], answer=4)


def test_sweeps_gradients_and_attributions_read_it_too() -> None:
    from workbench.attribution import METHODS

    model = model_of()
    metric = wb.metrics.logit_difference(CONTRAST)
    grid = wb.Grid("blocks.*.hook_resid_pre", ("layer", "pos"))
    swept = wb.sweep(model, CONTRAST.clean, grid, metric, source=CONTRAST.corrupt)
    given = wb.run(model, CONTRAST.corrupt, record="all")
    for layer in range(3):
        site = f"blocks.{layer}.hook_resid_pre"
        plan = [wb.Intervention(site, wb.ops.set(given[site]), positions=6)]
        tiny.close(metric(wb.run(model, CONTRAST.clean, plan=plan)), swept.changed[layer, 6], 1e-5)
    patched = METHODS["activation_patching"](model, CONTRAST)
    assert patched.scores.abs().max() > 1e-3
    paths = METHODS["path_patching"](model, CONTRAST)
    assert paths.scores.isfinite().all()
    with pytest.raises(OptionError, match="components add up to its last stream"):
        METHODS["direct_logit_attribution"](model, CONTRAST)


def test_token_types_are_those_of_transformers() -> None:
    theirs, ids = hf("bert"), tiny.tokens(2, 5)
    types = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 1, 1]])
    model = wb.load(theirs)
    with torch.no_grad():
        expected = theirs(ids, token_type_ids=types).logits
    tiny.close(wb.run(model, wb.batch_of(model, ids, token_types=types)).logits, expected, 1e-5)
    rows = [ids[0].tolist(), ids[1, :3].tolist()]
    kinds = [types[0].tolist(), types[1, :3].tolist()]
    left = wb.batch_of(model, rows, token_types=kinds, padding_side="left")
    short = wb.batch_of(model, rows[1:], token_types=kinds[1:])
    tiny.close(wb.run(model, left).logits[1, 2:], wb.run(model, short).logits[0], 1e-5)


def test_token_types_that_do_not_fit_are_refused() -> None:
    model = model_of()
    with pytest.raises(ShapeError, match=r"token_types: expected rows of \[3\]"):
        wb.batch_of(model, [1, 2, 3], token_types=[0, 1])
    with pytest.raises(OptionError, match="token_types must be in 0…2, got 3"):
        wb.run(model, wb.batch_of(model, [1, 2, 3], token_types=[0, 1, 3]))
    with pytest.raises(OptionError, match="token_types must be left out"):
        wb.batch_of(model_of("distilbert"), [1, 2, 3], token_types=[0, 1, 1])


def test_threads_with_their_own_types_share_a_model() -> None:
    model, ids = model_of(), tiny.tokens(1, 6)
    batches = [wb.batch_of(model, ids, token_types=[[k % 3] * 6]) for k in range(3)]
    alone = [wb.run(model, batch).logits for batch in batches]

    def work(k: int) -> bool:
        return torch.equal(wb.run(model, batches[k % 3]).logits, alone[k % 3])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(60)))


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_pretraining_tells_next_sentences_beside_the_words(family: str) -> None:
    theirs, ids = hf(family, head="ForPreTraining"), tiny.tokens(2, 7)
    model = wb.load(theirs)
    with torch.no_grad():
        expected = theirs(ids)
    next_logits = next(v for k, v in expected.items() if k.startswith(("seq_", "sop_")))
    sites = ["pooler.hook_pooler_out", "nsp_head.hook_nsp_out"]
    trace = wb.run(model, ids, record=sites)
    tiny.close(trace[sites[1]][:, 0], next_logits, 1e-5)
    halved = wb.run(model, ids, plan=[wb.Intervention(sites[0], Zero())], record=sites[1])
    assert (halved[sites[1]] - trace[sites[1]]).abs().max() > 1e-3
    assert torch.equal(halved.logits, trace.logits)  # the words are not asked of the pooler


def test_a_model_without_a_head_gives_its_stream() -> None:
    theirs, ids = hf("bert", head="Model"), tiny.tokens(2, 7)
    model = wb.load(theirs, tokenizer=BLANKS)
    with torch.no_grad():
        expected = theirs(ids)
    trace = wb.run(model, ids, record="pooler.hook_pooler_out")
    tiny.close(trace["pooler.hook_pooler_out"][:, 0], expected.pooler_output, 1e-5)
    assert model.sizes.d_out == model.sizes.d_model
    with pytest.raises(OptionError, match="has no head"):
        wb.metrics.logit(CONTRAST).on(model)


def test_a_classifier_is_asked_for_its_labels() -> None:
    labels = {0: "bad", 1: "good", 2: "so-so"}
    model = model_of(head="ForSequenceClassification", id2label=labels)
    contrast = wb.Contrast("a cat", "a dog", "good", "bad")
    trace = wb.run(model, contrast.clean)
    difference = trace.logits[:, 0, 1] - trace.logits[:, 0, 0]
    tiny.close(wb.metrics.logit_difference(contrast)(trace), difference, 1e-5)
    with pytest.raises(OptionError, match="of the labels bad, good, so-so"):
        wb.metrics.logit(wb.Contrast("a cat", "a dog", "great", "bad")).on(model)


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(OptionError, match="'architectures' must be one of …MaskedLM"):
        model_of(head="ForQuestionAnswering")


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_pooled_without_their_pads(side: Any) -> None:
    model, texts = model_of(head="Model"), ["a cat", "b", "a longer text"]
    pooled = embed_texts(model, texts, padding_side=side, normalise=False, max_tokens=16)
    for row, text in enumerate(texts):
        tiny.close(pooled[row], wb.run(model, text).logits[0].mean(0), 1e-5)
    plan = [wb.Intervention("blocks.0.attn.hook_z", Scale(0.5))]
    assert (embed_texts(model, texts, plan=plan, normalise=False) - pooled).abs().max() > 1e-3
    tiny.close(embed_texts(model, texts).norm(dim=1), torch.ones(3), 1e-5)


def test_layers_that_share_weights_share_memory() -> None:
    stack = model_of("albert").stack
    places = {stack.get_parameter(f"blocks.{i}.mlp.up.weight").data_ptr() for i in range(3)}
    assert len(places) == 1


@pytest.mark.asset
def test_minilm_says_what_transformers_says() -> None:
    from transformers import AutoModel, AutoTokenizer

    from workbench.models.assets import pull

    folder, name = pull("all-minilm-l6-v2"), "all-minilm-l6-v2"
    texts = ["A dog barks.", "The cat sleeps on the warm windowsill all day.", "x"]
    model, theirs = wb.load(name), AutoModel.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(**inputs).last_hidden_state
    trace, mask = wb.run(model, texts), inputs["attention_mask"].bool()
    assert torch.equal(trace.batch.tokens[mask], inputs["input_ids"][mask])
    tiny.close(trace.logits[mask], hidden[mask], 1e-5)
    weights = mask[:, :, None].float()
    pooled = (hidden * weights).sum(1) / weights.sum(1)
    tiny.close(embed_texts(model, texts, normalise=False), pooled, 1e-5)
    tiny.close(embed_texts(model, texts), torch.nn.functional.normalize(pooled, dim=1), 1e-5)
