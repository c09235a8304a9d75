"""Reward models trained by recipe: checked, run, resumed to the last bit, exported, used by a run beside a policy."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.faults import torchrun
from tests.helpers import assert_same_run
from trainer import cli
from trainer.checkpoint import checkpoint_step, list_checkpoints
from trainer.compose import load_any
from trainer.fit import prepare_fit
from verifiers.errors import ConfigError, DataError

pytestmark = pytest.mark.e2e

SMALL_MODEL = ["model.scratch.hidden_size=32", "model.scratch.intermediate_size=48", "model.scratch.num_heads=4",
               "model.scratch.num_kv_heads=4"]  # fmt: skip
SMALL = [
    *SMALL_MODEL, "hardware.threads=1", "data.train.count=80", "data.eval.0.source.count=80", "train.steps=4",
    "train.examples_per_step=8", "eval.every_steps=2", "checkpoint.every_steps=2", "record.tensorboard=false",
]  # fmt: skip
RECIPES = ["bt_rm_chain", "conciseness_rm_chain"]


def run(recipe: str, folder: Path, *overrides: str) -> Path:
    assert cli.main(["train", recipe, f"run.dir={folder}", *SMALL, *overrides]) == 0
    return folder / recipe


@pytest.fixture(scope="module", params=RECIPES)
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(request.param, tmp_path_factory.mktemp("fit"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trained")
    return {recipe: run(recipe, folder) / "checkpoints" / "step-000004" for recipe in RECIPES}


def last(run_folder: Path) -> Path:
    return run_folder / "checkpoints" / "step-000004"


def test_the_run_folder_is_like_any_other(uninterrupted: Path) -> None:
    metrics = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [0, 1, 2, 3, 4]
    assert all("train/loss" in m for m in metrics[1:])
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["steps"] == 4
    (name,) = [n for n in summary["evaluations"] if n.endswith("/accuracy")]
    rows = list((uninterrupted / "evaluations").glob("step-000004-*.jsonl"))
    assert len(rows) == 1
    assert 0 <= summary["evaluations"][name]["after"]["value"] <= 1


@pytest.mark.invariance
@pytest.mark.parametrize("cut", ["last checkpoint", "crash after a record"])
def test_a_resumed_run_is_the_uninterrupted_one(uninterrupted: Path, tmp_path: Path, cut: str) -> None:
    folder = tmp_path / uninterrupted.name
    shutil.copytree(uninterrupted, folder)
    shutil.rmtree(last(folder))
    (folder / "summary.json").unlink()
    if cut == "crash after a record":
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_text("".join(lines[:-1]) + lines[-1][:9])
    resumed = run(uninterrupted.name, tmp_path)
    assert (resumed / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    assert (last(resumed) / "hf" / "model.safetensors").read_bytes() == (
        last(uninterrupted) / "hf" / "model.safetensors"
    ).read_bytes()


def test_a_finished_run_is_not_repeated_and_another_one_is_refused(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / uninterrupted.name
    shutil.copytree(uninterrupted, folder)
    before = (folder / "metrics.jsonl").read_bytes()
    run(uninterrupted.name, tmp_path)
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert cli.main(["train", uninterrupted.name, f"run.dir={tmp_path}", *SMALL, "optim.lr=1.0"]) == 2


def test_plain_transformers_loads_what_was_trained(trained: dict[str, Path]) -> None:
    folder = trained["bt_rm_chain"] / "hf"
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("3+4=")["input_ids"]])
    assert AutoModelForSequenceClassification.from_pretrained(folder)(ids).logits.shape == (1, 1)
    assert AutoModelForCausalLM.from_pretrained(trained["conciseness_rm_chain"] / "hf")(ids).logits.ndim == 3


def test_the_bench_takes_a_trained_model(trained: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"id": "a", "problem": "3+4=", "chosen": "7\n#7", "rejected": ["8\n#8", "1\n#1"]}]
    file = tmp_path / "rewardmath.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "report"
    checkpoint = str(trained["bt_rm_chain"])
    assert cli.main(["bench", "rm", "--rewardmath", str(file), "--model", checkpoint, "--out", str(out)]) == 0
    assert json.loads((out / "report.json").read_text())["scorers"]["bt_rm"]["rewardmath"]["problems"] == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_names_examples(tmp_path: Path, capsys) -> None:
    wild = ["optim.lr=1e18", "optim.warmup_steps=0", "optim.schedule=constant"]
    assert cli.main(["train", "bt_rm_chain", f"run.dir={tmp_path}", *SMALL, *wild]) == 2
    message = capsys.readouterr().err
    assert "is not finite" in message
    assert "examples chain-" in message


# ---- several processes -------------------------------------------


def two_ranks(recipe: str, folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [*torchrun("--standalone", "--nproc-per-node", "2"), "-m", "trainer.train", f"recipe={recipe}",
               f"run.dir={folder}", *SMALL, *overrides]  # fmt: skip
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)


def continued(start: Path, folder: Path) -> Path:
    """A copy of a run of one process, which goes on after step 2."""
    shutil.copytree(start, folder / start.name)
    shutil.rmtree(last(folder / start.name))
    return folder / start.name


@pytest.mark.invariance
@pytest.mark.parametrize(
    "uninterrupted",
    ["bt_rm_chain", *(pytest.param(r, marks=pytest.mark.slow) for r in ("conciseness_rm_chain", "verify_rm_chain"))],
    indirect=True,
)
def test_two_ranks_compute_what_one_process_does_and_each_goes_on_with_what_the_other_saved(
    uninterrupted: Path, tmp_path: Path
) -> None:
    recipe, longer = uninterrupted.name, ["train.steps=6", "run.resume=must", "checkpoint.keep_last=2"]
    one = continued(uninterrupted, tmp_path / "one")
    run(recipe, tmp_path / "one", *longer)
    two = continued(uninterrupted, tmp_path / "two")
    job = two_ranks(recipe, tmp_path / "two", *longer)
    said = job.communicate(timeout=600)[1]
    assert job.returncode == 0, said[-3000:]
    assert sorted(p.name for p in (two / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    assert {p.name for p in (last(two) / "hf").iterdir()} == {p.name for p in (last(one) / "hf").iterdir()}
    assert_same_run(one, two, tolerance=1e-6)

    shutil.rmtree(two / "checkpoints" / "step-000006")
    assert (last(two) / "sharded").is_dir()
    run(recipe, tmp_path / "two", *longer)
    assert not (two / "checkpoints" / "step-000006" / "sharded").exists()
    assert_same_run(one, two, tolerance=1e-6)


@pytest.mark.slow
def test_two_ranks_stop_on_sigterm_with_a_checkpoint_that_one_process_goes_on_with(tmp_path: Path) -> None:
    recipe, rare = "bt_rm_chain", ["checkpoint.every_steps=null", "optim.schedule=constant"]
    job = two_ranks(recipe, tmp_path, *rare, "train.steps=100000")
    records = tmp_path / recipe / "metrics.jsonl"
    while job.poll() is None and not (records.exists() and len(records.read_text().splitlines()) > 2):
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    said = job.communicate(timeout=600)[1]
    assert "stopped by SIGTERM after step" in said
    (saved,) = list_checkpoints(records.parent / "checkpoints")
    steps = checkpoint_step(saved) + 2
    run(recipe, tmp_path, *rare, f"train.steps={steps}", "run.resume=must")
    assert [json.loads(line)["step"] for line in records.read_text().splitlines()] == list(range(steps + 1))


# ---- beside a policy ---------------------------------------------

DATA = "{kind: chain, count: 60, part: all, min_operands: 4, max_operands: 4, modulus: 2, direct_share: 0.5}"
POLICY = [
    *SMALL_MODEL, "hardware.threads=1", f"data.train={DATA}", "data.eval=[]", "eval.every_steps=null",
    f"warm_start.source={DATA}", "warm_start.steps=30", "warm_start.examples_per_step=12",
    "rollout.prompts_per_step=6", "rollout.samples_per_prompt=4", "rollout.max_response_tokens=24", "train.steps=2",
    "checkpoint.every_steps=1", "record.tensorboard=false",
]  # fmt: skip


def policy_run(recipe: str, folder: Path, *overrides: str) -> Path:
    assert cli.main(["train", recipe, f"run.dir={folder}", *POLICY, *overrides]) == 0
    return folder / recipe


@pytest.mark.parametrize("kind", RECIPES)
def test_a_policy_is_trained_with_the_model_and_resumes_exactly(
    trained: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    path = trained[kind]
    source = f"{{kind: bt_rm, path: {path}, weight: 0.5}}"
    recipe, name = "quickstart", "bt_rm/score_mean"
    if kind == "conciseness_rm_chain":
        source, recipe, name = f"{{kind: conciseness, path: {path}, alpha: 2.0}}", "conciseness_chain", "conciseness/s"
    sources = f"sources=[{{kind: rule}}, {source}]"
    whole = policy_run(recipe, tmp_path / "whole", sources)
    metrics = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert name in metrics[-1]
    (tmp_path / "cut").mkdir()
    cut = tmp_path / "cut" / recipe
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-000002")
    resumed = policy_run(recipe, tmp_path / "cut", sources)
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


# ---- before compute ----------------------------------------------


def prepared(recipe: str, tmp_path: Path, *overrides: str):
    return prepare_fit(load_any(recipe, [*SMALL, f"run.dir={tmp_path}", *overrides]))


@pytest.mark.parametrize("recipe", RECIPES)
def test_check_says_what_will_be_trained_and_leaves_nothing(recipe: str, tmp_path: Path, capsys) -> None:
    assert cli.main(["check", recipe, f"run.dir={tmp_path}", *SMALL]) == 0
    assert "can be run" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_wrong_form_of_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained on pairs"):
        prepared("bt_rm_chain", tmp_path, "data.train={kind: chain_levels, count: 50}")


def test_too_long_examples_stop_or_are_left_out_and_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.max_tokens=22"):
        prepared("bt_rm_chain", tmp_path, "data.max_tokens=22")
    mixed = ["data.max_tokens=23", "data.on_too_long=skip", "data.train.min_operands=3", "data.train.max_operands=5"]
    found = prepared("bt_rm_chain", tmp_path, *mixed)
    assert "too long" in found.lines[0]
    assert 0 < len(found.train.examples) < 120


def test_questions_that_train_and_evaluation_share_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ask the same as a training example"):
        prepared("bt_rm_chain", tmp_path, "data.eval.0.source.part=train")


def test_a_missing_label_stops_before_compute_and_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "levels.jsonl"
    rows = [{"prompt": "1+1=", "response": "#2", "label": 1.0}, {"prompt": "2+1=", "response": "#3", "label": None}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"levels\.jsonl, line 2"):
        prepared("conciseness_rm_chain", tmp_path, f"data.train={{kind: labelled, path: {file}}}")


@pytest.mark.parametrize(
    ("override", "message"),
    [("reward_model.marginn=1.0", "did you mean 'margin'"), ("reward_model.kind=bt", "Unknown reward model"),
     ("train.epochs=1.0", "exactly one of train.steps and train.epochs"), ("data.max_tokens=9999", "max_positions"),
     ("rollout.temperature=0.5", "unknown key 'rollout.temperature'"), ("data.train.kind=chain", "labelled data")],
)  # fmt: skip
def test_what_cannot_be_run_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_any("bt_rm_chain", [override])
    assert message in str(caught.value)


def test_epochs_are_counted_in_steps() -> None:
    train = load_any("bt_rm_chain", ["train.steps=null", "train.epochs=1.5"]).train
    assert train.total_steps(100) == 5  # 1.5 * 100 / 32


def test_a_reward_models_recipe_is_not_evaluated_as_a_policys(capsys) -> None:
    assert cli.main(["eval", "bt_rm_chain", "--checkpoint", "x"]) == 2
    assert "trains a reward model" in capsys.readouterr().err
