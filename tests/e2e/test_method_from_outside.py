"""The method that docs/adding-a-method.md builds, installed as another package would be, and trained with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_resume import SMALL

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.e2e


def code(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder on the path with the module and the metadata that an installer writes."""
    site = tmp_path / "site"
    (site / "surprise-1.0.dist-info").mkdir(parents=True)
    (site / "surprise.py").write_text(code("python"))
    (site / "surprise-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: surprise\nVersion: 1.0\n")
    group = re.search(r'entry-points."(.*?)"\]\nsurprise = "(.*?)"', code("toml"))
    assert group is not None
    entry = f"[{group[1]}]\nsurprise = {group[2]}\n"
    (site / "surprise-1.0.dist-info" / "entry_points.txt").write_text(entry)
    return site


def train(site: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    recipe = [
        "sources=[{kind: rule}, {kind: surprise, optim: {lr: 1.0e-3}}]", "objective.advantage={kind: reinforce_pp}",
        "objective.zero_variance={drop: false, max_refills: 0}", "objective.kl.coef=0.0",
        "objective.mismatch.kind=none",
        "eval.every_steps=1", "train.minibatches_per_step=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "trainer.cli", "train", "quickstart", f"run.dir={folder}", *SMALL, *recipe]
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    return subprocess.run([*command, *overrides], env=environment, cwd=ROOT, capture_output=True, text=True)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "quickstart" / "metrics.jsonl").read_text().splitlines()]


def test_a_source_of_another_package_is_found_by_its_entry_point_and_trained_with(
    installed: Path, tmp_path: Path
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    done = train(installed, whole, "train.steps=4")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = metrics(whole)
    assert all("surprise/loss" in row for row in rows[1:])
    assert (whole / "quickstart" / "checkpoints" / "step-000004" / "sources" / "surprise" / "value").is_dir()

    # its model and optimizer are in the checkpoint: stopped and resumed, the run is the same to the last bit
    assert train(installed, halves, "train.steps=2").returncode == 0
    assert train(installed, halves, "train.steps=4").returncode == 0
    assert metrics(halves) == rows


def test_without_the_package_the_kind_is_unknown(tmp_path: Path) -> None:
    done = train(tmp_path, tmp_path / "runs")
    assert done.returncode != 0
    assert "Unknown reward source 'surprise'" in done.stderr + done.stdout
