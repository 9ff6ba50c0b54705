"""A model by what was typed for it; where it cannot be loaded, what is wrong and what to do."""

from pathlib import Path
from typing import Final

import workbench as wb
from app.state import BUILT_IN, DEFAULT_MODEL
from workbench.attribution.known_truth import induction
from workbench.core.errors import FormatError, UnknownNameError, WorkbenchError
from workbench.core.protocols import NEXT_TOKEN, Model

CHOICES: Final = (
    f"Type {DEFAULT_MODEL}, {BUILT_IN}, a folder with config.json and .safetensors files, a .gguf "
    "file, or a hub id with its owner (openai-community/gpt2)."
)
NO_TEXT: Final = (
    "is a model that writes no next tokens, which the pages here show. In Python it can be run, "
    "probed and changed like any other: wb.load, wb.run."
)


def load(name: str) -> Model:
    """The model of that name.

    Raises:
        FormatError: If it cannot be loaded; says what is wrong with it and what to do.
    """
    if name == BUILT_IN:
        return induction.build().model
    try:
        model = wb.load(name)
    except (WorkbenchError, OSError) as error:
        raise FormatError(_told(name, error)) from error
    if not _writes(model):
        raise FormatError(f"{name} {NO_TEXT} {CHOICES}")
    return model


def _writes(model: Model) -> bool:
    """Whether it goes on with a text, as all pages here expect of a model."""
    one_stack = not model.sizes.n_encoder_layers
    return model.causal and one_stack and model.sizes.output == NEXT_TOKEN


def _told(name: str, error: Exception) -> str:
    if isinstance(error, UnknownNameError) and error.kind == "family":
        return f"{name} is of the family {error.name}, which cannot be run yet. {CHOICES}"
    path = _path_told(name)
    if path:
        return f"{path} {CHOICES}"
    if isinstance(error, UnknownNameError) and error.kind == "model":
        return f"{error} The built-in model is called {BUILT_IN}."
    return f"{name} cannot be loaded. {error}"


def _path_told(name: str) -> str:
    """What is wrong with a path as one of a model; nothing where it may be one, or is a name."""
    try:
        path = Path(name).expanduser()
        if path.is_dir() and not (path / "config.json").is_file():
            return f"The folder {name} has no config.json, so there is no model in it."
        if path.is_file() and path.suffix != ".gguf":
            return f"{name} is a file and not a .gguf file, so there is no model in it."
        if (path.is_absolute() or name.startswith(".") or path.suffix == ".gguf") and (
            not path.exists()
        ):
            return f"There is no file or folder {name} on this machine."
    except (OSError, ValueError, RuntimeError):  # no name a file can have
        return f"{name[:60]!r} is no name that a file can have."
    return ""
