"""The command line: what it prints, and that errors are messages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import workbench as wb
from tests import tiny
from workbench import cli
from workbench.core.errors import (
    FormatError,
    MissingDependencyError,
    OptionError,
    UnknownNameError,
)
from workbench.models.family import FAMILIES
from workbench.models.overview import families
from workbench.models.verification import behaviour
from workbench.models.verify import CHECKS
from workbench.serve import app_file, serve_app

PROMPT = "When Mary and John went to the store, John gave a drink to"


def shell(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command line as a user runs it."""
    environment = {**os.environ, "COLUMNS": "160", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "workbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_without_arguments_it_lists_its_commands() -> None:
    shown = CliRunner().invoke(cli.app, [])
    assert all(
        name in shown.output
        for name in ("app", "doctor", "models", "pull", "run", "generate", "verify")
    )


def test_pull_without_a_name_lists_the_assets_and_their_licences() -> None:
    shown = shell("pull")
    assert shown.returncode == 0
    assert "smollm2-135m-instruct" in shown.stdout
    assert "Apache-2.0" in shown.stdout


def test_an_unknown_asset_is_a_message_and_exit_code_1() -> None:
    done = shell("pull", "smolm2")
    assert done.returncode == 1
    assert "UnknownNameError: No asset named 'smolm2'. Nearest of" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


@pytest.mark.asset
def test_run_shows_the_next_tokens_and_what_a_plan_did(tmp_path: Path) -> None:
    cut = wb.Intervention("blocks.23.attn.hook_z", wb.ops.zero(), heads=[3])
    folder = wb.Plan((cut,)).save(tmp_path / "cut")
    done = shell("run", PROMPT, "--plan", str(folder), "--top", "3")
    assert done.returncode == 0, done.stderr
    assert "' Mary'" in done.stdout
    assert "zero at blocks.23.attn.hook_z (head 3): acted 1x on 14 tokens" in done.stdout


@pytest.mark.asset
def test_generate_prints_the_prompt_and_its_continuation() -> None:
    done = shell("generate", "My day was", "-n", "8")
    model = wb.load("smollm2-135m-instruct")
    assert done.returncode == 0, done.stderr
    expected = wb.generate(model, "My day was", max_new_tokens=8).text
    assert done.stdout == f"My day was{expected}\n"


@pytest.mark.asset
def test_bad_input_is_a_message_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{")
    for arguments, said in (
        (("run", ""), "PromptError: Prompt 0 is empty"),
        (("generate", "x", "--plan", str(tmp_path)), "is not JSON"),
        (("generate", "x", "--temperature", "-1"), "temperature must be 0 or more"),
        (("run", "x", "--model", "gpt5"), "UnknownNameError"),
    ):
        done = shell(*arguments)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.asset
def test_the_doctor_compares_with_transformers() -> None:
    done = shell("doctor")
    assert done.returncode == 0, done.stderr
    for said in ("versions", "torch threads", "assets", "largest difference of logits"):
        assert said in done.stdout
    assert "equal within 1e-04" in done.stdout


def test_the_app_is_found_and_a_bad_port_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert app_file().name == "main.py"
    with pytest.raises(OptionError, match=r"port must be 1…65535, got 0"):
        serve_app(port=0)
    monkeypatch.setattr("workbench.serve.HERE", tmp_path / "workbench")
    with pytest.raises(MissingDependencyError, match="has no app"):
        app_file()


def test_an_unknown_model_is_named_with_its_nearest() -> None:
    with pytest.raises(UnknownNameError, match="smollm2-135m-instruct"):
        wb.load("smollm2-135m")


def test_text_for_a_terminal_keeps_letters_and_loses_commands() -> None:
    assert cli.plain("日本 🙂\u200d👨 a\u00adb\n\tc") == "日本 🙂\u200d👨 a\u00adb\n\tc"
    assert cli.plain("x\x1b]0;owned\x07\u202ey\x9bz") == "x\ufffd]0;owned\ufffd\ufffdy\ufffdz"


@pytest.mark.parametrize("name", ["a" * 300, "~nobody-of-that-name/x", "", "no\x1b[2Jsuch"])
def test_a_strange_name_is_an_unknown_model(name: str) -> None:
    done = shell("run", "hi", "-m", name)
    assert done.returncode == 1
    assert "UnknownNameError: No model named" in done.stderr
    assert "\x1b[2J" not in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_to_show_is_refused() -> None:
    for top in ("0", "-1"):
        assert CliRunner().invoke(cli.app, ["run", "hi", "--top", top]).exit_code == 2


def test_a_server_that_did_not_start_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.serve.serve_app", lambda **_: 3)
    assert CliRunner().invoke(cli.app, ["app"]).exit_code == 3


def test_only_what_can_be_loaded_is_suggested() -> None:
    with pytest.raises(UnknownNameError) as caught:
        wb.load("nope")
    assert sorted(caught.value.known) == ["all-minilm-l6-v2", "smollm2-135m-instruct"]


def test_a_missing_plan_is_said_once() -> None:
    with pytest.raises(FormatError, match=r"^/nope does not exist\.$"):
        wb.Plan.load("/nope")
    with pytest.raises(FormatError, match="cannot be read"):
        wb.Plan.load("a" * 300)


def test_verify_shows_every_check_and_ends_with_its_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    tiny.hf("llama").save_pretrained(tmp_path / "model")
    done = CliRunner().invoke(cli.app, ["verify", str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert all(name.split()[0] in done.output for name in CHECKS)
    monkeypatch.setattr(behaviour, "SLOPE", 0.0)  # no finite difference is exact
    assert CliRunner().invoke(cli.app, ["verify", str(tmp_path / "model")]).exit_code == 1


def test_models_shows_every_family_and_the_document_is_this_table() -> None:
    shown = CliRunner().invoke(cli.app, ["models"])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in FAMILIES)
    told = CliRunner().invoke(cli.app, ["models", "--markdown"])
    document = Path(__file__).parent.parent / "docs" / "families.md"
    rows = document.read_text().splitlines()
    assert rows == told.output.splitlines(), "write it anew: workbench models --markdown"


def test_a_family_is_told_by_what_it_has() -> None:
    known = {one.name: one for one in families()}
    assert known["gpt2"].architecture == "GPT2LMHeadModel"
    assert {one.kind for one in known.values()} <= {"decoder", "encoder", "encoder–decoder"}
    assert "hook_pos_embed" in known["gpt2"].sites
    assert "hook_pos_embed" not in known["llama"].sites
    assert known["llama"].about.startswith("Llama 1-3")
