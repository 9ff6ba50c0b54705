"""The analysis objects on the facade itself, from a configuration to a number."""

from typing import Any

import pytest
from torch import Tensor

from tests import tiny
from tests.compat.standin import BOTH, Golden, close, said
from tests.compat.test_activation_cache import STACKS
from tests.compat.test_patching import READY, difference, everything
from workbench.compat.transformer_lens import HookedTransformer, _cells, patching, utils
from workbench.compat.transformer_lens.head_detector import detect_head
from workbench.compat.transformer_lens.svd_interpreter import SVDInterpreter

EACH = pytest.mark.parametrize("gold", BOTH, ids=["ln", "rms"])
SMALL: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 16,
    "n_heads": 2,
    "d_head": 8,
    "d_mlp": 12,
    "n_ctx": 16,
    "d_vocab": 258,
    "act_fn": "gelu",
    "seed": 3,
    "initializer_range": 0.4,
}
OTHERS: dict[str, dict[str, Any]] = {
    "attention only": {"attn_only": True, "act_fn": None},
    "bidirectional": {"attention_dir": "bidirectional"},
    "parallel": {"parallel_attn_mlp": True},
    "soft caps": {"attn_scores_soft_cap": 5.0, "output_logits_soft_cap": 3.0},
    "rotary pairs": {
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "rotary_adjacent_pairs": True,
    },
    "no norm": {"normalization_type": None},
}


def facade(gold: Golden) -> HookedTransformer:
    """The golden model, built from its configuration."""
    model = HookedTransformer(said()["configs"][gold.name])
    model.load_state_dict(gold.weights, strict=False)
    return model


@EACH
def test_stacks_and_sweeps_are_those_of_the_classic(gold: Golden) -> None:
    model, tokens = facade(gold), gold.tokens
    _, clean = model.run_with_cache(tokens["clean"])
    _, corrupt = model.run_with_cache(tokens["corrupt"])
    for name, stack in STACKS.items():
        close(stack(clean), gold.expected("cache")[name], 1e-4)
    for name in ("attn_head_out_all_pos", "resid_mid", "attn_head_k_by_pos"):
        values = READY[name](model, tokens["corrupt"], clean, difference)
        close(values, gold.expected("patch")[name], 1e-4)
    arguments = (model, tokens["corrupt"], clean, corrupt, difference)
    paths = patching.get_act_patch_direct_path_all_sources(*arguments, "v")
    close(paths, gold.expected("direct")["v"], 1e-4)
    scores = gold.expected("composition")
    close(model.all_composition_scores("Q"), scores["all_Q"])
    close(model.all_composition_scores("K"), scores["all_K"])
    close(model.all_composition_scores("V"), scores["all_V"])
    want = gold.expected("svd")["w_in"]
    found = SVDInterpreter(model).get_singular_vectors("w_in", 1, 5)
    close(found * (found * want).sum(0, keepdim=True).sign(), want, 1e-4)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    ("name", "setter"),
    [
        ("z", patching.layer_pos_head_vector_patch_setter),
        ("resid_pre", patching.layer_pos_patch_setter),
    ],
)
def test_batched_cells_are_runs_with_hooks(kind: str, name: str, setter: Any) -> None:
    model = HookedTransformer({**SMALL, **OTHERS[kind]})
    clean, corrupt = tiny.tokens(2, 5, seed=1), tiny.tokens(2, 5, seed=2)
    corrupt[:, :2] = clean[:, :2]  # so that some cells differ nowhere, and others late
    _, cache = model.run_with_cache(clean)
    axes = ("layer", "pos", "head") if name == "z" else ("layer", "pos")

    def sweep() -> Tensor:
        return patching.generic_activation_patch(
            model, corrupt, cache, everything, setter, name, axes
        )

    batched = sweep()
    model.add_hook("hook_embed", lambda value, hook: value)  # now each cell is a run of its own
    close(batched, sweep(), 5e-4)


@pytest.mark.parametrize("kind", OTHERS)
def test_full_decompositions_sum_to_the_stream(kind: str) -> None:  # attention only: trap 25
    model = HookedTransformer({**SMALL, **OTHERS[kind]})
    _, cache = model.run_with_cache(tiny.tokens(2, 5))
    for stack in (
        cache.get_full_resid_decomposition(),
        cache.get_full_resid_decomposition(expand_neurons=False),
        cache.decompose_resid(),
        cache.stack_head_results(incl_remainder=True),
    ):
        close(stack.sum(0), cache["resid_post", -1], 1e-4)


def test_shares_of_the_logit_sum_to_it_on_processed_weights() -> None:
    raw = HookedTransformer({**SMALL, "normalization_type": "LN"}, tokenizer=tiny.Bytes())
    model = HookedTransformer.from_pretrained(raw.engine)
    logits, cache = model.run_with_cache(tiny.tokens(2, 5))
    shares = cache.logit_attrs(cache.get_full_resid_decomposition(), 65, 66).sum(0)
    bias = model.b_U[65] - model.b_U[66]
    close(shares + bias, logits[..., 65] - logits[..., 66], 1e-4)


def test_heads_are_detected_in_texts() -> None:
    model = HookedTransformer({**SMALL, "n_ctx": 32}, tokenizer=tiny.Bytes())
    scores = detect_head(model, "abcabc", "induction_head", exclude_bos=True)
    assert scores.shape == (2, 2)
    assert bool(((scores > 0) & (scores < 1)).all())
    _, cache = model.run_with_cache("abcabc", remove_batch_dim=True)
    again = detect_head(model, "abcabc", "induction_head", cache=cache, exclude_bos=True)
    close(again, scores)


def test_an_answer_is_ranked(capsys: pytest.CaptureFixture[str]) -> None:
    model = HookedTransformer({**SMALL, "n_ctx": 32}, tokenizer=tiny.Bytes())
    utils.test_prompt("ab", "c", model, prepend_space_to_answer=False, top_k=2)
    out = capsys.readouterr().out
    assert "Top 1th token" in out
    assert "Ranks of the answer tokens: [('c'," in out


@pytest.mark.parametrize("names", [None, lambda name: name.endswith(("hook_z", "pattern"))])
def test_where_prompts_are_alike_nothing_is_run_again(
    names: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clean run recorded, the base run's activations are its own, bit for bit."""
    model = HookedTransformer({**SMALL, "normalization_type": "LN"})
    clean, corrupt = tiny.tokens(2, 5, seed=1), tiny.tokens(2, 5, seed=2)
    corrupt[:, :3] = clean[:, :3]
    _, cache = model.run_with_cache(clean, names_filter=names)
    started: list[int] = []
    own = _cells._run

    def noted(base: Any, cells: Any, start: int) -> Tensor:
        started.append(start)
        return own(base, cells, start)

    monkeypatch.setattr(_cells, "_run", noted)
    patching.get_act_patch_attn_head_out_all_pos(model, corrupt, cache, difference)
    assert started == [3]
    patching.get_act_patch_attn_head_out_by_pos(model, clean, cache, difference)
    assert started == [3]  # the clean run patched into itself: no cell differs
