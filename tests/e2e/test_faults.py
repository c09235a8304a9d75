"""Seeded faults: each stops before compute is spent, with a message that names the cause and the fix."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Config

from tests.helpers import CHAR_TOKENIZER
from trainer import cli, train

pytestmark = pytest.mark.e2e

Fault = tuple[list[str], list[str]]  # overrides of the quickstart, fragments that the message must hold


def write_rows(path: Path, rows: list[object]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def table(path: Path, rows: list[object], **options: str) -> list[str]:
    """Overrides that train on these rows (numbers as golds) and evaluate on nothing."""
    file = write_rows(path / "rows.jsonl", rows)
    fields = {
        "kind": "jsonl",
        "path": file,
        "prompt_field": "question",
        "gold_field": "answer",
        "part": "all",
    } | options
    source = ",".join(f"{k}:{json.dumps(v)}" for k, v in fields.items())
    return [f"data.train={{{source}}}", "data.eval=[]", "eval.every_steps=null", "rollout.prompts_per_step=1"]


def misspelt_key(path: Path) -> Fault:
    return ["rollout.samples_per_promt=4"], ["rollout.samples_per_promt", "samples_per_prompt"]


def misspelt_option_of_a_part(path: Path) -> Fault:
    return ["objective.loss.clip_hi=0.3"], ["objective.loss.clip_hi", "clip_high"]


def wrong_type(path: Path) -> Fault:
    return ["train.steps=many"], ["train.steps", "integer", "many"]


def out_of_range(path: Path) -> Fault:
    return ["rollout.temperature=-1.0"], ["rollout.temperature", "greater than 0"]


def unknown_verifier(path: Path) -> Fault:
    return ["verifier.kind=exakt"], ["exakt", "verifier.kind", "'exact'"]


def unknown_hardware_profile(path: Path) -> Fault:
    return ["hardware=gpu3"], ["gpu3", "gpu1"]


def groups_of_one(path: Path) -> Fault:
    return ["rollout.samples_per_prompt=1"], ["grpo", "samples_per_prompt", "at least 2"]


def truncated_sampling_without_correction(path: Path) -> Fault:
    return ["rollout.top_p=0.9"], ["top_p", "objective.mismatch.kind=truncated"]


def too_long_for_the_model(path: Path) -> Fault:
    return ["rollout.max_response_tokens=400"], ["max_response_tokens", "max_positions"]


def missing_file(path: Path) -> Fault:
    return ["data.train={kind:jsonl,path:/nowhere/rows.jsonl,prompt_field:q,gold_field:a}"], [
        "/nowhere/rows.jsonl",
        "No such file",
    ]


def malformed_row(path: Path) -> Fault:
    return table(path, [{"question": "1+1=", "answer": "2"}, '{"question": "2+2=", "answer"']), [
        "rows.jsonl",
        "2",
        "JSON",
    ]


def row_without_field(path: Path) -> Fault:
    return table(path, [{"question": "1+1=", "anwser": "2"}]), ["answer", "anwser", "rows.jsonl"]


def empty_file(path: Path) -> Fault:
    return table(path, []), ["rows.jsonl", "no"]


def duplicate_ids(path: Path) -> Fault:
    rows: list[object] = [{"question": f"{i}+1=", "answer": str(i + 1), "name": "same"} for i in range(2)]
    return table(path, rows, id_field="name"), ["same", "id"]


def bad_gold(path: Path) -> Fault:
    rows: list[object] = [{"question": "1+1=", "answer": "2"}, {"question": "2+2=", "answer": "four"}]
    return table(path, rows), ["rows-", "bad_gold", "four", "data.on_bad_gold=skip"]


def prompt_too_long(path: Path) -> Fault:
    return table(path, [{"question": "1+" * 30 + "1=", "answer": "31"}]), ["data.max_prompt_tokens", "62"]


def too_few_examples(path: Path) -> Fault:
    overrides = table(path, [{"question": "1+1=", "answer": "2"}])[:-1]
    return overrides, ["rollout.prompts_per_step", "1 training examples"]


def train_and_eval_overlap(path: Path) -> Fault:
    return ["data.eval.0.source.part=train"], ["200 evaluation examples", "training example", "part=eval"]


def demonstration_missing(path: Path) -> Fault:
    file = write_rows(path / "shown.jsonl", [{"question": "0+0+0+1=", "answer": "1"}])
    source = f"{{kind:jsonl,path:{file},prompt_field:question,gold_field:answer}}"
    return [f"warm_start.source={source}"], ["solution"]


def missing_model(path: Path) -> Fault:
    return ["model.scratch=null", f"model.path={path}/no-model", f"model.tokenizer={CHAR_TOKENIZER}"], [
        "no-model",
        "model.path",
    ]


def tokenizer_without_pad_token(path: Path) -> Fault:
    folder = path / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(CHAR_TOKENIZER)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return [f"model.tokenizer={folder}"], ["no pad token", "model.pad_token="]


def chat_without_chat_template(path: Path) -> Fault:
    return ["template.kind=chat"], ["chat template", "template.kind=plain"]


def architecture_the_engine_cannot_decode(path: Path) -> Fault:
    folder = path / "gpt2"
    GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2).save_pretrained(folder)
    shutil.copytree(CHAR_TOKENIZER, folder, dirs_exist_ok=True)
    return ["model.scratch=null", f"model.path={folder}", "model.tokenizer=null"], ["gpt2", "rollout.engine"]


def device_that_is_not_there(path: Path) -> Fault:
    return ["hardware.device=mps"], ["hardware.device=mps", "available: cpu"]


def run_folder_is_a_file(path: Path) -> Fault:
    (path / "occupied").write_text("")
    return [f"run.dir={path}/occupied"], ["occupied", "run.dir"]


def nothing_to_resume(path: Path) -> Fault:
    return ["run.resume=must"], ["no checkpoint", "run.resume=auto"]


FAULTS: list[Callable[[Path], Fault]] = [
    misspelt_key, misspelt_option_of_a_part, wrong_type, out_of_range, unknown_verifier, unknown_hardware_profile,
    groups_of_one, truncated_sampling_without_correction, too_long_for_the_model, missing_file, malformed_row,
    row_without_field, empty_file, duplicate_ids, bad_gold, prompt_too_long, too_few_examples, train_and_eval_overlap,
    demonstration_missing, missing_model, tokenizer_without_pad_token, chat_without_chat_template,
    architecture_the_engine_cannot_decode, device_that_is_not_there, run_folder_is_a_file, nothing_to_resume,
]  # fmt: skip


@pytest.fixture
def no_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling or an optimizer step would fail the test: the fault must be found before."""

    def spent(*_: object, **__: object) -> None:
        raise AssertionError("compute was spent before the fault was found")

    monkeypatch.setattr(train, "run_warm_start", spent)
    monkeypatch.setattr(train, "run_steps", spent)
    monkeypatch.setattr("rollout.torch_engine.TorchEngine.generate", spent)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.usefixtures("no_compute")
