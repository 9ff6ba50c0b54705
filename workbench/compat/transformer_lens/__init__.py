"""The classic TransformerLens interface (2.x), over this core.

    HookedTransformer                 a loaded model, or one built from a HookedTransformerConfig
    ActivationCache  FactoredMatrix   what a run left, and products of weights
    HookedTransformerKeyValueCache    what a model has read, to go on from
    HookPoint  HookedRootModule       hooks in a module of your own
    SVDInterpreter  head_detector     singular vectors as tokens, heads of known patterns
    patching  utils                   the classic modules of those names

Code and courses written for 2.x run on `from workbench.compat.transformer_lens import ...`.
"""

from workbench.compat.transformer_lens import head_detector, patching, utils
from workbench.compat.transformer_lens.activation_cache import ActivationCache
from workbench.compat.transformer_lens.config import HookedTransformerConfig
from workbench.compat.transformer_lens.factored_matrix import FactoredMatrix
from workbench.compat.transformer_lens.hook_points import HookedRootModule, HookPoint
from workbench.compat.transformer_lens.hooked_transformer import HookedTransformer
from workbench.compat.transformer_lens.key_value_cache import (
    HookedTransformerKeyValueCache,
    HookedTransformerKeyValueCacheEntry,
)
from workbench.compat.transformer_lens.svd_interpreter import SVDInterpreter

__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "HookPoint",
    "HookedRootModule",
    "HookedTransformer",
    "HookedTransformerConfig",
    "HookedTransformerKeyValueCache",
    "HookedTransformerKeyValueCacheEntry",
    "SVDInterpreter",
    "head_detector",
    "patching",
    "utils",
]
