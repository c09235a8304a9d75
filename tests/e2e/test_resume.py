"""A run that is killed and resumed is, to the last bit, the run that was never killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.invariance]

STEPS = 12
SMALL = [
    "hardware.threads=1", "warm_start.steps=8", "warm_start.source.count=400", "data.train.count=400",
    "data.eval.0.source.count=200", "data.eval.0.source.max_examples=12", "rollout.prompts_per_step=6",
    "rollout.samples_per_prompt=4", "rollout.max_response_tokens=20", "objective.zero_variance.max_refills=1",
    f"train.steps={STEPS}", "train.minibatches_per_step=2", "eval.every_steps=5", "checkpoint.every_steps=2",
    "record.tensorboard=false", "objective.kl.coef=0.01", "objective.mismatch.kind=truncated",
]  # fmt: skip


def command(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "trainer.cli", "train", "quickstart", f"run.dir={folder}", *SMALL, *overrides]


def metric_lines(folder: Path) -> int:
    path = folder / "quickstart" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stop_after(folder: Path, lines: int, how: signal.Signals) -> int:
    """Start or resume the run and send it a signal once its metrics file has grown to `lines` lines."""
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while metric_lines(folder) < lines and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(how)
    return process.wait(timeout=60)


def outcome(folder: Path) -> tuple[bytes, bytes, bytes]:
    run = folder / "quickstart"
    weights = run / "checkpoints" / f"step-{STEPS:06d}" / "hf" / "model.safetensors"
    summary = json.loads((run / "summary.json").read_text())
    timeless = {k: v for k, v in summary.items() if k not in ("wall_seconds", "peak_memory_mb")}
    return (run / "metrics.jsonl").read_bytes(), weights.read_bytes(), json.dumps(timeless, sort_keys=True).encode()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(command(folder), check=True, capture_output=True, timeout=300)
    return folder


def test_killed_five_times_at_random_steps_equals_the_uninterrupted_run(uninterrupted: Path, tmp_path: Path) -> None:
    draw = random.Random(20261122)
    kills = sorted(draw.sample(range(1, STEPS + 1), 5))
    for lines in kills:
        assert stop_after(tmp_path, lines, signal.SIGKILL) == -signal.SIGKILL
    subprocess.run(command(tmp_path), check=True, capture_output=True, timeout=300)
    assert outcome(tmp_path) == outcome(uninterrupted)


def test_sigterm_saves_and_the_resumed_run_is_the_same(uninterrupted: Path, tmp_path: Path) -> None:
    assert stop_after(tmp_path, 4, signal.SIGTERM) == 128 + signal.SIGTERM
    assert not (tmp_path / "quickstart" / "summary.json").exists()
    subprocess.run(command(tmp_path), check=True, capture_output=True, timeout=300)
    assert outcome(tmp_path) == outcome(uninterrupted)


def test_the_run_folder_keeps_its_contract(uninterrupted: Path) -> None:
    run = uninterrupted / "quickstart"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert {"chain/avg@4", "chain/pass@4", "chain/maj@4"} <= lines[0].keys()
    assert {"reward/mean", "policy/loss", "policy/grad_norm", "policy/kl_reference"} <= lines[1].keys()
    assert not [key for line in lines for key in line if "second" in key or key.endswith("_s")]
    rows = [json.loads(line) for line in (run / "trajectories" / "step-000001.jsonl").read_text().splitlines()]
    assert len(rows) >= 24
    assert {"verdict", "reward", "response_ids", "logp_sampled", "advantage"} <= rows[0].keys()
    summary = json.loads((run / "summary.json").read_text())
    assert summary.keys() == {
        "recipe", "seed", "steps", "wall_seconds", "tokens_generated", "tokens_trained", "peak_memory_mb",
        "evaluations",
    }  # fmt: skip
    for entry in summary["evaluations"].values():
        assert entry["before"].keys() == entry["after"].keys() == {"value", "low", "high"}
    assert {"derived:", "environment:"} <= set((run / "resolved.yaml").read_text().split())


def test_every_checkpoint_loads_with_transformers(uninterrupted: Path) -> None:
    checkpoints = sorted((uninterrupted / "quickstart" / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    model = AutoModelForCausalLM.from_pretrained(checkpoints[-1] / "hf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[-1] / "hf")
    ids = tokenizer("1+2*3-4=", return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert out.shape[1] > ids.shape[1]


def test_a_run_with_other_settings_is_not_mixed_into_the_folder(uninterrupted: Path) -> None:
    done = subprocess.run(
        command(uninterrupted, "optim.lr=0.5", "train.steps=14"), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "optim.lr" in done.stderr
    assert "name=" in done.stderr
