"""Every kind of rotary scaling: its frequencies are those of transformers, at every length."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.core.errors import OptionError, PromptError
from workbench.core.operators import Zero
from workbench.models.layers.positions import Rotary, reach, rotary

BASE, WIDTH, CONTEXT = 500.0, 8, 16
SHORT, LONG = [1.0, 1.5, 2.0, 3.0], [1.5, 4.0, 9.0, 20.0]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 8,
}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": YARN,
    "yarn, whole coordinates": {**YARN, "truncate": False},
    "yarn, betas": {**YARN, "beta_fast": 3.0, "beta_slow": 0.5},
    "yarn, attention factor": {**YARN, "attention_factor": 0.7},
    "yarn, mscale": {**YARN, "mscale": 0.9, "mscale_all_dim": 0.4},
    "yarn, factor of the contexts": {**YARN, "factor": None, "original_max_position_embeddings": 4},
    "yarn, no slower": {**YARN, "factor": 1.0},
    "longrope": LONGROPE,
    "longrope, factor": {**LONGROPE, "factor": 3.0},
    "longrope, attention factor": {**LONGROPE, "attention_factor": 1.3},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def parts(parameters: Mapping[str, Any], length: int) -> tuple[Tensor, float]:
    """Frequencies and scaling, read off the angle at position 1."""
    turning = made(parameters)
    lengths = torch.tensor([length])
    cos, sin = turning.angles(torch.ones(1, 1, dtype=torch.long), torch.float32, lengths)
    angle = torch.atan2(sin, cos)[0, 0, 0, : WIDTH // 2]
    return angle, float((cos.square() + sin.square()).sqrt().mean())


def made(parameters: Mapping[str, Any]) -> Rotary:
    """Ours, of a context of 16."""
    return rotary(WIDTH, {"rope_theta": BASE, **parameters}, CONTEXT)


@pytest.mark.parametrize("length", [1, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_are_those_of_transformers(kind: str, length: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    sizes: dict[str, Any] = {"max_position_embeddings": CONTEXT, "head_dim": WIDTH}
    parameters: dict[str, Any] = {"rope_theta": BASE, **KINDS[kind]}
    config: Any = LlamaConfig(**sizes, rope_parameters=parameters)
    expected, scaling = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, None, seq_len=length)
    ours, our_scaling = parts(KINDS[kind], length)
    tiny.close(ours, expected, 1e-6)
    assert our_scaling == pytest.approx(scaling, abs=1e-6)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_each_row_turns_as_if_it_were_alone(kind: str) -> None:
    at = torch.arange(6)[None]
    alone = [made(KINDS[kind]).angles(at, torch.float32, torch.tensor([n]))[0] for n in (5, 17, 31)]
    lengths = torch.tensor([5, 17, 31])
    together = made(KINDS[kind]).angles(at.expand(3, -1), torch.float32, lengths)[0]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({**LONGROPE, "short_factor": None}, "short_factor of rope_type 'longrope' must be 4"),
        ({**LONGROPE, "long_factor": [1.0]}, r"long_factor .* 4 numbers above 0, got \[1.0\]"),
        ({**LONGROPE, "long_factor": [1.0, 2.0, 0.0, 1.0]}, "4 numbers above 0"),
        ({**LONGROPE, "factor": -1}, "factor of rope_type 'longrope' must be a number above 0"),
        ({**YARN, "truncate": 1}, "truncate of rope_type 'yarn' must be true or false, got 1"),
        ({**YARN, "beta_fast": "32"}, "beta_fast of rope_type 'yarn' must be a number above 0"),
        ({**YARN, "short_factor": SHORT}, "described by"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_scaling_that_is_not_whole_is_refused(
    parameters: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        made(parameters)


def test_a_scaled_context_reaches_further() -> None:
    assert reach(16, KINDS["dynamic"]) == 48
    assert reach(16, YARN) == 64
    assert reach(16, {**YARN, "factor": None}) == 16
    assert reach(16, LONGROPE) == reach(16, KINDS["linear"]) == reach(16, {}) == 16


# --- texts that outgrow the rule their keys were turned by ---------------------------------------


def llama(parameters: Mapping[str, Any]) -> Any:
    """A tiny one, as transformers has it."""
    changes = {"max_position_embeddings": 16, "rope_parameters": {"rope_theta": BASE, **parameters}}
    return tiny.hf_llama(**changes)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("length", [8, 9, 16])
def test_a_long_text_runs_as_in_transformers(kind: str, length: int) -> None:
    theirs, ids = llama(KINDS[kind]), tiny.tokens(2, length + 8 * (kind == "dynamic"))
    with torch.no_grad():
        expected = theirs(ids).logits
    tiny.close(wb.run(wb.load(theirs), ids).logits, expected, 1e-4)


@pytest.mark.parametrize(("kind", "longest"), [("dynamic", 16), ("longrope", 8)])
def test_a_text_that_outgrows_its_keys_is_refused(kind: str, longest: int) -> None:
    """Those of transformers, cached and not, part there; where nothing bends, both are equal."""
    model, ids = wb.load(llama(KINDS[kind])), tiny.tokens(1, longest - 3)
    said = wb.generate(model, ids, max_new_tokens=4)  # its last token is never read
    full = wb.run(model, torch.cat([ids, torch.tensor([said.tokens[0]])], 1)[:, :longest]).logits
    assert full[0, longest - 4 :].argmax(-1).tolist() == list(said.tokens[0])
    with pytest.raises(PromptError, match="as those of a shorter text"):
        wb.generate(model, ids, max_new_tokens=5)


def test_a_sweep_over_a_long_text_is_its_loop() -> None:
    """It runs the end of the text by itself, on keys turned as those of the whole."""
    model, ids = wb.load(llama(LONGROPE)), tiny.tokens(1, 14)
    cells = [wb.Intervention("blocks.1.hook_mlp_out", Zero(), positions=[p]) for p in (9, 12)]
    swept = wb.sweep(model, ids, cells, lambda logits: logits[:, 5])
    loop = [wb.run(model, ids, plan=[cell]).logits[0, -1, 5] for cell in cells]
    tiny.close(swept.changed.flatten(), torch.stack(loop), 1e-5)
    assert not torch.equal(loop[0], loop[1])
