"""Whole runs through the command line's own functions, small enough for every test run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.e2e.test_resume import SMALL
from tests.helpers import assert_resumed_is_whole
from trainer import cli
from trainer.compose import RECIPES, recipe_index
from trainer.learner import Learner
from trainer.replay import replay

pytestmark = pytest.mark.e2e

ONE_STEP = [*SMALL, "train.steps=1", "eval.every_steps=1", "checkpoint.every_steps=null", "warm_start=null"]
# rewards that differ although an untrained model solves nothing
BY_LENGTH = ["objective.shaping=[{kind: cosine, margin_tokens: 0}]", "objective.zero_variance.drop=false",
             "objective.zero_variance.max_refills=0"]  # fmt: skip


def run(folder: Path, *overrides: str) -> int:
    return cli.main(["train", "quickstart", f"run.dir={folder}", *ONE_STEP, *overrides])


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "quickstart" / "metrics.jsonl").read_text().splitlines()]


def test_lora_trains_the_adapter_and_exports_merged_weights(tmp_path: Path) -> None:
    assert run(tmp_path, "model.lora={rank: 4, alpha: 8}", "objective.kl.coef=0.0") == 0
    assert (tmp_path / "quickstart" / "checkpoints" / "step-000001" / "hf" / "model.safetensors").exists()


def test_bf16_master_weights_train(tmp_path: Path) -> None:
    dtypes = ["model.compute_dtype=bfloat16", "model.master_dtype=bfloat16", "rollout.dtype=bfloat16"]
    assert run(tmp_path, *dtypes, "objective.kl.coef=0.0") == 0


def test_difficulty_band_keeps_only_prompts_in_the_band(tmp_path: Path) -> None:
    band = "data.difficulty={low: 0.0, high: 0.9, probe_samples: 2}"
    assert run(tmp_path, band, "data.train.count=100") == 0


def test_countdown_runs_with_its_own_verifier(tmp_path: Path) -> None:
    countdown = "{kind: countdown, count: 200, part: %s}"
    overrides = [
        f"data.train={countdown % 'train'}", f"data.eval=[{{name: countdown, source: {countdown % 'eval'}}}]",
        "verifier={kind: countdown}", "data.max_prompt_tokens=48", "eval.samples_per_prompt=2",
    ]  # fmt: skip
    assert run(tmp_path, *overrides) == 0
    assert "countdown/avg@2" in metrics(tmp_path)[0]


@pytest.mark.parametrize(
    "objective", ["dr_grpo", "rloo", "reinforce_pp", "dapo", "gspo", "cispo", "ppo", "ppo_shared", "remax"]
)
def test_every_objective_takes_a_finite_step_that_changes_the_policy(tmp_path: Path, objective: str) -> None:
    assert run(tmp_path, f"objective={objective}", *BY_LENGTH) == 0
    step = metrics(tmp_path)[1]
    assert step["policy/grad_norm"] > 0
    assert step["policy/entropy"] > 0
    resolved = (tmp_path / "quickstart" / "resolved.yaml").read_text()
    stated = yaml.safe_load((RECIPES / "objective" / f"{objective}.yaml").read_text())
    assert yaml.safe_load(resolved)["objective"]["loss"] == stated["objective"]["loss"]


def test_shaped_rewards_are_trained_on_and_reported_beside_the_outcome(tmp_path: Path) -> None:
    assert run(tmp_path, *BY_LENGTH) == 0
    step = metrics(tmp_path)[1]
    assert step["reward/shaped_mean"] != step["reward/mean"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.max_stale_steps=2", "objective.mismatch={kind: truncated}", "train.epochs_per_batch=2"],
        ["objective.kl={coef: 1.0, place: reward, controller: {target: 0.01, horizon_trajectories: 50}}"],
        ["objective=ppo", "critic.warmup_steps=1"],
        ["train.overlap=true", "objective.mismatch={kind: truncated}"],
    ],
    ids=["stale", "kl in the reward", "critic", "overlap"],
)
def test_a_resumed_off_policy_run_is_the_uninterrupted_one(tmp_path: Path, overrides: list[str]) -> None:
    """Five steps, and two that are resumed for three more: step 2 is between two renewals of the engine's weights."""
    overrides = [*BY_LENGTH, *overrides, "checkpoint.every_steps=1", "eval.every_steps=2", "objective.kl.coef=0.1"]
    for folder, stops in (("whole", [5]), ("parts", [2, 5])):
        for steps in stops:
            assert run(tmp_path / folder, *overrides, f"train.steps={steps}") == 0
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    assert len(whole) == len(parts) == 6
    assert all("reward/mean" in shared for shared in assert_resumed_is_whole(whole, parts)[1:])
    if "stale" in overrides[3]:
        assert [line["rollout/stale_steps"] for line in whole[1:]] == [0, 1, 2, 0, 1]
    if "overlap" in overrides[3]:
        assert [line["rollout/stale_steps"] for line in whole[1:]] == [0, 1, 1, 1, 1]
    if "ppo" in overrides[3]:
        assert ["policy/loss" in line for line in whole[1:]] == [False, True, True, True, True]
        assert all(line["critic/loss"] > 0 for line in whole[1:])


