"""Attribution: which parts of a model produced this token.

`METHODS` holds every method of `methods/` by its published name; each is called with a model and
a contrast and gives an `Attribution`. `known_truth` has models whose circuits are known exactly.
"""

from workbench.attribution.attribution import Attribution
from workbench.attribution.method import METHODS, AttributionMethod, Scores

__all__ = ["METHODS", "Attribution", "AttributionMethod", "Scores"]
