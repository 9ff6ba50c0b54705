# type: ignore - TransformerLens 2.18 is not what is installed here
"""Writes what TransformerLens 2.18 offers, with its arguments and defaults.

Run by hand, in an environment of its own (see make_models.py), never in CI.
"""

import inspect
import json
from pathlib import Path

import torch
import transformer_lens
from transformer_lens import head_detector, patching, utils
from transformer_lens.hook_points import HookedRootModule, HookPoint
from transformer_lens.past_key_value_caching import (
    HookedTransformerKeyValueCache,
    HookedTransformerKeyValueCacheEntry,
)

HERE = Path(__file__).parent
CLASSES = (
    transformer_lens.HookedTransformer,
    transformer_lens.HookedTransformerConfig,
    transformer_lens.ActivationCache,
    transformer_lens.FactoredMatrix,
    transformer_lens.SVDInterpreter,
    HookPoint,
    HookedRootModule,
    HookedTransformerKeyValueCache,
    HookedTransformerKeyValueCacheEntry,
)


def arguments(function) -> dict[str, str | None]:
    """Defaults by name; None where an argument must be given; sinks are left out."""
    sinks = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: None if parameter.default is parameter.empty else repr(parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "cls") and parameter.kind not in sinks
    }


def of_class(owner) -> dict[str, object]:
    """Its public members, but for those it has from torch."""
    found = {}
    for name in dir(owner):
        if name.startswith("_") and name != "__init__":
            continue
        if hasattr(torch.nn.Module, name) and name not in owner.__dict__:
            continue
        value = inspect.getattr_static(owner, name)
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if isinstance(value, property):
            found[name] = "property"
        elif inspect.isfunction(value):
            found[name] = arguments(value)
    return found


def of_module(module) -> dict[str, object]:
    """Its public functions."""
    return {
        name: arguments(value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and inspect.isfunction(value)
        and value.__module__.startswith("transformer_lens")
    }


if __name__ == "__main__":
    said = {owner.__name__: of_class(owner) for owner in CLASSES}
    for each in (utils, patching, head_detector):
        said[each.__name__.rsplit(".", 1)[-1]] = of_module(each)
    text = json.dumps(said, indent=1) + "\n"
    (HERE / "signatures.json").write_text(text, encoding="utf-8")
