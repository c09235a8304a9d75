"""The examples of docs/use-elsewhere.md, run as they stand there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_adapters_trl import tiny_data, tiny_model
from test_adapters_verl import load_manager, score

from trainer.cli import main

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "use-elsewhere.md").read_text(encoding="utf-8")


def example(heading: str, language: str, index: int = 0) -> str:
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[index]


def test_python():
    done = subprocess.run([sys.executable, "-c", example("Python", "python")], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1.0 correct\n", done.stderr


def test_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    row = {"id": 1, "response": r"\boxed{0.5}", "gold": "1/2"}
    Path("responses.jsonl").write_text(json.dumps(row) + "\n")
    for line in example("Shell", "shell").splitlines():
        assert main(shlex.split(line)[1:]) == 0
    assert "correct" in capsys.readouterr().out
    assert json.loads(Path("verdicts.jsonl").read_text())["score"] == 1.0


def test_trl(tmp_path, monkeypatch):
    trl = pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    model, tokenizer = tiny_model()
    model.name_or_path = "tiny"
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda *_, **__: tokenizer)
    small = {"max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4,
             "use_cpu": True, "report_to": [], "bf16": False, "save_strategy": "no"}  # fmt: skip
    config = trl.GRPOConfig
    monkeypatch.setattr(trl, "GRPOConfig", lambda output_dir: config(output_dir=output_dir, **small))
    names = {"model": model, "dataset": tiny_data()}
    exec(example("TRL", "python"), names)
    assert names["trainer"].state.global_step == 1
    names["reward"].close()


def test_verl():
    pytest.importorskip("verl")
    from omegaconf import OmegaConf

    words = shlex.split(example("verl", "shell").replace("\\\n", ""))[3:]
    function = OmegaConf.from_dotlist([word.lstrip("+") for word in words]).reward.custom_reward_function
    manager = load_manager(function.path, function.reward_kwargs)
    assert function.name == "compute_score"
    assert score(manager, r"\boxed{0.5}", "1/2")["reward_score"] == 1.0


def test_http():
    server = subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", *shlex.split(example("HTTP", "shell"))[1:]],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        if "listens on http://127.0.0.1:8300" not in server.stdout.readline():
            pytest.skip("port 8300 is taken")
        names = {}
        exec(example("HTTP", "python"), names)
        assert names["verdicts"][0].score == 1.0
        body = shlex.split(example("HTTP", "shell", 1).replace("\\\n", ""))[-1]
        assert json.loads(body)["requests"][0]["gold"] == r"\frac{1}{2}"
    finally:
        server.terminate()
        assert server.wait(timeout=30) == 0
