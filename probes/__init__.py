"""Probes: what can be read where in a model, how well, and against which baselines.

    datasets   labelled texts by name                        ->  TextData
    sweep      a probe at every site, cross-fitted           ->  a ProbeReport
    METHODS    every probe of `methods/` by its name; `fit(x, y)`  ->  a Probe

A report's direction steers: `report.direction().at(2, unit="sigma")` is an intervention.
"""

from probes import datasets
from probes.data import TextData
from probes.method import METHODS, Probe, ProbeMethod
from probes.report import Best, ProbeReport
from probes.sweep import sweep

__all__ = [
    "METHODS",
    "Best",
    "Probe",
    "ProbeMethod",
    "ProbeReport",
    "TextData",
    "datasets",
    "sweep",
]
