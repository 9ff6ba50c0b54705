"""State dicts as TransformerLens 2.18 wrote them, in and out, bit for bit; others are refused.

The golden file holds what 2.18 itself writes. Where it is configured with LN and told to fold, 2.18
goes on applying the norm weights that the model had; ours is held against the unprocessed model.
"""

import hashlib
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests import tiny
from workbench.compat.transformer_lens import HookedTransformer, HookedTransformerConfig
from workbench.core.errors import WeightsError

FOLDER = Path(__file__).parent / "goldens"
CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (FOLDER / "state_dicts.json").read_text(encoding="utf-8")
)
names = pytest.mark.parametrize("name", CONFIGS)
BUFFERS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
IDS = torch.tensor([[1, 5, 2, 7, 0, 3], [4, 4, 8, 6, 1, 2]])


@cache
def written() -> dict[str, Tensor]:
    """What 2.18 wrote."""
    return load_file(FOLDER / "state_dicts.safetensors")


def part(name: str, kind: str) -> dict[str, Tensor]:
    """Of one configuration: raw, processed or stacked."""
    start = f"{name}/{kind}/"
    return {
        key.removeprefix(start): value.clone()
        for key, value in written().items()
        if key.startswith(start)
    }


def built(name: str, **changes: Any) -> HookedTransformer:
    """Ours, with other weights."""
    config: dict[str, Any] = {**CONFIGS[name], "seed": 8, **changes}
    return HookedTransformer(HookedTransformerConfig(**config))


