"""Models from configurations say what TransformerLens 2.18 says, down to every activation.

Where 2.18 is wrong (processing a gated MLP after a LayerNorm, or a final RMSNorm), processing is
held against the unprocessed model instead.
"""

import hashlib
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
from workbench.core.errors import OptionError

FOLDER = Path(__file__).parent / "goldens"
NAMES = sorted(
    file.stem
    for file in FOLDER.glob("*.json")
    if "fresh" in json.loads(file.read_text(encoding="utf-8"))
)
goldens = pytest.mark.parametrize("name", NAMES)


@cache
def about(name: str) -> dict[str, Any]:
    """A configuration, and a digest of its fresh weights."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@cache
def golden(name: str) -> dict[str, Tensor]:
    """What the oracle wrote."""
    return load_file(FOLDER / f"{name}.safetensors")


def part(name: str, kind: str) -> dict[str, Tensor]:
    """The tensors of one kind, by the rest of their names."""
    return {
        key.removeprefix(f"{kind}/"): value
        for key, value in golden(name).items()
        if key.startswith(f"{kind}/")
    }


def built(name: str, **changes: Any) -> HookedTransformer:
    """Ours, with fresh weights."""
    return HookedTransformer(HookedTransformerConfig(**{**about(name)["config"], **changes}))


@cache
def ours(name: str) -> HookedTransformer:
    """Ours with the oracle's weights; shared."""
    facade = built(name)
    facade.load_state_dict(part(about(name)["weights_of"], "weights"))
    return facade


def agree(found: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Equal within a tolerance relative to the size of the whole."""
    assert found.shape == expected.shape, what
    hidden = expected == float("-inf")
    assert torch.equal(hidden, found == float("-inf")), what
    difference = (found - expected).masked_fill(hidden, 0.0).norm()
    assert difference <= tolerance * expected.masked_fill(hidden, 0.0).norm().clamp(min=1e-3), what


def test_there_are_goldens() -> None:
    assert len(NAMES) >= 22


@goldens
def test_the_same_seed_draws_the_same_weights_bit_for_bit(name: str) -> None:
    state = torch.random.get_rng_state()
    weights, found = built(name).state_dict(), hashlib.sha256()
    for key in sorted(weights):
        found.update(key.encode() + weights[key].contiguous().numpy().tobytes())
    assert found.hexdigest() == about(name)["fresh"]
    assert torch.equal(torch.random.get_rng_state(), state)


@goldens
def test_it_says_what_the_classic_says(name: str) -> None:
    facade, expected = ours(name), golden(name)
    ids = expected["ids"]
    with torch.no_grad():
        tiny.close(torch.as_tensor(facade(ids)), expected["logits"], 1e-4)
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
        masked = torch.as_tensor(facade(ids, attention_mask=mask))[0, 2:]
        alone = torch.as_tensor(facade(ids[:1, 2:]))[0]
        tiny.close(masked, expected.get("masked_logits", alone), 1e-4)
        stream = expected["cache/blocks.1.hook_resid_pre"]
        tiny.close(torch.as_tensor(facade(stream, start_at_layer=1)), expected["from_1"], 1e-4)
        if "loss" in expected:
            tiny.close(torch.as_tensor(facade(ids, return_type="loss")), expected["loss"], 1e-5)
            each = facade(ids, return_type="loss", loss_per_token=True)
            tiny.close(torch.as_tensor(each), expected["loss_per_token"], 1e-5)


@goldens
def test_every_activation_is_the_classic_s(name: str) -> None:
    expected = part(name, "cache")
    found = ours(name).run_with_cache(
        golden(name)["ids"], names_filter=list(expected), return_cache_object=False
    )[1]
    assert set(found) == set(expected)
    for key, value in expected.items():
        agree(found[key], value, 1e-5, key)


@pytest.mark.parametrize("name", [n for n in NAMES if "cache/hook_embed" in golden(n)])
def test_a_cache_of_everything_has_the_classic_s_names(name: str) -> None:
    facade, expected = built(name), set(part(name, "cache"))
    facade.set_use_attn_result(any("hook_result" in key for key in expected))
    facade.set_use_hook_mlp_in(any("hook_mlp_in" in key for key in expected))
    assert set(facade.run_with_cache(golden(name)["ids"])[1]) == expected


@goldens
def test_processed_weights_say_what_the_model_says(name: str) -> None:
    facade, expected = built(name), golden(name)
    facade.load_state_dict(part(about(name)["weights_of"], "weights"))
    with torch.no_grad():
        facade.process_weights_()
        found = torch.as_tensor(facade(expected["ids"])).log_softmax(-1)
        tiny.close(found, expected["logits"].log_softmax(-1), 1e-5)
        if "processed_log_probabilities" in expected:
            tiny.close(found, expected["processed_log_probabilities"], 1e-5)


def test_a_model_from_a_configuration_learns() -> None:
    facade = built("layer_norm").train()
    ids = golden("layer_norm")["ids"]
    learner = torch.optim.AdamW(facade.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(5):
        loss = torch.as_tensor(facade(ids, return_type="loss"))
        learner.zero_grad()
        torch.autograd.backward(loss)
        learner.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5
    assert torch.equal(facade.W_Q[0], facade.blocks[0].attn.W_Q)  # never a stale stack
    with pytest.raises(OptionError, match="train must be of a model made from a configuration"):
        HookedTransformer.from_pretrained(tiny.model("gpt2")).train()


REFUSED: dict[str, Any] = {
    "positional_embedding_type": {"positional_embedding_type": "shortformer"},
    "alibi": {"positional_embedding_type": "alibi", "attention_dir": "bidirectional"},
    "use_local_attn": {"use_local_attn": True},
    "rotary_dim": {"rotary_dim": 3},
    "rotary_base_local": {"rotary_base_local": 100},
    "use_normalization_before_and_after": {
        "use_normalization_before_and_after": True,
        "parallel_attn_mlp": True,
    },
    "use_hook_tokens": {"use_hook_tokens": True},
    "num_experts": {"num_experts": 2, "experts_per_token": 3},
    "act_fn": {"act_fn": "xielu"},
    "solu_ln": {"act_fn": "solu_ln", "gated_mlp": True},
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_no_brick_does_is_refused_by_its_name(option: str) -> None:
    with pytest.raises(OptionError, match=option):
        built("layer_norm", **REFUSED[option])


def test_a_configuration_checks_its_own_fields() -> None:
    base = about("layer_norm")["config"]
    made = HookedTransformerConfig.from_dict({**base, "n_heads": -1})
    assert (made.n_heads, made.d_vocab_out, made.attn_scale) == (8, 20, 2.0)
    assert made.n_params == 2 * (4 * 32 * 32 + 2 * 32 * 24)
    assert HookedTransformerConfig.unwrap(made) is made
    assert HookedTransformerConfig.from_dict(made.to_dict()) == made
    for wrong in ({"act_fn": "gelo"}, {"n_layers": 0}, {"normalization_type": "BN"}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            HookedTransformerConfig.from_dict({**base, **wrong})
    with pytest.raises(KeyError, match=r"No config field named 'n_head'. Nearest"):
        HookedTransformerConfig.from_dict({**base, "n_head": 3})
