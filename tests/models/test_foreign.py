"""Foreign models: what transformers says, at every site a true one, threads apart, limits said."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import foreign, tiny
from workbench.core.axes import SCORES
from workbench.core.data import batch_of
from workbench.core.errors import MissingDependencyError, OptionError, UnknownNameError
from workbench.core.operators import Add, Scale, Zero
from workbench.core.sites import Site
from workbench.models.foreign import ForeignModel, architectures, load

TOLERANCE = 1e-5
kinds = pytest.mark.parametrize("kind", list(foreign.KINDS))
natives = pytest.mark.parametrize("kind", tiny.KINDS)
IDS = tiny.tokens(2, 9)


def tilted(value: Tensor) -> Tensor:
    """Something no norm and no softmax undoes."""
    return value * torch.linspace(0.5, 1.5, value.numel()).view_as(value)


def gap(logits: Tensor) -> Tensor:
    """A number for each row."""
    return logits[:, 3] - logits[:, 5]


def common(kind: str) -> list[str]:
    """The sites that the native model has too."""
    native = set(wb.load(foreign.theirs(kind)).sites)
    return [str(site) for site in foreign.model(kind).sites if site in native]


# --- beside a native model ----------------------------------------------------------------------


@natives
def test_it_says_and_shows_what_the_native_model_does(kind: str) -> None:
    ours, bridged = wb.load(foreign.theirs(kind)), foreign.model(kind)
    rows = [tiny.tokens(n, seed=n).tolist() for n in (9, 4)]
    for side in ("left", "right"):
        one = wb.run(ours, rows, record=common(kind), padding_side=side)
        other = wb.run(bridged, rows, record=common(kind), padding_side=side)
        real = one.batch.real
        assert real is not None
        tiny.close(other.logits[real], one.logits[real], TOLERANCE)
        for site in one:
            assert other[site].shape == one[site].shape, site
            if "pos" in site.axes:  # elsewhere pads have other values in the two, which none reads
                tiny.close(other[site][real], one[site][real], TOLERANCE)


@natives
def test_scores_and_patterns_are_those_of_the_native_model(kind: str) -> None:
    ours, bridged = wb.load(foreign.theirs(kind)), foreign.model(kind)
    sites = [f"blocks.{k}.attn.hook_{name}" for k in (0, 1) for name in ("attn_scores", "pattern")]
    one, other = wb.run(ours, IDS, record=sites), wb.run(bridged, IDS, record=sites)
    for site in one:
        assert torch.equal(one[site].isinf(), other[site].isinf())
        tiny.close(other[site].nan_to_num(neginf=0), one[site].nan_to_num(neginf=0), TOLERANCE)


@natives
def test_a_change_at_each_common_site_does_what_it_does_natively(kind: str) -> None:
    ours, bridged = wb.load(foreign.theirs(kind)), foreign.model(kind)
    plain = wb.run(ours, IDS).logits
    names = [name for name in common(kind) if Site.parse(name).short not in SCORES]
    assert len(names) > 20
    for name in names:
        plan = [wb.Intervention(name, tilted)]
        one, other = wb.run(ours, IDS, plan=plan).logits, wb.run(bridged, IDS, plan=plan).logits
        tiny.close(other, one, TOLERANCE * float(one.abs().max().clamp(min=1)))
        assert (one - plain).abs().max() > 1e-5, name


@natives
def test_nobody_looks_ahead_whatever_a_plan_writes(kind: str) -> None:
    ours, bridged = wb.load(foreign.theirs(kind)), foreign.model(kind)
    for name in ("attn_scores", "pattern"):
        plan = [wb.Intervention(f"blocks.1.attn.hook_{name}", torch.ones_like)]
        tiny.close(
            wb.run(bridged, IDS, plan=plan).logits, wb.run(ours, IDS, plan=plan).logits, 1e-4
        )


@natives
def test_what_the_native_model_has_beyond_is_known(kind: str) -> None:
    found = {site.short for site in foreign.model(kind).sites}
    missing = {site.short for site in wb.load(foreign.theirs(kind)).sites} - found
    heads = {"hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "attn.hook_result"}
    assert missing <= heads


@natives
def test_the_model_it_was_made_of_is_left_alone(kind: str) -> None:
    theirs = tiny.hf(kind)
    before = {name: type(module) for name, module in theirs.named_modules()}
    with torch.no_grad():
        plain = theirs(IDS).logits
    made, state = load(theirs), torch.random.get_rng_state()
    again = load(theirs)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {name: type(module) for name, module in theirs.named_modules()} == before
    assert all(weight.requires_grad for weight in theirs.parameters())
    with torch.no_grad():
        assert torch.equal(theirs(IDS).logits, plain)
    assert made.fingerprint == again.fingerprint
    embedding = theirs.get_input_embeddings().weight
    weights = attrgetter("_parts.theirs")(made).parameters()
    shared = {weight.data_ptr() for weight in weights}
    assert embedding.data_ptr() in shared


# --- architectures without a family -------------------------------------------------------------


@kinds
def test_it_says_what_transformers_says(kind: str) -> None:
    model, theirs = foreign.model(kind), foreign.theirs(kind)
    assert isinstance(model, ForeignModel)
    assert isinstance(model, wb.Model)
    with torch.no_grad():
        expected = theirs(IDS, output_hidden_states=True)
    end = "post" if "mamba" in kind else "pre"  # of which transformers keeps what blocks leave
    trace = wb.run(model, IDS, record=f"blocks.*.hook_resid_{end}")
    tiny.close(trace.logits, expected.logits, TOLERANCE)
    for layer in range(model.sizes.n_layers):
        stream = trace[f"blocks.{layer}.hook_resid_{end}"]
        size = float(stream.abs().max().clamp(min=1))  # a recurrence's streams grow
        tiny.close(stream, expected.hidden_states[layer], TOLERANCE * size)
    assert model.found.restarts
    assert model.causal
    assert "transformer-lens" in repr(model)


@kinds
def test_the_sites_listed_are_those_that_fire(kind: str) -> None:
    model, spy = foreign.model(kind), tiny.Spy()
    wb.run(model, IDS, tap=spy)
    assert spy.sites == list(model.sites)
    assert all(len(shape) == len(site.axes) for site, shape in spy.fired)
    assert all(shape[0] == 2 for _, shape in spy.fired)
    assert all(shape[1] == 9 for site, shape in spy.fired if "pos" in site.axes)
    assert all(reason for reason in model.unreachable.values())


@kinds
def test_what_is_looked_at_changes_nothing_and_a_change_changes_the_output(kind: str) -> None:
    model = foreign.model(kind)
    plain = wb.run(model, IDS).logits
    for site in model.sites:
        tiny.close(wb.run(model, IDS, record=str(site)).logits, plain, TOLERANCE)
        tilt = wb.Intervention(str(site), tilted)
        if site.short not in SCORES:
            changed = wb.run(model, IDS, plan=[tilt]).logits
            assert (changed - plain).abs().max() > 1e-6, site


@kinds
def test_streams_sum_up(kind: str) -> None:
    model = foreign.model(kind)
    trace = wb.run(model, IDS, record=model.sites)
    adds = ("hook_attn_out", "hook_mlp_out", "mixer.hook_out")
    for layer in range(model.sizes.n_layers):
        at = f"blocks.{layer}."
        written = [trace[at + name] for name in adds if Site.parse(at + name) in model.sites]
        total = trace[f"{at}hook_resid_pre"] + torch.stack(written).sum(0)
        tiny.close(total, trace[f"{at}hook_resid_post"], TOLERANCE)


@kinds
def test_everything_is_replayed_as_it_was(kind: str) -> None:
    model, plan = foreign.model(kind), [wb.Intervention("blocks.0.hook_resid_post", Scale(0.5))]
    lazy = wb.run(model, IDS, plan=plan, record="all")
    eager = wb.run(model, IDS, plan=plan, record=model.sites)
    for site in model.sites:
        one, other = (trace[site].nan_to_num(neginf=0) for trace in (lazy, eager))
        tiny.close(one, other, TOLERANCE * float(other.abs().max().clamp(min=1)))


@kinds
def test_gradients_are_those_of_transformers(kind: str) -> None:
    model, theirs = foreign.model(kind), foreign.theirs(kind)
    embedded = wb.run(model, IDS, record="hook_embed")["hook_embed"].requires_grad_()
    answer = gap(theirs(inputs_embeds=embedded).logits[:, -1])
    (expected,) = torch.autograd.grad(answer.sum(), [embedded])
    sites = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"]
    found = wb.gradients(model, IDS, sites, gap)
    tiny.close(found[Site.parse(sites[0])], expected, TOLERANCE)
    later = found[Site.parse(sites[1])]
    assert float(later[:, :-1].abs().max()) == 0.0  # after the last block, positions do not mix
    assert float(later[:, -1].abs().max()) > 1e-3


@kinds
def test_a_sweep_is_a_loop(kind: str) -> None:
    model, rows = foreign.model(kind), [tiny.tokens(n, seed=n).tolist() for n in (8, 5)]
    batch = batch_of(model, rows, padding_side="left", answer=-1)
    cells = [
        wb.Intervention(str(site), Scale(0.5), positions=positions)
        for site in model.sites
        if "pos" in site.axes and site.axes[-1] != "d_vocab"
        for positions in ([1], [4])
    ]
    with tiny.unchecked():
        swept = wb.sweep(model, batch, cells, gap)
        for index, cell in enumerate(cells):
            trace = wb.run(model, batch, plan=[cell], positions="last")
            tiny.close(swept.changed[index], gap(trace.logits[:, -1]), TOLERANCE)


@kinds
def test_it_writes_what_transformers_writes(kind: str) -> None:
    model, theirs, said = foreign.model(kind), foreign.theirs(kind), tiny.tokens(5).tolist()
    written = wb.generate(model, [said], max_new_tokens=4, use_cache=False, ignore_eos=True)
    with torch.no_grad():
        for _ in range(4):
            logits = theirs(torch.tensor([said]), use_cache=False).logits
            said.append(int(logits[0, -1].argmax()))
    assert list(written.tokens[0]) == said[5:]


@kinds
def test_pads_change_nothing(kind: str) -> None:
    model, rows = foreign.model(kind), [tiny.tokens(n, seed=n).tolist() for n in (8, 3)]
    for side in ("left", "right"):
        trace = wb.run(model, rows, padding_side=side)
        assert trace.batch.real is not None
        for row, ids in enumerate(rows):
            alone = wb.run(model, [ids]).logits[0]
            tiny.close(trace.logits[row][trace.batch.real[row]], alone, TOLERANCE)


def test_a_mixer_s_state_answers_to_changes() -> None:
    model = foreign.model("mamba2")
    state = "blocks.0.mixer.hook_ssm_state"
    trace = wb.run(model, IDS, record=[state, "blocks.0.mixer.hook_ssm_write"])
    assert trace[state].shape == (2, 9, 6, 8, 8)  # batch pos head d_head d_state
    tiny.close(trace[state][:, 0], trace["blocks.0.mixer.hook_ssm_write"][:, 0], TOLERANCE)
    plan = [wb.Intervention("blocks.0.mixer.hook_ssm_write", Zero(), positions=[0])]
    erased = wb.run(model, IDS, plan=plan, record=state)[state]
    assert float(erased[:, 0].abs().max()) == 0.0  # nothing was there before
    assert (erased[:, 1:] - trace[state][:, 1:]).abs().max() > 1e-4  # and it is carried on


# --- threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "glm", "mamba2"])
def test_threads_with_mixed_plans_share_one_model(kind: str) -> None:
    model = foreign.model(kind)
    streams = [f"blocks.{k}.hook_resid_{end}" for k in (0, 1) for end in ("pre", "post")]
    plans = [[], *([wb.Intervention(name, Scale(0.3))] for name in streams)]
    plans += [[wb.Intervention("blocks.0.*hook_out", Zero())]] if kind == "mamba2" else []
    record = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    with tiny.unchecked():
        alone = [wb.run(model, IDS, plan=plan, record=record) for plan in plans]

        def work(k: int) -> bool:
            expected = alone[k % len(plans)]
            found = wb.run(model, IDS, plan=plans[k % len(plans)], record=record)
            same = all(torch.equal(found[site], expected[site]) for site in record)
            return same and torch.equal(found.logits, expected.logits)

        with ThreadPoolExecutor(16) as pool:
            assert sum(not right for right in pool.map(work, range(160))) == 0


def test_a_tap_may_run_the_model_it_taps() -> None:
    model, inner = foreign.model("gpt2"), []

    def curious(value: Tensor) -> Tensor:
        inner.append(wb.run(model, IDS[:1], plan=[]).logits)
        return value * 1.0

    plain = wb.run(model, IDS).logits
    plan = [wb.Intervention("blocks.1.hook_resid_pre", curious)]
    tiny.close(wb.run(model, IDS, plan=plan).logits, plain, TOLERANCE)
    tiny.close(inner[0], plain[:1], TOLERANCE)


# --- what it cannot do --------------------------------------------------------------------------


def test_what_it_cannot_do_is_said() -> None:
    model = foreign.model("glm")
    with pytest.raises(OptionError, match="use_cache must be False: glm keeps nothing"):
        wb.generate(model, "abc")
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    with pytest.raises(OptionError, match=r"attention_mask must be by token \(batch pos\)"):
        wb.run(model, IDS, attention_mask=mask)
    with pytest.raises(UnknownNameError, match=r"No site named 'blocks\.0\.attn\.hook_result'"):
        wb.run(model, IDS, record="blocks.0.attn.hook_result")


def test_starting_at_a_block_is_exact() -> None:
    model = foreign.model("glm")
    whole = wb.run(model, IDS, record="blocks.1.hook_resid_pre")
    stream = whole["blocks.1.hook_resid_pre"]
    tiny.close(wb.run(model, IDS, start=(1, stream)).logits, whole.logits, TOLERANCE)
    few = wb.run(model, IDS, vocabulary=[5, 2], positions="last").logits
    tiny.close(few[:, 0], whole.logits[:, -1, [5, 2]], TOLERANCE)


def test_an_adapter_and_a_revision_are_refused() -> None:
    with pytest.raises(OptionError, match="adapter must be left out"):
        wb.load(foreign.theirs("glm"), adapter="somewhere")
    with pytest.raises(OptionError, match="revision must be left out"):
        load(foreign.theirs("glm"), revision="main")


def test_architectures_that_no_bridge_has_are_named() -> None:
    from transformers import BioGptConfig, BioGptForCausalLM

    config = BioGptConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    with pytest.raises(UnknownNameError, match="bridged architecture named 'BioGptForCausalLM'"):
        wb.load(BioGptForCausalLM(config))
    assert "Mamba2ForCausalLM" in architectures()


def test_a_folder_loads_as_the_model_in_memory(tmp_path: Path) -> None:
    theirs = foreign.theirs("glm")
    theirs.save_pretrained(tmp_path / "glm")
    loaded: Any = wb.load(tmp_path / "glm", tokenizer=tiny.Bytes())
    assert isinstance(loaded, ForeignModel)
    plan = [wb.Intervention("blocks.0.hook_attn_out", Add(torch.ones(24)), strength=0.5)]
    one = wb.run(loaded, IDS, plan=plan).logits
    tiny.close(one, wb.run(foreign.model("glm"), IDS, plan=plan).logits, TOLERANCE)


def test_a_bridge_that_says_something_else_is_not_offered(monkeypatch: Any) -> None:
    from transformer_lens.model_bridge.generalized_components import NormalizationBridge

    def wrong(self: Any, hidden_states: Tensor, dtype: torch.dtype) -> Tensor:
        return hidden_states * self.weight * 1.01

    monkeypatch.setattr(NormalizationBridge, "_apply_weight_and_bias", wrong)
    monkeypatch.setattr(NormalizationBridge, "_hf_autograd_forward_with_hooks", wrong_norm)
    with pytest.raises(wb.WorkbenchError, match="says something else than transformers"):
        load(tiny.hf_gpt2())


def wrong_norm(_self: Any, x: Tensor) -> Tensor:
    """No norm at all."""
    return x


def test_without_transformer_lens_it_says_how_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    with pytest.raises(MissingDependencyError, match="pip install transformer-lens"):
        load(foreign.theirs("glm"))


def test_native_models_do_not_import_it() -> None:
    code = (
        "import sys, workbench as wb; from transformers import LlamaConfig, LlamaForCausalLM;"
        "wb.load(LlamaForCausalLM(LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8,"
        "num_attention_heads=2, num_hidden_layers=1)));"
        "print('transformer_lens' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"], done.stderr
