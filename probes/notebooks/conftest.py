"""Notebooks run when they are imported: pytest is not to collect them for doctests."""

collect_ignore_glob = ["*.py"]
