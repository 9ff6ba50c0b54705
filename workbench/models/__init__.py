"""Models: a hooked Transformer composed of bricks, its families, and what loads them.

load      a name, folder, file or Hugging Face model  ->  a frozen model
new       a config and a seed                         ->  one with drawn weights
save      a model                                     ->  a folder that transformers loads
verify    a model                                     ->  a Report; verified: the one kept
overview  what is native, and what each family has
"""

from workbench.models.fresh import new

__all__ = ["new"]
