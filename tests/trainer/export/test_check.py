"""A folder that is not the model that was trained is refused, and nothing of it is left."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import trainer.export.command as command
from trainer.compose import load_resolved
from trainer.export.check import sequences_of
from verifiers.errors import ModelError


def spoil(monkeypatch: pytest.MonkeyPatch, change) -> None:
    """Change the weights on the disk between writing and reloading."""
    write = command.write_model

    def spoiled(live, folder, dtype, max_shard_bytes):
        write(live, folder, dtype, max_shard_bytes)
        path = folder / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, metadata={"format": "pt"})

    monkeypatch.setattr(command, "write_model", spoiled)


def add_a_little(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.1.mlp.down_proj.weight"][3] += 0.01


def transpose_one(weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = weights[name].T.contiguous()


def make_nan(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"][0] = float("nan")


@pytest.mark.parametrize("change", [add_a_little, transpose_one, make_nan])
def test_other_weights_are_refused(runs, export, monkeypatch, tmp_path, hub, change):
    spoil(monkeypatch, change)
    with pytest.raises(ModelError, match="logits differ from the live model's"):
        export(runs("quickstart"), "--to", "org/small")
    assert not list(tmp_path.iterdir())
    assert hub.requests == []


def test_a_missing_tensor_is_named(runs, export, monkeypatch):
    spoil(monkeypatch, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"does not find model\.norm\.weight"):
        export(runs("quickstart"))


def test_a_config_that_changes_the_function_is_refused(runs, export, monkeypatch):
    write = command.write_model

    def spoiled(live, folder, dtype, max_shard_bytes):
        write(live, folder, dtype, max_shard_bytes)
        config = json.loads((folder / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] *= 10
        (folder / "config.json").write_text(json.dumps(config))

    monkeypatch.setattr(command, "write_model", spoiled)
    with pytest.raises(ModelError, match="logits differ"):
        export(runs("quickstart"))


def test_the_difference_is_printed(runs, export, capsys):
    export(runs("quickstart"))
    assert "4 sequences of the run" in (out := capsys.readouterr().out)
    assert "largest difference" in out


def test_sequences_are_the_runs_own_and_of_different_prompts(runs):
    run = runs("quickstart")
    sequences = sequences_of(run, load_resolved(run / "resolved.yaml"))
    rows = [json.loads(line) for line in (run / "trajectories" / "step-000002.jsonl").read_text().splitlines()]
    recorded = [(row["prompt_ids"], row["response_ids"]) for row in rows]
    assert len({tuple(s.prompt_ids) for s in sequences}) == 4
    assert all((s.prompt_ids, s.response_ids) in recorded for s in sequences)


def test_a_run_without_recorded_trajectories_is_compared_on_its_data(runs, export):
    run = runs("quickstart", "record.trajectories=false")
    sequences = sequences_of(run, load_resolved(run / "resolved.yaml"))
    assert len(sequences) == 4
    assert all(s.prompt_ids and s.response_ids for s in sequences)
    export(run)
