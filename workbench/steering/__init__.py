"""Steering: directions that change what a model writes, and how well they do it.

`METHODS` holds every way to find a direction, by its published name; `direction.at(strength,
unit)` is an intervention for `run` and `generate`.
"""

from workbench.core.direction import Direction
from workbench.steering.method import METHODS, SteeringMethod

__all__ = ["METHODS", "Direction", "SteeringMethod"]
