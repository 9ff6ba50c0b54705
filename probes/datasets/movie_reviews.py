"""Sentences of film reviews, positive or negative: mean human rating at least 1 from neutral."""

from functools import partial

from probes.data import Dataset
from probes.datasets._ratings import polarity

DATASET = Dataset(
    asset="movie-reviews",
    build=partial(
        polarity,
        "movie-reviews",
        "movieReviewSnippets_GroundTruth.txt",
        least=1.0,
        n_lines=10_605,
        n_rows=9_173,
        n_groups=9_171,
        by_document=False,
    ),
    description="9,173 sentences of film reviews, positive or negative (Hutto & Gilbert 2014)",
)
