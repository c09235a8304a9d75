"""The CPU recipes of reward models and of conciseness, whole: each figure of merit against its control."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer import cli

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
COMMON = ["record.tensorboard=false", "hardware.threads=1"]


def last_metrics(recipe: str, folder: Path, name: str, *changes: str) -> dict[str, float]:
    assert cli.main(["train", recipe, f"run.dir={folder}", f"name={name}", *COMMON, *changes]) == 0
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])


def test_a_bradley_terry_model_tells_right_from_wrong_and_one_of_swapped_pairs_does_not(tmp_path: Path) -> None:
    learnt = last_metrics("bt_rm_chain", tmp_path, "learnt")
    control = last_metrics("bt_rm_chain", tmp_path, "swapped", "data.train.flip_share=0.5")
    assert learnt["pairs/accuracy"] > 0.58
    assert learnt["pairs/accuracy"] > control["pairs/accuracy"] + 0.06


def test_the_conciseness_model_writes_the_right_level_of_responses_it_has_not_seen(tmp_path: Path) -> None:
    found = last_metrics("conciseness_rm_chain", tmp_path, "levels")
    assert found["levels/unparsable_share"] == 0
    assert found["levels/accuracy"] > 0.9 > found["levels/majority_accuracy"]


def test_paying_for_conciseness_shortens_and_costs_no_accuracy(tmp_path: Path) -> None:
    paid = last_metrics("conciseness_chain", tmp_path, "paid")
    control = last_metrics("conciseness_chain", tmp_path, "unpaid", "sources.1.alpha=0.0")
    assert paid["chain/response/length_mean"] < control["chain/response/length_mean"]
    assert paid["chain/avg@4"] > control["chain/avg@4"] - 0.1
