"""Every name of TransformerLens 2.18, with its arguments, their order and their defaults."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workbench.compat.transformer_lens as ours
from tests import tiny
from workbench.compat.transformer_lens import HookedTransformer

FOLDER = Path(__file__).parent / "goldens"
CLASSIC: dict[str, dict[str, Any]] = json.loads(
    (FOLDER / "signatures.json").read_text(encoding="utf-8")
)
# What 2.18 has and is not here: its inner workings, what needs a hub, and what it has deprecated.
LEFT_OUT: dict[str, set[str]] = {
    "HookedTransformer": {
        *("cache_all", "cache_some", "check_and_add_hook", "check_hooks_to_add", "setup"),
        *("get_pos_offset", "get_residual", "move_model_modules_to_device"),
        *("load_sample_training_dataset", "sample_datapoint", "fill_missing_keys"),
        *("fold_layer_norm", "fold_value_biases", "center_unembed", "center_writing_weights"),
        "refactor_factored_attn_matrices",
    },
    "HookedTransformerConfig": {"set_seed_everywhere"},
    "HookedRootModule": {"cache_all", "cache_some", "check_and_add_hook", "check_hooks_to_add"},
    "HookedTransformerKeyValueCacheEntry": {"init_cache_entry"},
    "utils": {
        *("get_dataset", "download_file_from_hf", "clear_huggingface_cache", "get_nested_attr"),
        *("is_library_available", "select_compatible_kwargs", "check_structure", "warn_if_mps"),
        *("override_or_use_default_value", "get_cumsum_along_dim", "set_nested_attr"),
        *("repeat_along_head_dimension", "get_tokenizer_with_bos", "get_tokens_with_bos_removed"),
        *("get_input_with_manually_prepended_bos", "gelu_pytorch_tanh", "xielu"),
        *("calc_fan_in_and_fan_out", "init_xavier_uniform_", "init_xavier_normal_"),
        *("init_kaiming_uniform_", "init_kaiming_normal_"),
    },
}
NAMES = [(owner, name) for owner, members in CLASSIC.items() for name in members]
# A mutable default is an immutable one here; a device may be left out where it can be known.
CHANGED = {
    "[]": "()",
    "HookedTransformerKeyValueCache.init_cache device": "None",
    "ActivationCache.to move_model": "deprecated in 2.x",
}


def found(owner: str, name: str) -> Any:
    """Ours of that name, or None."""
    value = inspect.getattr_static(inspect.getattr_static(ours, owner), name, None)
    return value.__func__ if isinstance(value, classmethod | staticmethod) else value


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """By name, without the object."""
    named = inspect.signature(function).parameters
    return {name: one for name, one in named.items() if name not in ("self", "cls")}


@pytest.mark.parametrize(("owner", "name"), NAMES)
def test_it_is_called_as_in_the_classic(owner: str, name: str) -> None:
    value, classic = found(owner, name), CLASSIC[owner][name]
    assert (value is None) == (name in LEFT_OUT.get(owner, set()))
    if value is None or classic == "property":
        assert value is None or isinstance(value, property)
        return
    mine = parameters(value)
    places: list[int] = []
    for argument, default in classic.items():
        change = CHANGED.get(f"{owner}.{name} {argument}", CHANGED.get(default or "", default))
        if change == "deprecated in 2.x":
            continue
        one = mine[argument]
        assert (None if one.default is one.empty else repr(one.default)) == change, argument
        places.append(list(mine).index(argument))
    assert places == sorted(places)
    more = [one for key, one in mine.items() if key not in classic]
    run = name in ("run_with_hooks", "run_with_cache")  # these take all that a forward takes
    assert all(run or one.kind == one.KEYWORD_ONLY for one in more)


def test_nothing_swallows_a_misspelt_argument() -> None:
    sinks = [
        f"{owner}.{name}"
        for owner, name in NAMES
        if inspect.isfunction(found(owner, name))
        for one in parameters(found(owner, name)).values()
        if one.kind == one.VAR_KEYWORD
    ]
    assert sinks == []


def test_runs_take_what_a_forward_takes() -> None:
    forward = parameters(HookedTransformer.forward)
    for run in (HookedTransformer.run_with_hooks, HookedTransformer.run_with_cache):
        mine = parameters(run)
        assert list(mine)[: len(forward)] == list(forward)
        for name, one in forward.items():
            assert (mine[name].kind, mine[name].default) == (one.kind, one.default)


def test_help_finds_every_method_and_says_what_it_does() -> None:
    """The class is put together of parts; a reader sees one class."""
    public = {name for name in dir(HookedTransformer) if not name.startswith("_")}
    silent = {name for name in public if not inspect.getdoc(getattr(HookedTransformer, name))}
    assert silent == set()
    owners = list(HookedTransformer.__mro__[:-1])
    for i, owner in enumerate(owners):  # no part overrides another's
        for name, value in vars(owner).items():
            others = [other for other in owners[i + 1 :] if name in vars(other)]
            assert name.startswith("__") or not callable(value) or others == [], name
    facade = HookedTransformer.from_pretrained(tiny.model("gpt2"))
    assert str(inspect.signature(facade.to_string)) == "(tokens: Any) -> str | list[str]"
