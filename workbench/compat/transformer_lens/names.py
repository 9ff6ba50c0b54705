"""The classic shorthand for activation names: `k6`, `("normalized", -1, "ln2")`, `resid_pre`."""

import re
from collections.abc import Mapping
from types import MappingProxyType

_SHORT = re.compile(r"([a-z]+)(\d+)([a-z]?.*)")
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "attn": "pattern",
        "attn_logits": "attn_scores",
        "key": "k",
        "query": "q",
        "value": "v",
        "mlp_pre": "pre",
        "mlp_mid": "mid",
        "mlp_post": "post",
    }
)
_TYPES: Mapping[str, str] = MappingProxyType(
    {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
)
_OF_ATTENTION = frozenset("q k v z rot_q rot_k result pattern attn_scores".split())
_OF_NEURONS = frozenset("pre post mid pre_linear".split())


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full name of an activation.

    >>> get_act_name("k", 6), get_act_name("k6"), get_act_name("scale4ln1")
    ('blocks.6.attn.hook_k', 'blocks.6.attn.hook_k', 'blocks.4.ln1.hook_scale')
    >>> get_act_name("attn", 0), get_act_name("normalized")
    ('blocks.0.attn.hook_pattern', 'ln_final.hook_normalized')

    Beware: an underscore ends the shorthand, so `resid_pre5` is `hook_resid_pre5`, of no layer.
    """
    if layer is None and layer_type is None and ("." in name or name.startswith("hook_")):
        return name
    found = _SHORT.match(name)
    if found is not None:
        name, layer, layer_type = found.groups()
    name = _NAMES.get(name, name)
    kind = _kind(name, layer_type)
    block = "" if layer is None else f"blocks.{layer}."
    final = "ln_final." if layer is None and name in ("scale", "normalized") else ""
    return f"{final}{block}{f'{kind}.' if kind else ''}hook_{name}"


def _kind(name: str, layer_type: str | None) -> str:
    if name in _OF_ATTENTION:
        return "attn"
    if name in _OF_NEURONS:
        return "mlp"
    return _TYPES.get(layer_type or "", layer_type or "")
