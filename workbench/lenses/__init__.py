"""Lenses: what the residual stream would say if the model ended there.

`METHODS` holds every lens by its published name.
"""

from workbench.lenses.lens import METHODS, LensMethod, LensReading

__all__ = ["METHODS", "LensMethod", "LensReading"]
