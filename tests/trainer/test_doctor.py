"""`assay doctor`."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from trainer import doctor

ROOT = doctor.ROOT


def run_doctor(*search_path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, with these folders before ours."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*search_path, ROOT])), "COLUMNS": "400"}
    code = "import sys; from trainer.cli import main; sys.exit(main(['doctor']))"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=cwd, timeout=120
    )


def make_package(folder: Path, name: str, distribution: str) -> Path:
    """A fake installed distribution that provides the import package `name`, with an `errors` module as ours has."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    (folder / name / "errors.py").touch()
    info = folder / f"{distribution}-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 9.9\n")
    (info / "top_level.txt").write_text(f"{name}\n")
    return folder


def test_here_every_package_is_ours_and_the_report_goes_through_every_topic() -> None:
    console = Console(file=io.StringIO(), record=True, width=300)
    doctor.run(console)
    text = console.export_text()
    for topic in (*doctor.TOP_LEVEL, "python", "cpu", "memory", "disk", "vllm", "verl", "flash-attn"):
        assert topic in text
    assert "shadowed" not in text


def test_a_package_that_hides_ours_is_a_problem_with_its_owner_and_the_remedy(tmp_path: Path) -> None:
    site = make_package(tmp_path / "site", "verifiers", "verifiers-of-others")
    done = run_doctor(site, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if " verifiers " in line]
    assert line.startswith("problem")
    assert f"finds {site / 'verifiers'}" in line
    assert "pip uninstall verifiers-of-others" in line


def test_a_folder_that_hides_ours_is_a_problem_without_an_owner(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").touch()
    done = run_doctor(tmp_path, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Start from another folder, or mend PYTHONPATH" in done.stdout


def test_another_distribution_behind_ours_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(make_package(tmp_path, "prm", "prm-of-others"))])
    (finding,) = [f for f in doctor.packages_of_ours() if f.topic == "prm"]
    assert finding.level == "note"
    assert "ours wins, but prm-of-others" in finding.text


def test_other_commands_say_that_our_packages_are_hidden(tmp_path: Path) -> None:
    site = make_package(tmp_path, "verifiers", "verifiers-of-others")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    code = "import sys; from trainer.cli import main; sys.exit(main(['recipes']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert "run `assay doctor`" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_constraints_are_read_as_tested_versions() -> None:
    tested = doctor.tested_versions()
    assert tested["torch"].count(".") == 2
    assert "+" not in tested["torch"]


def test_a_version_outside_its_range_is_a_problem_and_an_untested_one_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    from packaging.requirements import Requirement

    needed = [
        Requirement("rich>999"),
        Requirement("pytest"),
        Requirement("no-such-package>=1"),
        Requirement("hypothesis"),
    ]
    monkeypatch.setattr(doctor, "required", lambda: needed)
    monkeypatch.setattr(doctor, "tested_versions", lambda: {"pytest": "0.1"})
    levels = {f.topic: (f.level, f.text) for f in doctor.versions()}
    assert levels["rich"][0] == "problem"
    assert "pip install 'rich>999'" in levels["rich"][1]
    assert levels["no-such-package"][0] == "problem"
    assert levels["pytest"][0] == "note"
    assert "tested with 0.1" in levels["pytest"][1]
    assert levels["hypothesis"][0] == "ok"
