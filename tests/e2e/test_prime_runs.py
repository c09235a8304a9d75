"""The recipe prime_chain: it runs, a killed run resumes to the last bit, and its PRM learns what its control cannot."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import cli

pytestmark = pytest.mark.e2e

STEPS = 6
SMALL = [
    "hardware.threads=1", "warm_start.steps=40", "warm_start.source.count=800", "data.train.count=400",
    "data.eval.0.source.count=200", "data.eval.0.source.max_examples=12", "rollout.prompts_per_step=6",
    "rollout.max_response_tokens=24", "rollout.keep.pass_rate.low=0.0", "rollout.keep.pass_rate.high=1.0",
    "objective.zero_variance.drop=false", f"train.steps={STEPS}", "eval.every_steps=6", "checkpoint.every_steps=2",
    "record.tensorboard=false",
]  # fmt: skip


def command(folder: Path) -> list[str]:
    return ["train", "prime_chain", f"run.dir={folder}", *SMALL]


def metrics(folder: Path) -> list[dict]:
    path = folder / "prime_chain" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines_written(folder: Path) -> int:
    path = folder / "prime_chain" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def outcome(folder: Path) -> tuple[bytes, ...]:
    run = folder / "prime_chain"
    last = run / "checkpoints" / f"step-{STEPS:06d}"
    weights = [
        last / name / "model.safetensors" for name in ("hf", "sources/implicit/prm", "sources/implicit/reference")
    ]
    return (run / "metrics.jsonl").read_bytes(), *(path.read_bytes() for path in weights)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_resumes_to_the_run_that_was_not_stopped(tmp_path: Path, how: signal.Signals) -> None:
    """PRM, its optimizer, the reference and the prompts that were put back are all in the checkpoint."""
    assert cli.main(command(tmp_path / "whole")) == 0
    stopped = tmp_path / "stopped"
    process = subprocess.Popen([sys.executable, "-m", "trainer.cli", *command(stopped)], stdout=subprocess.DEVNULL)
    while lines_written(stopped) < 4 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(how)
    process.wait(timeout=120)
    assert not (stopped / "prime_chain" / "summary.json").exists()
    assert cli.main(command(stopped)) == 0
    assert outcome(stopped) == outcome(tmp_path / "whole")
    found = metrics(stopped)[-1]
    assert found["groups/put_back"] == 6
    assert found["implicit/ce"] != pytest.approx(0.6931, abs=1e-3)
    assert metrics(stopped)[1]["implicit/ce"] == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.slow
def test_the_prm_learns_from_outcomes_and_not_from_permuted_ones(tmp_path: Path) -> None:
    """Its figures of merit, on responses it has not seen: AUC of the outcomes, and of the lines beside the control."""

    def late_means(name: str, *changes: str) -> dict[str, float]:
        overrides = ["record.tensorboard=false", "train.steps=24", "hardware.threads=1", "data.eval=[]", "optim.lr=0",
                     "eval.every_steps=null", f"name={name}", f"run.dir={tmp_path}"]  # fmt: skip
        assert cli.main(["train", "prime_chain", *overrides, *changes]) == 0
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()][-8:]
        keys = ("implicit/auc", "implicit/line_auc_to_error")
        return {key: statistics.mean(line[key] for line in lines if key in line) for key in keys}

    learnt, control = late_means("learnt"), late_means("permuted", "train.shuffle_rewards=true")
    assert learnt["implicit/auc"] > 0.6
    assert learnt["implicit/line_auc_to_error"] > control["implicit/line_auc_to_error"] + 0.05
