"""The options of `python app/main.py`, as Streamlit's configuration."""

import argparse
from collections.abc import Sequence


def options(arguments: Sequence[str]) -> dict[str, object]:
    """`--port` and `--address` as Streamlit's options; loopback unless told otherwise."""
    parser = argparse.ArgumentParser(prog="workbench app", description="The workbench in a browser")
    parser.add_argument("--port", type=int, default=8501, help="the port to serve on")
    parser.add_argument("--address", default="127.0.0.1", help="the address to listen at")
    found = parser.parse_args(arguments)
    return {"server.port": found.port, "server.address": found.address}
