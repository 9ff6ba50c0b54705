"""The makers of golden files run in the oracle's environment only."""

collect_ignore_glob = ["make_*.py"]