def test_learning_rate_zero_changes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "optim.lr=0.0", "objective.kl.coef=0.0") == 0
    before, after = metrics(tmp_path)
    assert before["chain/avg@4"] == after["chain/avg@4"]
    assert before["chain/response/length_mean"] == after["chain/response/length_mean"]


def test_a_broken_verifier_stops_the_run_instead_of_paying_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from verifiers.exact import ExactVerifier

    honest = ExactVerifier.verify

    def breaks(self: ExactVerifier, request):
        if request.response.startswith("#"):  # the golds still verify against themselves
            return honest(self, request)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(ExactVerifier, "verify", breaks)
    assert run(tmp_path, "sources=[{kind: rule, truncated: judge}]", "data.eval=[]", "eval.every_steps=null") == 2
    message = capsys.readouterr().err
    assert "could not be judged" in message
    assert "ZeroDivisionError" in message
    rows = (tmp_path / "quickstart" / "trajectories" / "step-000001.jsonl").read_text().splitlines()
    faults = [json.loads(row) for row in rows if json.loads(row)["verdict"]["status"] == "verifier_fault"]
    assert faults
    assert all(fault["reward"] is None for fault in faults)


def test_a_non_finite_step_leaves_a_bundle_that_replays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Learner.update

    def poisoned(self: Learner, batch):
        with torch.no_grad():
            next(p for p in self.model.parameters() if p.ndim == 1).fill_(float("nan"))
        return original(self, batch)

    monkeypatch.setattr(Learner, "update", poisoned)
    overrides = ["objective.zero_variance.drop=false", "objective.zero_variance.max_refills=0"]
    assert run(tmp_path, *overrides) == 2
    assert "not finite" in capsys.readouterr().err
    bundle = tmp_path / "quickstart" / "bundles" / "step-000001"
    monkeypatch.undo()
    lines = replay(bundle)
    assert any("weight" in line and "non-finite" in line for line in lines)
    assert any("reproduced" in line for line in lines)


def test_eval_of_a_checkpoint_repeats_the_runs_own_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) == 0
    capsys.readouterr()
    checkpoint = tmp_path / "quickstart" / "checkpoints" / "step-000001"
    arguments = ["eval", "quickstart", "--checkpoint", str(checkpoint), f"run.dir={tmp_path}/other", *ONE_STEP]
    assert cli.main(arguments) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["chain/avg@4"]["value"] == metrics(tmp_path)[-1]["chain/avg@4"]


@pytest.mark.parametrize("recipe", ["quickstart"])
def test_check_answers_in_under_ten_seconds(recipe: str, tmp_path: Path) -> None:
    assert recipe in dict(recipe_index())
    started = time.monotonic()
    assert cli.main(["check", recipe, f"run.dir={tmp_path}"]) == 0
    assert time.monotonic() - started < 10
    assert not list(tmp_path.iterdir())
