"""A known distribution through the machine's own package client: it works where packages install.

Notable: the client is given the hash beforehand. It then refuses another file *before* it looks
into it, which matters for a source distribution, whose set-up script it runs to learn its name.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from workbench.core.errors import AssetError, MissingDependencyError
from workbench.models.archives import check_sha256, wrong_hash

TIMEOUT = 3600.0  # seconds; the client gives up on a dead connection much sooner by itself


def fetch(requirement: str, sha256: str, folder: Path, *, source_distribution: bool) -> Path:
    """The one file of a pinned `requirement`, downloaded into the empty `folder`, hash checked.

    Raises:
        AssetError: If the registry cannot be reached or has another file by that name.
        MissingDependencyError: If this Python has no pip.
    """
    client = _run(_command(requirement, sha256, folder, source_distribution=source_distribution))
    if client.returncode:
        raise AssetError(_failure(requirement, sha256, client.stdout + client.stderr))
    files = [file for file in folder.iterdir() if file.suffix != ".txt"]
    if len(files) != 1:
        names = ", ".join(sorted(file.name for file in files)) or "nothing"
        raise AssetError(f"{requirement}: expected one file from the package client, got {names}.")
    check_sha256(files[0], sha256)
    return files[0]


def _command(
    requirement: str, sha256: str, folder: Path, *, source_distribution: bool
) -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise MissingDependencyError(
            f"{sys.executable} has no pip, which fetches assets: run "
            f"`{sys.executable} -m ensurepip`, or make the environment anew with `make app`."
        )
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / "requirements.txt"
    listing.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    # Only the package itself from source: its build tools may come as wheels.
    form = "--no-binary" if source_distribution else "--only-binary"
    package = re.split(r"[=<>!~\[ ]", requirement, maxsplit=1)[0]
    options = [
        "--no-deps",
        "--require-hashes",
        "--no-cache-dir",
        "--no-input",
        "--progress-bar=off",
    ]
    options += ["--disable-pip-version-check", form, package, "--dest", str(folder)]
    return [sys.executable, "-m", "pip", "download", *options, "-r", str(listing)]


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT, errors="replace"
        )
    except subprocess.TimeoutExpired:
        message = f"The package client did not finish in {TIMEOUT / 60:.0f} minutes; pull again."
        raise AssetError(message) from None


def _failure(requirement: str, sha256: str, output: str) -> str:
    got = re.search(r"\bGot\s+([0-9a-f]{64})\b", output)
    if got:
        return wrong_hash(requirement, sha256, got[1])
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no output"]
    broken = [line for line in lines if "connection broken by" in line][-1:]
    said = " | ".join([*broken, errors[-1]])
    return (
        f"{requirement} could not be fetched; the package client's last word: {said!r}. Check the "
        "network and the client's index (`pip config list`), then pull again; or copy the asset's "
        "folder from a machine that has it (`workbench doctor` says where it is)."
    )