def loaded(name: str, **changes: Any) -> HookedTransformer:
    """Ours, with the oracle's weights."""
    facade = built(name, **changes)
    facade.load_state_dict(part(name, "raw"))
    return facade


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names and the same bytes."""
    assert set(found) == set(expected)
    assert [key for key in found if not tiny.same_bytes(found[key], expected[key])] == []


def said(facade: HookedTransformer) -> Tensor:
    """Log-probabilities."""
    with torch.no_grad():
        return torch.as_tensor(facade(IDS)).log_softmax(-1)


# --- what 2.18 writes ---------------------------------------------------------------------------


@names
def test_what_the_classic_wrote_is_read_and_written_again_bit_for_bit(name: str) -> None:
    raw = part(name, "raw")
    found = loaded(name).state_dict(buffers=True)
    tables = {key for key in raw if key.endswith(("rotary_sin", "rotary_cos"))}
    for key in tables:  # computed here, by another formula
        tiny.close(found[key], raw[key], 1e-6)
    others = raw.keys() - tables
    same({k: v for k, v in found.items() if k not in tables}, {k: raw[k] for k in others})
    weights = {key: value for key, value in raw.items() if not key.endswith(BUFFERS)}
    same(loaded(name).state_dict(), weights)


@names
def test_the_classic_s_processing_of_its_own_dict_is_ours(name: str) -> None:
    folded = f"{CONFIGS[name].get('normalization_type', 'LN')}Pre"
    facade = built(name, normalization_type=folded)
    facade.load_and_process_state_dict(part(name, "raw"))
    found, expected = facade.state_dict(), part(name, "processed")
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)
    tiny.close(said(facade), said(loaded(name)), 1e-5)
    again = built(name, normalization_type=folded)
    again.load_state_dict(found)
    assert torch.equal(said(again), said(facade))


@names
def test_norm_weights_that_were_folded_are_not_applied_again(name: str) -> None:
    facade = built(name)
    facade.load_and_process_state_dict(part(name, "raw"))
    assert facade.cfg.normalization_type in ("LNPre", "RMSPre")
    tiny.close(said(facade), said(loaded(name)), 1e-5)
    learner = facade.train()
    assert all(weight.requires_grad for weight in learner.parameters())


@names
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dict_survives_a_file_in_any_dtype(name: str, dtype: torch.dtype) -> None:
    facade = loaded(name, dtype=dtype)
    file = io.BytesIO()
    torch.save(facade.state_dict(buffers=True), file)
    file.seek(0)
    other = built(name, dtype=dtype)
    missing, left = other.load_state_dict(torch.load(file, weights_only=True))
    assert (missing, left) == ([], [])
    same(other.state_dict(), facade.state_dict())


@pytest.mark.parametrize(
    ("mode", "digest"), json.loads((FOLDER / "inits.json").read_text(encoding="utf-8")).items()
)
def test_every_mode_draws_the_classic_s_weights_bit_for_bit(mode: str, digest: str) -> None:
    state, found = torch.random.get_rng_state(), hashlib.sha256()
    weights = built("grouped", seed=3, init_mode=mode).state_dict()
    for key in sorted(weights):
        found.update(key.encode() + weights[key].contiguous().numpy().tobytes())
    assert found.hexdigest() == digest
    assert torch.equal(torch.random.get_rng_state(), state)


# --- the older layouts ----------------------------------------------------------------------------


def test_stacked_properties_are_read_as_what_they_stack() -> None:
    stacked = part("grouped", "stacked")
    facade, norms = built("grouped"), part("grouped", "raw")
    stacked |= {key: value for key, value in norms.items() if ".ln" in key or "ln_final" in key}
    facade.load_state_dict(stacked)
    same(facade.state_dict(), loaded("grouped").state_dict())
    bare = built("grouped", normalization_type="RMSPre")
    bare.load_and_process_state_dict(stacked)
    tiny.close(said(bare), said(facade), 1e-5)


@pytest.mark.parametrize("kind", ["W_K", "W_V", "b_K", "b_V"])
def test_keys_and_values_may_be_repeated_for_the_heads_of_a_group(kind: str) -> None:
    state, facade = part("grouped", "raw"), built("grouped")
    own, repeated = f"blocks.1.attn._{kind}", f"blocks.1.attn.{kind}"
    state[repeated] = state.pop(own).repeat_interleave(2, 0)
    facade.load_state_dict(state)
    same(facade.state_dict(), loaded("grouped").state_dict())
    state[repeated][1] += 1
    with pytest.raises(WeightsError, match=f"not grouped: heads of one group differ in {repeated}"):
        facade.load_state_dict(state)
    del state[repeated]
    state[own] = part("grouped", "raw")[own][:1]
    with pytest.raises(WeightsError, match=rf"misshapen: {own} is \(1, "):
        facade.load_state_dict(state)


def test_as_many_groups_as_heads_may_be_named_either_way() -> None:
    state = part("grouped_singly", "raw")
    plain = {key.replace(".attn._", ".attn."): value for key, value in state.items()}
    facade = built("grouped_singly")
    facade.load_state_dict(plain)
    same(facade.state_dict(), loaded("grouped_singly").state_dict())
    other = built("grouped_singly", n_key_value_heads=None)
    other.load_state_dict(state)
    assert "blocks.0.attn.W_K" in other.state_dict()
    assert torch.equal(said(other), said(facade))


def test_masks_of_old_versions_are_constants_and_no_weights() -> None:
    state = part("layer_norm", "raw")
    for layer in range(2):
        state[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-1e5)  # before it was -inf
        state[f"blocks.{layer}.attn.mask"] = torch.ones(9, 9).tril()  # of another length, as floats
    facade = built("layer_norm")
    facade.load_state_dict(state)
    same(facade.state_dict(), loaded("layer_norm").state_dict())


# --- what does not fit ----------------------------------------------------------------------------


WRONG: dict[str, tuple[str, Any, str]] = {
    "window": (
        "blocks.1.attn.mask",
        torch.ones(6, 6).tril().triu(-1).bool(),
        "another model's: blocks.1.attn.mask is not the causal mask",
    ),
    "rotation": (
        "blocks.0.attn.rotary_sin",
        torch.zeros(6, 2),
        "another model's: blocks.0.attn.rotary_sin turns by other angles",
    ),
    "width": (
        "blocks.0.attn.rotary_cos",
        torch.ones(6, 4),
        "another model's: blocks.0.attn.rotary_cos turns by other angles",
    ),
    "block": (
        "blocks.2.attn.mask",
        torch.ones(6, 6).tril(),
        "unexpected: blocks.2.attn.mask",
    ),
    "buffer": ("attn.mask", torch.ones(6, 6).tril(), "unexpected: attn.mask"),
    "name": ("blocks.0.attn.W_R", torch.zeros(4, 8, 4), "unexpected: blocks.0.attn.W_R"),
    "layers": ("W_Q", torch.zeros(3, 4, 8, 4), "unexpected: blocks.2.attn.W_Q"),
    "twice": ("W_E", torch.zeros(9, 8), "given twice: embed.W_E, the second time as W_E"),
    "shape": (
        "unembed.W_U",
        torch.zeros(9, 8),
        r"misshapen: unembed.W_U is \(9, 8\), expected \(8, 9\)",
    ),
    "neurons": ("blocks.0.mlp._W_in", torch.zeros(8, 6), "unexpected: blocks.0.mlp._W_in"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused_by_its_name_and_changes_nothing(what: str) -> None:
    key, value, message = WRONG[what]
    facade = loaded("rotary_pairs").train()
    before = {name: weight.clone() for name, weight in facade.state_dict().items()}
    for load in (facade.load_state_dict, facade.load_and_process_state_dict):
        with pytest.raises(WeightsError, match=message):
            load({**part("rotary_pairs", "raw"), key: value})
        same(facade.state_dict(), before)
    assert all(weight.requires_grad for weight in facade.parameters())
    assert facade.cfg.normalization_type == "LN"


def test_a_rotary_table_is_another_model_s_where_nothing_turns() -> None:
    table = {"blocks.0.attn.rotary_sin": torch.zeros(6, 2)}
    with pytest.raises(WeightsError, match="as this model has no rotary positions"):
        built("layer_norm").load_state_dict({**part("layer_norm", "raw"), **table})


def test_a_matrix_is_never_made_up() -> None:
    state = part("layer_norm", "raw")
    del state["blocks.1.mlp.W_in"], state["blocks.1.mlp.b_in"]
    with pytest.raises(WeightsError, match=r"missing: blocks\.1\.mlp\.W_in$"):
        built("layer_norm").load_and_process_state_dict(state)


def test_without_strictness_it_says_what_it_left() -> None:
    state, facade = part("layer_norm", "raw"), built("layer_norm")
    before = facade.state_dict()["embed.W_E"].clone()
    del state["embed.W_E"]
    state["more"] = torch.zeros(1)
    left = facade.load_state_dict(state, strict=False)
    assert left.missing_keys == ["embed.W_E"]
    assert left.unexpected_keys == ["more"]
    assert torch.equal(facade.state_dict()["embed.W_E"], before)
    assert torch.equal(facade.W_U, state["unembed.W_U"])


def test_what_the_caller_does_to_the_dict_afterwards_is_the_caller_s() -> None:
    facade = HookedTransformer.from_pretrained(tiny.model("gpt2"))
    state = {name: value.clone() for name, value in facade.state_dict().items()}
    facade.load_state_dict(state)
    before = {name: value.clone() for name, value in facade.state_dict().items()}
    assert facade.parity is None  # it was that of other weights
    for value in state.values():
        value.zero_()
    same(facade.state_dict(), before)
