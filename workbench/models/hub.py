"""A model of the Hugging Face hub as a local folder, through huggingface_hub's own cache."""

from pathlib import Path
from typing import Any

from workbench.core.errors import AssetError, MissingDependencyError, WeightsError

# No pickled weights, no code, nothing of other frameworks.
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt"]
UNWANTED = ["*/*", "*.bin", "*.py"]


def snapshot(hub_id: str, revision: str | None = None) -> Path:
    """The folder of a hub id's safetensors, configs and tokenizer; downloads what is not here.

    `revision` is a branch, tag or commit; None: the main branch.

    Raises:
        AssetError: If the hub cannot be reached, or has no such model for us.
        WeightsError: If it has no safetensors.
        MissingDependencyError: If huggingface_hub is not installed.
    """
    try:
        import httpx
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"Hub ids need {error.name}: pip install it.") from None
    untyped: Any = huggingface_hub
    try:
        folder = Path(
            untyped.snapshot_download(
                hub_id, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        which = "" if revision is None else f" at revision {revision!r}"
        raise AssetError(
            f"{hub_id!r}{which} is no local folder and could not be fetched from the hub "
            f"({reason}). Check the name, the network and, for a gated model, `hf auth login`; "
            "or give a local folder, or one of the assets that `workbench doctor` lists."
        ) from None
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(
            f"{hub_id} has no safetensors, only pickled weights or none; download it yourself and "
            "load its folder if you trust it (pickles are read with weights_only=True)."
        )
    return folder
