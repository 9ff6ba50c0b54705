"""What cannot be loaded from the model's menu says what is wrong with it, and what to do."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.jobs._loading import CHOICES, NO_TEXT, load
from tests.families import EXAMPLES
from tests.two_stacks import TWO_STACKS
from workbench.core.errors import FormatError, WeightsError


def message(name: str) -> str:
    with pytest.raises(FormatError) as caught:
        load(name)
    return str(caught.value)


def test_the_built_in_model_is_always_there():
    assert load("induction").name == "induction"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/nonexistent/x", "There is no file or folder /nonexistent/x on this machine."),
        ("./nonexistent", "There is no file or folder ./nonexistent on this machine."),
        ("~/nonexistent/x.gguf", "There is no file or folder ~/nonexistent/x.gguf on this machine"),
        ("x" * 5000, f"{'x' * 60!r} is no name that a file can have."),
    ],
    ids=["absolute", "relative", "home", "too long"],
)
def test_a_path_to_nothing(name, told):
    assert message(name).startswith(told)
    assert message(name).endswith(CHOICES)


def test_a_file_that_is_no_model():
    told = f"{__file__} is a file and not a .gguf file, so there is no model in it. {CHOICES}"
    assert message(__file__) == told


def test_a_folder_that_holds_no_model(tmp_path: Path):
    told = f"The folder {tmp_path} has no config.json, so there is no model in it. {CHOICES}"
    assert message(str(tmp_path)) == told


def test_a_model_of_a_family_that_cannot_be_run(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonesuch"}))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    told = message(str(tmp_path))
    assert told == f"{tmp_path} is of the family nonesuch, which cannot be run yet. {CHOICES}"


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_model_that_writes_no_next_tokens(family, tmp_path: Path):
    examples = EXAMPLES if family in EXAMPLES else TWO_STACKS
    examples[family].build().save_pretrained(tmp_path)
    assert message(str(tmp_path)) == f"{tmp_path} {NO_TEXT} {CHOICES}"


def test_a_name_that_is_none():
    told = message("no-such-model")
    assert "No model named 'no-such-model'" in told
    assert "smollm2-135m-instruct" in told
    assert told.endswith("The built-in model is called induction.")


@pytest.mark.parametrize("error", [WeightsError("It is cut short."), OSError("Permission denied")])
def test_what_the_library_or_the_machine_says_is_said_of_which_model(monkeypatch, error):
    def refuse(_: str) -> None:
        raise error

    monkeypatch.setattr("workbench.load", refuse)
    assert message("owner/name") == f"owner/name cannot be loaded. {error}"
