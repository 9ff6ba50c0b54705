"""Sentences of newspaper editorials, positive or negative: mean rating at least 0.5 from neutral.

Notable: sentences of one editorial are a group, since they share subject and tone. The editorials
have 498 documents, one of which has no sentence that is rated so clearly.
"""

from functools import partial

from probes.data import Dataset
from probes.datasets._ratings import polarity

DATASET = Dataset(
    asset="editorials",
    build=partial(
        polarity,
        "editorials",
        "nytEditorialSnippets_GroundTruth.txt",
        least=0.5,
        n_lines=5_190,
        n_rows=2_970,
        n_groups=497,
        by_document=True,
    ),
    description="2,970 sentences of newspaper editorials, positive or negative (Hutto & Gilbert)",
)
