"""The command `assay`: exit codes, messages, speed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import cli, doctor
from trainer.cli import TRACEBACK_VARIABLE, main
from trainer.compose import RECIPES
from verifiers.errors import ConfigError


def assay(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=doctor.ROOT, timeout=120)


def test_recipes_lists_one_line_each_at_once_without_torch() -> None:
    started = time.monotonic()
    done = assay("recipes")
    seconds = time.monotonic() - started
    assert done.returncode == 0
    shipped = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    assert "quickstart" in shipped
    assert [line.split()[0] for line in done.stdout.splitlines()] == shipped
    assert seconds < 3  # 0.4 s on an idle machine
    code = "import sys; from trainer.cli import main; main(['recipes']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=doctor.ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "command", ["train", "check", "eval", "recipes", "doctor", "replay", "verify", "serve-verifier", "bench"]
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"assay {command}" in capsys.readouterr().out


def test_a_users_error_is_a_message_and_exit_code_2_without_a_traceback() -> None:
    done = assay("check", "quickstart", "rollout.temprature=2")
    assert done.returncode == 2
    assert "unknown key 'rollout.temprature': did you mean 'temperature'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_traceback_of_a_users_error_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(ConfigError):
        main(["check", "no-such-recipe"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "quickstart", "a=1", "--checkpoint", "x", "b=2"],
        ["eval", "quickstart", "--checkpoint", "x", "a=1", "b=2"],
        ["eval", "--checkpoint", "x", "quickstart", "a=1", "b=2"],
    ],
)
def test_overrides_may_stand_before_and_after_options(arguments: list[str]) -> None:
    parsed = cli._parse(arguments)
    assert (parsed.recipe, parsed.checkpoint, parsed.overrides) == ("quickstart", "x", ["a=1", "b=2"])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian", "quickstart"],
        ["train"],
        ["train", "quickstart", "--fast"],
        ["recipes", "x"],
        ["eval", "quickstart"],
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: assay" in capsys.readouterr().err


def test_check_prints_the_derived_table_and_what_was_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [f"data.{part}.count=200" for part in ("train", "eval.0.source")]
    small += ["warm_start=null", "rollout.prompts_per_step=4", "train.minibatches_per_step=1", f"run.dir={tmp_path}"]
    assert main(["check", "quickstart", *small]) == 0
    out = capsys.readouterr().out
    assert "trajectories per step" in out
    assert "memory total" in out
    assert "every gold verified" in out
    assert list(tmp_path.iterdir()) == []
