"""Recipes in verl's terms. None of this needs verl."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import make_config
from trainer import cli
from trainer.compose import load_recipe
from trainer.verl import translate
from trainer.verl.registered import check as check_registered
from trainer.verl.translate import Files, settings
from verifiers.errors import ConfigError

pytestmark = pytest.mark.unit

FILES = Files(Path("train.jsonl"), None, Path("/run/model"), Path("loops.yaml"), Path("/run/checkpoints"))
IMPLICIT = {"kind": "implicit", "optim": {"lr": 1e-3}}
TRAINED_HERE = {"kind": "verify_rm", "optim": {"lr": 1e-3}, "train": {"prompts": 4, "steps": 1,
                                                                      "solutions_per_step": 2}}  # fmt: skip
LORA = {"rank": 4, "alpha": 8.0}


def translated(overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    config = make_config(overrides)
    translate.check(config)
    return settings(config, FILES, {"name": "of the recipe"}, [2])


REFUSED = {
    "data.difficulty": {"data.difficulty": {"low": 0.1, "high": 0.9, "probe_samples": 4}},
    "eval.max_response_tokens": {"eval.max_response_tokens": 8},
    "eval.scorer": {"eval.scorer": "mean_logprob"},
    "eval.bootstrap_samples": {"eval.bootstrap_samples": 500},
    "rollout.stop": {"rollout.stop": ["\n"]},
    "rollout.keep.oversample": {"rollout.keep.oversample": 2},
    "rollout.keep.put_back_surplus": {"rollout.keep": {"put_back_surplus": True},
                                      "objective.zero_variance.max_refills": 1},
    "objective.zero_variance.max_refills": {"objective.zero_variance.max_refills": 2},
    "train.max_stale_steps": {"train.max_stale_steps": 1, "objective.mismatch.kind": "truncated"},
    "data.views": {"data.views": "both"},
    "train.overlap": {"train.overlap": True, "objective.mismatch.kind": "truncated"},
    "rollout.engine_options": {"rollout.engine_options": {"x": 1}},
    "train.shuffle_rewards": {"train.shuffle_rewards": True},
    "objective.advantage.kind": {"objective.advantage.kind": "remax"},
    "objective.kl.controller": {"objective.kl": {"coef": 0.1, "controller": {"target": 0.1,
                                                                           "horizon_trajectories": 100}}},
    "critic.trunk": {"critic": {"trunk": "shared"}, "objective.advantage.kind": "gae"},
    "sources.1.kind": {"sources": [{"kind": "rule"}, {"kind": "oracle_steps"}]},
    "sources.1.train": {"sources": [{"kind": "rule"}, TRAINED_HERE]},
    "sources.1.update_every": {"sources": [{"kind": "rule"}, {"kind": "step_prm", "path": "p", "update_every": 1,
                                                              "optim": {"lr": 1e-3}}]},
    "sources.1.reference": {"sources": [{"kind": "rule"}, IMPLICIT | {"reference": "moving"}],
                            "rollout.top_p": 0.9, "objective.mismatch.kind": "truncated"},
    "sources": {"sources": [IMPLICIT]},
    "model.lora.dropout": {"model.lora": LORA | {"dropout": 0.1}},
    "checkpoint.best_by": {"checkpoint.best_by": "chain/avg@4", "eval.every_steps": 5,
                           "data.eval": [{"name": "chain", "source": {"kind": "chain"}}]},
    "alarms.max_logprob_gap": {"alarms.max_logprob_gap": 0.5},
    "hardware.device": {"hardware.device": "mps"},
    "hardware.distributed": {"hardware.distributed": {"replicas": 2}},
    "verl.processes_per_node": {"verl.processes_per_node": 3},
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_what_verl_cannot_do_is_refused_by_its_key(key: str) -> None:
    # `put_back_surplus` needs refills or oversampling, which are refused with it
    known = {key, "objective.zero_variance.max_refills"} if "put_back" in key else {key}
    with pytest.raises(ConfigError) as caught:
        translate.check(make_config(REFUSED[key]))
    assert caught.value.where in known
    assert caught.value.fix


def test_two_sources_of_a_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sources\.1\.kind"):
        translate.check(make_config({"sources": [{"kind": "rule"}, {"kind": "rule"}]}))


def test_every_refusal_is_in_the_documentation() -> None:
    page = Path("docs/verl.md").read_text(encoding="utf-8")
    keys = {key.replace(".1.", ".N.") for key in REFUSED}
    assert not {key for key in keys if f"`{key}`" not in page}


def test_sizes_and_sampling_are_the_recipes() -> None:
    found = translated({
        "rollout.prompts_per_step": 8, "rollout.samples_per_prompt": 4, "train.minibatches_per_step": 2,
        "train.epochs_per_batch": 3, "rollout.temperature": 0.7, "seed": 5,
    })  # fmt: skip
    rollout, actor = "actor_rollout_ref.rollout.", "actor_rollout_ref.actor."
    assert found["data.train_batch_size"] == 8
    assert found[actor + "ppo_mini_batch_size"] == 4  # verl counts prompts
    assert found[actor + "ppo_epochs"] == 3
    assert found[rollout + "n"] == 4
    assert found[rollout + "temperature"] == 0.7
    assert found["data.max_prompt_length"] == 32
    assert found["data.max_response_length"] == 16
    assert found["data.seed"] == found[rollout + "seed"] == 5
    assert found["trainer.total_training_steps"] == 10
    assert found["assay"]["recipe"] == {"name": "of the recipe"}


def test_the_optimizer_is_the_recipes() -> None:
    optim = {"lr": 1e-4, "beta2": 0.95, "eps": 1e-7, "grad_clip": 0.5, "schedule": "cosine", "min_lr_ratio": 0.1}
    found = translated({"optim": optim})
    at = "actor_rollout_ref.actor.optim."
    assert found[at + "lr"] == 1e-4
    assert found[at + "betas"] == [0.9, 0.95]
    assert found[at + "override_optimizer_config"] == {"eps": 1e-7}
    assert found[at + "clip_grad"] == 0.5
    assert (found[at + "lr_scheduler_type"], found[at + "min_lr_ratio"]) == ("cosine", 0.1)
    assert found[at + "weight_decay"] == 0.0  # verl's default is another


def test_the_critic_is_the_recipes_and_verl_counts_from_one() -> None:
    critic = {"optim": {"lr": 1e-3, "grad_clip": 0.5}, "warmup_steps": 2}
    config = make_config({"critic": critic, "objective.advantage.kind": "gae", "objective.zero_variance.drop": False})
    translate.check(config)
    found = settings(config, dataclasses.replace(FILES, critic=Path("/run/critic")), {}, [2])
    assert found["critic.enable"] is True
    assert found["critic.model.path"] == "/run/critic"
    assert found["critic.optim.lr"] == 1e-3
    assert found["critic.optim.clip_grad"] == 0.5
    assert found["trainer.critic_warmup"] == 3  # the first step in which the policy learns
    assert translated()["critic.enable"] is False


def test_gpus_are_verls_own_and_the_cpu_is_ours() -> None:
    gpu = translated({"hardware.device": "cuda", "verl": {"tensor_parallel": 2, "processes_per_node": 8}})
    assert gpu["actor_rollout_ref.rollout.name"] == "vllm"
    assert gpu["actor_rollout_ref.rollout.tensor_model_parallel_size"] == 2
    assert gpu["trainer.n_gpus_per_node"] == 8
    assert not [key for key in gpu if key.startswith("ray_kwargs")]
    cpu = translated({"hardware.device": "cpu"})
    assert cpu["actor_rollout_ref.rollout.name"] == "assay_cpu"
    assert cpu["ray_kwargs.ray_init.num_gpus"] == 1  # verl places its processes by GPUs
    assert cpu["actor_rollout_ref.actor.strategy"] == gpu["actor_rollout_ref.actor.strategy"] == "fsdp2"


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [({}, False), ({"objective.kl.coef": 0.1}, True),
     ({"sources": [{"kind": "rule"}, IMPLICIT]}, True),
     ({"sources": [{"kind": "rule"}, IMPLICIT | {"reference": "moving"}]}, False)],
)  # fmt: skip
def test_verl_keeps_a_reference_where_the_recipe_asks_one(overrides: dict[str, Any], wanted: bool) -> None:
    found = translated(overrides)
    assert found["actor_rollout_ref.actor.use_kl_loss"] is wanted
    assert found["actor_rollout_ref.actor.kl_loss_coef"] == 0.0  # the KL is in our loss


def test_dtypes_and_lora_are_the_recipes() -> None:
    found = translated({"model.compute_dtype": "bfloat16", "model.lora": LORA})
    engine = "actor_rollout_ref.actor.fsdp_config."
    assert found[engine + "model_dtype"] == "fp32"
    assert found[engine + "mixed_precision"]["param_dtype"] == "bf16"
    model = "actor_rollout_ref.model."
    assert (found[model + "lora_rank"], found[model + "lora_alpha"]) == (4, 8.0)


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [("quickstart", []), ("grpo_math", ["checkpoint.best_by=null"]), ("ppo_math", ["checkpoint.best_by=null"]),
     ("dapo_math", ["checkpoint.best_by=null", "objective.zero_variance.max_refills=0"]),
     ("prime_chain", ["rollout.keep.oversample=1", "rollout.keep.put_back_surplus=false"])],
)  # fmt: skip
def test_shipped_recipes_can_be_translated(recipe: str, overrides: list[str]) -> None:
    config = load_recipe(recipe, ["engine=verl", *overrides])
    assert config.engine == "verl"
    translate.check(config)
    assert settings(config, dataclasses.replace(FILES, critic=Path("/run/critic")), {}, [2])


def test_assay_check_says_what_verl_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "quickstart", "engine=verl", "rollout.stop=[x]"]) == 2
    assert "rollout.stop is not possible with engine=verl" in capsys.readouterr().err


def test_folders_of_models_are_whole_paths_for_processes_that_run_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    parts = [{"kind": "verify_rm", "path": "model"}, {"kind": "implicit", "weights": "org/model"}, {"kind": "rule"}]
    found = translate.with_whole_paths({"name": "x", "sources": parts})
    assert found["sources"] == [{"kind": "verify_rm", "path": str(tmp_path / "model")}, *parts[1:]]
    assert found["name"] == "x"
    assert parts[0]["path"] == "model"


def test_plugins_that_are_switched_off_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    with pytest.raises(ConfigError, match="switched off"):
        check_registered()


@pytest.mark.skipif(importlib.util.find_spec("verl") is not None, reason="verl is installed")
def test_without_verl_the_message_says_what_to_install(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["train", "quickstart", "engine=verl", f"run.dir={tmp_path}"]) == 2
    assert "assay-rl[verl]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
