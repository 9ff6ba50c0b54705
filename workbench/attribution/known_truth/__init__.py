"""Models built by hand, whose circuits and effects are known exactly; no download.

`induction.build()` is the one the app falls back to.
"""

from workbench.attribution.known_truth.truth import KnownTruth

__all__ = ["KnownTruth"]
