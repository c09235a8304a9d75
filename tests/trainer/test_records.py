"""The run folder: what is written, what is refused, what survives a crash."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import make_config
from trainer.compose import load_recipe, load_resolved, to_yaml
from trainer.config import Config
from trainer.records import RunFolder, check_writable, git_state, to_json, write_atomically
from verifiers.errors import RunError


@pytest.fixture
def config() -> Config:
    return load_recipe("quickstart")


@pytest.fixture
def folder(tmp_path: Path, config: Config) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.open(config, to_yaml(config), {"trajectories_per_step": 256})
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_resolved_yaml_holds_settings_derived_numbers_and_environment(folder: RunFolder, config: Config) -> None:
    path = folder.path / "resolved.yaml"
    assert load_resolved(path) == config
    assert load_recipe(str(path)) == config
    text = path.read_text()
    assert "trajectories_per_step: 256" in text
    assert "torch:" in text
    assert "commit:" in text or "code: null" in text


def test_metrics_are_one_sorted_line_a_step_without_any_time(folder: RunFolder) -> None:
    folder.append_metrics(1, {"reward/mean": 0.5, "a": None})
    folder.append_metrics(2, {"reward/mean": 0.25})
    text = (folder.path / "metrics.jsonl").read_text()
    assert text == '{"a": null, "reward/mean": 0.5, "step": 1}\n{"reward/mean": 0.25, "step": 2}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_its_key(folder: RunFolder, value: float) -> None:
    with pytest.raises(RunError, match=r"'policy/kl' is not finite") as error:
        folder.append_metrics(3, {"reward/mean": 0.5, "policy/kl": value})
    assert "metrics.jsonl, step 3" in str(error.value)
    assert not (folder.path / "metrics.jsonl").exists()
    with pytest.raises(RunError, match=r"'advantage\[1\]' is not finite") as error:
        folder.write_trajectories(3, [{"reward": 1.0}, {"advantage": [0.0, value]}])
    assert "row 1" in str(error.value)


def test_a_resumed_run_writes_the_same_bytes_as_an_uninterrupted_one(tmp_path: Path, config: Config) -> None:
    def run(name: str, crash_after: int | None) -> bytes:
        folder = RunFolder(tmp_path / name)
        folder.open(config, to_yaml(config), {})
        for step in range(1, 6):
            folder.append_metrics(step, {"loss": step / 3})
            folder.write_trajectories(step, [{"response": f"r{step}"}])
            if step == crash_after:
                with (folder.path / "metrics.jsonl").open("a") as file:
                    file.write('{"loss": 0.')
                folder = RunFolder(tmp_path / name)
                folder.open(config, to_yaml(config), {})
                folder.truncate_after(2)
                for again in range(3, step + 1):
                    folder.append_metrics(again, {"loss": again / 3})
                    folder.write_trajectories(again, [{"response": f"r{again}"}])
        return (folder.path / "metrics.jsonl").read_bytes()

    assert run("killed", crash_after=4) == run("whole", crash_after=None)
    names = [p.name for p in sorted((tmp_path / "killed" / "trajectories").iterdir())]
    assert names == [f"step-00000{step}.jsonl" for step in range(1, 6)]


def test_truncation_forgets_later_steps_everywhere_and_a_torn_last_line(folder: RunFolder) -> None:
    for step in range(4):
        folder.append_metrics(step, {"x": step})
        folder.append_timings(step, {"step_s": 0.1})
        folder.write_trajectories(step, [{"x": step}])
        folder.write_evaluation(step, "math-500", [{"x": step}])
    folder.write_summary({"steps": 3})
    with (folder.path / "timings.jsonl").open("a") as file:
        file.write('{"step": 4, "step_s')
    folder.truncate_after(1)
    assert [row["step"] for row in folder.read_metrics()] == [0, 1]
    assert [row["step"] for row in lines(folder.path / "timings.jsonl")] == [0, 1]
    assert sorted(p.name for p in (folder.path / "trajectories").iterdir()) == [
        "step-000000.jsonl",
        "step-000001.jsonl",
    ]
    assert len(list((folder.path / "evaluations").iterdir())) == 2
    assert not (folder.path / "summary.json").exists()
    folder.truncate_after(-1)
    assert folder.read_metrics() == []
    assert list((folder.path / "trajectories").iterdir()) == []


@pytest.mark.parametrize("torn", [b'{"step": 3, "x"', b'{"step": 3, "x": 1}', b'{"step"\n', b"\xff\n", b"3\n"])
def test_any_damage_to_the_last_line_is_tolerated(folder: RunFolder, torn: bytes) -> None:
    folder.append_metrics(1, {"x": 1})
    with (folder.path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert folder.read_metrics() == [{"step": 1, "x": 1}]


def test_damage_before_the_last_line_stops_with_its_number(folder: RunFolder) -> None:
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"Line 2 of metrics\.jsonl is damaged"):
        folder.truncate_after(3)


def test_trajectories_are_left_out_when_the_recipe_says_so(tmp_path: Path) -> None:
    config = load_recipe("quickstart", ["record.trajectories=false"])
    folder = RunFolder(tmp_path / "run")
    folder.open(config, to_yaml(config), {})
    folder.write_trajectories(1, [{"x": 1}])
    folder.write_evaluation(1, "chain", [{"x": 1}])
    assert list((folder.path / "trajectories").iterdir()) == []
    assert list((folder.path / "evaluations").iterdir()) == []


def test_a_warm_start_that_begins_again_starts_its_file_again(folder: RunFolder) -> None:
    for step in (1, 2, 1):
        folder.append_warm_start(step, {"loss": 1.0})
    assert [row["step"] for row in lines(folder.path / "warm_start.jsonl")] == [1]


def test_tensorboard_gets_the_numbers_and_a_resumed_run_replaces_them(tmp_path: Path, config: Config) -> None:
    for value, last in ((0.0, 3), (1.0, 4)):
        folder = RunFolder(tmp_path / "run", tensorboard=True)
        folder.open(config, to_yaml(config), {})
        folder.truncate_after(1 if value else -1)
        for step in range(2 if value else 1, last):
            folder.append_metrics(step, {"reward/mean": value, "note": "no number"})
        folder.close()
    events = EventAccumulator(str(tmp_path / "run" / "events")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 0.0), (2, 1.0), (3, 1.0)]


# Another recipe in the same folder ----------------------------------------------------------------------------------


def test_a_run_is_continued_by_the_same_recipe_only(folder: RunFolder) -> None:
    folder.check_same_recipe(load_recipe("quickstart"))
    for change in ("optim.lr=1e-3", "seed=3", "verifier.marker='='", "sources.0.weight=2", "data.train.count=7000"):
        with pytest.raises(RunError, match="other settings") as error:
            folder.check_same_recipe(load_recipe("quickstart", [change]))
        assert change.partition(".")[0].partition("=")[0] in str(error.value)


@pytest.mark.parametrize(
    "change",
    ["train.steps=200", "checkpoint.every_steps=5", "record.tensorboard=false", "hardware.threads=1",
     "run.resume=must", "description=other", "alarms.max_fault_share=0.5", "verifier.workers=4"],
)  # fmt: skip
def test_what_a_step_does_not_depend_on_may_change(folder: RunFolder, change: str) -> None:
    folder.check_same_recipe(load_recipe("quickstart", [change]))


def test_an_empty_folder_takes_any_recipe(tmp_path: Path) -> None:
    RunFolder(tmp_path).check_same_recipe(make_config())


# The disk -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_that_says_so(folder: RunFolder) -> None:
    (folder.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match="The disk is full") as error:
        folder.append_metrics(1, {"x": 1})
    assert "free some space" in str(error.value)


def test_a_folder_that_cannot_be_made_is_an_error_before_anything_is_written(tmp_path: Path, config: Config) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match="cannot be written") as error:
        check_writable(tmp_path / "runs" / "quickstart", min_free_mb=1)
    assert "set run.dir" in str(error.value)
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder(tmp_path / "runs" / "quickstart").open(config, "", {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"):
        check_writable(tmp_path / "run", min_free_mb=1)


def test_too_little_space_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"MB are free, and the run needs 1000000000000 MB"):
        check_writable(tmp_path, min_free_mb=10**12)


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", min_free_mb=1)
    assert list(tmp_path.iterdir()) == []


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, "old")
    (tmp_path / ".summary.json.tmp").mkdir()  # in the way of the temporary file
    with pytest.raises(RunError):
        write_atomically(path, "new")
    assert path.read_text() == "old"


# Environment --------------------------------------------------------------------------------------------------------


def test_the_git_state_knows_commit_and_changes(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    state = git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "new").touch()
    assert git_state(tmp_path) == {**state, "dirty": True}


def test_json_keeps_unicode_and_names_nested_keys() -> None:
    assert to_json({"b": "ü", "a": [1]}, "x") == '{"a": [1], "b": "ü"}'
    with pytest.raises(RunError, match=r"'a\.b\[0\]\.c' is not finite"):
        to_json({"a": {"b": [{"c": float("nan")}]}}, "x")
