"""The recipe tp_grpo_chain: with failing judgements and older samples a killed run resumes to the last bit, and what
the judge says reaches the policy."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import load_examples, part
from data.chain import check_steps
from trainer import cli
from trainer.compose import load_recipe

pytestmark = pytest.mark.e2e

STEPS = 6
SMALL = [
    "hardware.threads=1", "warm_start.steps=60", "warm_start.source.count=1500", "data.train.count=400",
    "data.eval.0.source.count=200", "data.eval.0.source.max_examples=12", "rollout.prompts_per_step=6",
    "rollout.max_response_tokens=24", f"train.steps={STEPS}", "eval.every_steps=6", "checkpoint.every_steps=2",
    "record.tensorboard=false", "sources.1.judge.error_rate=0.2", "sources.1.judge.failure_rate=0.4",
    "sources.1.malformed_retries=1", "train.max_stale_steps=2", "objective.mismatch.kind=bypass",
]  # fmt: skip


def command(folder: Path) -> list[str]:
    return ["train", "tp_grpo_chain", f"run.dir={folder}", *SMALL]


def metrics(folder: Path) -> list[dict]:
    path = folder / "tp_grpo_chain" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines_written(folder: Path) -> int:
    path = folder / "tp_grpo_chain" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def outcome(folder: Path) -> tuple[bytes, bytes]:
    run = folder / "tp_grpo_chain"
    weights = run / "checkpoints" / f"step-{STEPS:06d}" / "hf" / "model.safetensors"
    return (run / "metrics.jsonl").read_bytes(), weights.read_bytes()


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    """With a judge that errs and fails, whose draws depend on the step, and samples of older weights."""
    assert cli.main(command(tmp_path / "whole")) == 0
    found = [m for m in metrics(tmp_path / "whole") if "thoughts/judged_share" in m]
    assert max(m["rollout/stale_steps"] for m in found) == 2
    assert 0.5 < statistics.mean(m["thoughts/oracle_agreement"] for m in found if "thoughts/oracle_agreement" in m) < 1
    assert statistics.mean(m["thoughts/unjudged/malformed_judgement_share"] for m in found) > 0

    stopped = tmp_path / "stopped"
    process = subprocess.Popen([sys.executable, "-m", "trainer.cli", *command(stopped)], stdout=subprocess.DEVNULL)
    while lines_written(stopped) < 4 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=120)
    assert not (stopped / "tp_grpo_chain" / "summary.json").exists()
    assert cli.main(command(stopped)) == 0
    assert outcome(stopped) == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_right_answers_by_luck_become_rarer_than_under_labels_that_are_noise(tmp_path: Path) -> None:
    """The figure of merit of the process reward, beside the accuracy: right answers with a line that lost the value."""
    source = load_recipe("tp_grpo_chain").data.eval[0].source
    found = part(load_examples(source.kind, source.options, key="data.eval"), source.part, source.eval_percent)
    examples = {e.id: e for e in found}

    def last(name: str, error_rate: float) -> tuple[float, float]:
        overrides = ["record.tensorboard=false", "train.steps=40", "hardware.threads=1", "rollout.prompts_per_step=16",
                     "warm_start.steps=110",  # few, so that right answers by luck are common
                     "eval.every_steps=40", f"sources.1.judge.error_rate={error_rate}", f"name={name}",
                     f"run.dir={tmp_path}"]  # fmt: skip
        assert cli.main(["train", "tp_grpo_chain", *overrides]) == 0
        file = tmp_path / name / "evaluations" / "step-000040-chain.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        right = [row for row in rows if row["verdict"]["score"] == 1]
        lucky = [not all(s.on_track for s in check_steps(examples[r["example_id"]], r["response"])) for r in right]
        return len(right) / len(rows), statistics.mean(lucky)

    accuracy, lucky = last("oracle", 0.0)
    noise_accuracy, noise_lucky = last("noise", 0.5)
    assert accuracy > noise_accuracy
    assert lucky < noise_lucky
