"""Contrasts of tiny random models, whose tokens are bytes."""

from workbench.core.data import Contrast

ONE = Contrast(clean="abcdef", corrupt="abXdef", target="x", foil="y")
# Three examples of different lengths; the second repeats a token, and the answers differ.
THREE = Contrast(
    clean=["abcd", "aabbaa", "zyxwvuts"],
    corrupt=["aXcd", "aabbab", "ZYXWVUTS"],
    target=["x", "y", "x"],
    foil=["y", "z", "b"],
)
SAME = Contrast(clean=["abcd", "zyxwvu"], corrupt=["abcd", "zyxwvu"], target="x", foil="y")
