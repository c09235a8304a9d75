"""The recipe `code_rlvr`: the policy writes programs, the real sandbox runs them, and what that pays is learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer import cli
from verifiers.code.verifier import CodeVerifier
from verifiers.errors import VerifierError

pytestmark = pytest.mark.e2e

TINY = [
    "hardware.threads=1", "warm_start.steps=4", "warm_start.source.count=200", "data.train.count=100",
    "data.eval.0.source.max_examples=6", "rollout.prompts_per_step=4", "rollout.samples_per_prompt=4",
    "train.steps=2", "eval.every_steps=null", "eval.samples_per_prompt=2", "record.tensorboard=false",
    "objective.zero_variance.drop=false", "sources=[{kind: rule, truncated: judge}]",
]  # fmt: skip
SHORT = ["train.steps=25", "data.eval.0.source.max_examples=100", "eval.every_steps=null", "record.tensorboard=false"]


@pytest.fixture(scope="module", autouse=True)
def sandbox_works() -> None:
    try:
        CodeVerifier(CodeVerifier.Options(packages=[]), workers=1).close()
    except VerifierError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


def train(folder: Path, *overrides: str) -> list[dict]:
    """The lines of metrics.jsonl."""
    assert cli.main(["train", "code_rlvr", f"run.dir={folder}", *overrides]) == 0
    return [json.loads(line) for line in (folder / "code_rlvr" / "metrics.jsonl").read_text().splitlines()]


def test_every_program_of_a_short_run_is_judged_by_running_it(tmp_path: Path) -> None:
    first, *steps = train(tmp_path, *TINY)
    assert 0.0 <= first["small_programs/avg@2"] <= 1.0
    assert [step["step"] for step in steps] == [1, 2]
    folder = tmp_path / "code_rlvr" / "trajectories"
    rows = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    assert len(rows) == 2 * 4 * 4
    assert all(row["reward"] == row["verdict"]["score"] for row in rows)
    ran = [row["verdict"] for row in rows if row["verdict"]["status"] != "no_answer"]
    assert len(ran) > len(rows) / 2
    assert {verdict["status"] for verdict in ran} <= {"error_in_program", "wrong", "correct", "timeout"}
    assert all(" of 8 tests passed" in verdict["evidence"] for verdict in ran)


@pytest.mark.slow
def test_grpo_raises_the_share_of_held_out_tasks_whose_programs_pass(tmp_path: Path) -> None:
    lines = train(tmp_path, *SHORT)
    before, after = lines[0], lines[-1]
    assert after["step"] == 25
    assert after["small_programs/avg@4"] > before["small_programs/avg@4"] + 0.15
    assert after["small_programs/avg@4/low"] > before["small_programs/avg@4/high"]