def test_a_fault_stops_before_compute_and_says_what_to_do(
    fault: Callable[[Path], Fault], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if fault is device_that_is_not_there:
        import torch

        if torch.backends.mps.is_available():
            pytest.skip("this machine has the device")
    overrides, fragments = fault(tmp_path)
    assert cli.main(["train", "quickstart", f"run.dir={tmp_path}/runs", *overrides]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for fragment in fragments:
        assert fragment.lower() in message.lower(), f"{fragment!r} is not in:\n{message}"
    assert not (tmp_path / "runs" / "quickstart" / "metrics.jsonl").exists()


@pytest.mark.usefixtures("no_compute")
def test_a_full_disk_is_found_before_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 2**20, 2**20))
    assert cli.main(["train", "quickstart", f"run.dir={tmp_path}/runs"]) == 2
    message = capsys.readouterr().err
    assert "1 MB are free" in message
    assert "run.dir" in message


def test_bad_golds_can_be_skipped_and_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[object] = [{"question": f"{i}+1=", "answer": str(i + 1)} for i in range(3)]
    overrides = table(tmp_path, [*rows, {"question": "2+2=", "answer": "four"}])
    arguments = ["check", "quickstart", f"run.dir={tmp_path}", "data.on_bad_gold=skip", *overrides]
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    assert "3 examples" in output
    assert "four" in output
