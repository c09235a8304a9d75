"""A verifier that crashes, hangs or eats memory during training: counted, left out of its group, survived; and past
the recipe's limit the run stops and says why."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.test_resume import SMALL
from tests.verifiers.hostile_kinds import PlantedFaults
from trainer import cli

pytestmark = pytest.mark.e2e

FAULTS = ("verifier_fault", "timeout", "memory")
PLANTED = [
    *SMALL, "train.steps=2", "eval.every_steps=2", "checkpoint.every_steps=null", "warm_start=null",
    "verifier={kind: 'tests.verifiers.hostile_kinds:PlantedFaults', timeout_s: 0.4, memory_mb: 256}",
    "sources=[{kind: rule, truncated: judge}]", "rollout.max_response_tokens=6", "eval.samples_per_prompt=1",
    "data.eval.0.source.max_examples=4",
]  # fmt: skip


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_planted_faults_are_counted_leave_their_groups_and_the_run_goes_on(tmp_path: Path) -> None:
    assert cli.main(["train", "quickstart", f"run.dir={tmp_path}", *PLANTED, "alarms.max_fault_share=0.9"]) == 0
    run = tmp_path / "quickstart"
    metrics = {row["step"]: row for row in lines(run / "metrics.jsonl")}
    met: Counter[str] = Counter()
    for step in (1, 2):
        rows = lines(run / "trajectories" / f"step-{step:06d}.jsonl")
        endings = [PlantedFaults.ending(row["response"]) for row in rows]
        met.update(endings)
        for row, ending in zip(rows, endings, strict=True):
            assert row["verdict"]["status"] == ending
            if ending in FAULTS:
                assert row["reward"] is None
                assert row["verdict"]["score"] is None
                assert not row["trained"]
            else:
                assert row["reward"] == float(ending == "correct")
                assert row["verdict"]["parts"] == {"half": 0.5}
        groups = {row["group"] for row in rows if row["trained"]}
        judged = {g: {row["reward"] for row in rows if row["group"] == g} - {None} for g in groups}
        assert all(rewards == {0.0, 1.0} for rewards in judged.values())
        share = sum(ending in FAULTS for ending in endings) / len(endings)
        assert metrics[step]["rollout/unjudged_share"] == pytest.approx(share)
        for fault in FAULTS:
            expected = endings.count(fault) / len(endings)
            assert metrics[step].get(f"verdict/{fault}", 0.0) == pytest.approx(expected)
    assert all(met[fault] > 0 for fault in FAULTS), "the seed plants no such fault; choose another"
    for row in lines(run / "timings.jsonl"):
        assert 0 <= row["verify_wait_s"] <= row["rollout_and_verify_s"]


def test_past_the_limit_the_run_stops_and_names_the_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limited = [*PLANTED, "alarms.max_fault_share=0.05", "data.eval=[]", "eval.every_steps=null"]
    assert cli.main(["train", "quickstart", f"run.dir={tmp_path}", *limited]) == 2
    message = capsys.readouterr().err
    assert "could not be judged" in message
    assert "alarms.max_fault_share=0.05" in message
    assert any(fault in message for fault in FAULTS)
    rows = lines(tmp_path / "quickstart" / "trajectories" / "step-000001.jsonl")
    assert any(row["verdict"]["status"] in FAULTS for row in rows), "what went wrong can be read"
