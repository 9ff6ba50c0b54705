"""Where harvested rows go, one file each; all are fed by `harvest_into` and by a store.

Rows        all of them, in memory
Moments     mean and covariance, or variance alone
TopK        the largest values of each column, and which tokens they come from
Histogram   counts between fixed edges, by column
"""

from workbench.core.sinks.histogram import Histogram, Histograms
from workbench.core.sinks.moments import Moments, Statistics
from workbench.core.sinks.rows import Rows, Table
from workbench.core.sinks.sink import Sink
from workbench.core.sinks.top_k import Top, TopK

__all__ = [
    "Histogram",
    "Histograms",
    "Moments",
    "Rows",
    "Sink",
    "Statistics",
    "Table",
    "Top",
    "TopK",
]
