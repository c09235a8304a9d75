"""A recipe as verl 0.9.1's configuration. What the recipe asks and verl cannot do is a `ConfigError` with its key.

Needs no verl: `settings` are plain values by verl's dotted keys. The list of what is refused is in docs/verl.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm.implicit import ImplicitOptions
from rollout.options import OptimConfig
from trainer.advantages.base import ADVANTAGES
from trainer.config import AlarmConfig, Config, DistributedConfig, EvalConfig
from trainer.objective import needs_reference
from verifiers.errors import ConfigError

DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
BESIDE = ("verify_rm", "cooper", "step_prm", "orm")  # sources of `trainer.verl.beside`
PARTS = ("rule", "implicit", *BESIDE)  # sources that have a form in verl


@dataclass(frozen=True, slots=True)
class Files:
    """What was written for verl before it starts: examples (JSON lines), the model with its tokenizer, the list of
    agent loops, the critic if there is one; and the folder of its checkpoints."""

    train: Path
    eval: Path | None
    model: Path | str
    agent_loops: Path
    checkpoints: Path
    critic: Path | None = None


def on_cpu(config: Config) -> bool:
    return config.hardware.device == "cpu"


def check(config: Config) -> None:
    """Raises `ConfigError` for the first thing that verl cannot do as the recipe says it."""
    options = config.verl
    for key, asked, why, fix in (*_about_data(config), *_about_rollouts(config), *_about_objective(config),
                                 *_about_models(config), *_about_the_run(config)):  # fmt: skip
        if asked:
            raise ConfigError(f"{key} is not possible with engine=verl.", where=key, why=why, fix=fix)
    rows = config.rollout.prompts_per_step * config.rollout.samples_per_prompt // config.train.minibatches_per_step
    if rows % options.processes:
        raise ConfigError(
            f"{rows} responses of an optimizer step cannot be dealt to {options.processes} processes.",
            where="verl.processes_per_node",
            why="verl gives every process the same number of them",
            fix="processes that divide rollout.prompts_per_step * samples_per_prompt / train.minibatches_per_step",
        )


Rule = tuple[str, bool, str, str]


def _about_data(config: Config) -> list[Rule]:
    return [
        ("data.difficulty", config.data.difficulty is not None, "the probe samples before training starts",
         "data.difficulty=null, or a dataset that was filtered before"),
        ("data.views", config.data.views != "original", "verl keeps or drops every group on its own",
         "data.views=original"),
        ("eval.max_response_tokens", config.eval.max_response_tokens not in (None, config.rollout.max_response_tokens),
         "verl has one limit for training and evaluation", "eval.max_response_tokens=null"),
        ("eval.scorer", config.eval.scorer is not None, "verl reports mean, best and majority of n",
         "eval.scorer=null"),
        ("eval.bootstrap_samples", config.eval.bootstrap_samples != EvalConfig().bootstrap_samples,
         "verl reports no intervals", "leave it out, and evaluate the checkpoint with assay eval"),
    ]  # fmt: skip


def _about_rollouts(config: Config) -> list[Rule]:
    keep = config.rollout.keep
    again = "verl's sync trainer samples once a step; what is left out is not replaced"
    return [
        ("rollout.stop", bool(config.rollout.stop), "verl's agent loop hands no stop strings to its engine",
         "rollout.stop=[], and let responses end with the end-of-sequence token"),
        ("rollout.keep.oversample", keep.oversample > 1, again, "rollout.keep.oversample=1"),
        ("rollout.keep.put_back_surplus", keep.put_back_surplus, again, "rollout.keep.put_back_surplus=false"),
        ("objective.zero_variance.max_refills", config.objective.zero_variance.max_refills > 0, again,
         "objective.zero_variance.max_refills=0"),
        ("train.max_stale_steps", config.train.max_stale_steps > 0, "the trainer is verl's synchronous one",
         "train.max_stale_steps=0"),
        ("train.overlap", config.train.overlap, "the trainer is verl's synchronous one", "train.overlap=false"),
        ("rollout.engine_options", bool(config.rollout.engine_options), "they are for assay's engines; on GPUs verl "
         "samples with its own vLLM", "verl.overrides"),
        ("train.shuffle_rewards", config.train.shuffle_rewards, "it is a control of assay's own loop",
         "train.shuffle_rewards=false"),
    ]  # fmt: skip


def _about_objective(config: Config) -> list[Rule]:
    estimator = ADVANTAGES.get(config.objective.advantage.kind, key="objective.advantage.kind")
    return [
        ("objective.advantage.kind", "baseline_N" in estimator.needs, "verl's v1 trainer has no greedy rollout beside "
         "the sampled ones", "an estimator without baseline_N: rloo, grpo, reinforce_pp_baseline"),
        ("objective.kl.controller", config.objective.kl.controller is not None,
         "its state is not in verl's checkpoints", "objective.kl.controller=null"),
        ("critic.trunk", config.critic is not None and config.critic.trunk == "shared", "verl's policy has no second "
         "head", "critic={trunk: own, optim: {lr: 1e-5}}, or an estimator without a critic"),
    ]  # fmt: skip


def _about_models(config: Config) -> list[Rule]:
    rules: list[Rule] = []
    kinds = [part.kind for part in config.sources]
    for i, kind in enumerate(kinds):
        rules.append((f"sources.{i}.kind", kind not in PARTS, f"the source '{kind}' has no place in verl",
                      f"sources with one: {', '.join(PARTS)}"))  # fmt: skip
        options = config.sources[i].options
        if kind in BESIDE:
            rules.append((f"sources.{i}.train", options.get("train") is not None, "its samples are made before verl "
                          "starts", f"sources.{i}.path: the folder of a model that was trained before"))  # fmt: skip
        if kind == "step_prm":
            rules.append((f"sources.{i}.update_every", options.get("update_every") is not None, "its labels may need "
                          "completions by the policy, which it cannot ask for here", "leave it out"))  # fmt: skip
        rules.append((f"sources.{i}.kind", kind in kinds[:i], "there is room for one source of a kind",
                      "name every kind once"))  # fmt: skip
        if kind == "implicit":
            moving = ImplicitOptions.model_validate(options).reference == "moving" and config.rollout.top_p < 1
            rules.append((f"sources.{i}.reference", moving, "verl's engine gives no log-probs without top-p",
                          "rollout.top_p=1.0 or reference: frozen"))  # fmt: skip
    rules.append(("sources", "rule" not in kinds, "verl's rewards are the verifier's", "add the source rule"))
    lora = config.model.lora
    rules.append(("model.lora.dropout", lora is not None and lora.dropout > 0, "verl's LoRA has no dropout",
                  "model.lora.dropout=0"))  # fmt: skip
    return rules


def _about_the_run(config: Config) -> list[Rule]:
    return [
        ("checkpoint.best_by", config.checkpoint.best_by is not None, "verl keeps the latest checkpoints only",
         "checkpoint.best_by=null"),
        ("alarms.max_logprob_gap", config.alarms.max_logprob_gap != AlarmConfig().max_logprob_gap,
         "verl reports the gap (training/rollout_probs_diff_mean) and has no alarm", "leave it out"),
        ("hardware.device", config.hardware.device == "mps", "verl knows no such device", "hardware=gpu1"),
        ("hardware.distributed", config.hardware.distributed != DistributedConfig(),
         "it is for torchrun; verl's processes are Ray's", "verl.nodes and verl.processes_per_node"),
    ]  # fmt: skip


# ---- settings ----------------------------------------------------


def settings(config: Config, files: Files, recipe: dict[str, Any], eos_ids: list[int]) -> dict[str, Any]:
    """verl's configuration by dotted key, where it differs from its defaults. recipe: as plain data, for our trainer
    in verl's processes. Call `check` before."""
    return (
        _data_settings(config, files)
        | _model_settings(config, files)
        | _actor_settings(config)
        | _critic_settings(config, files)
        | _rollout_settings(config, files)
        | _trainer_settings(config, files)
        | {"assay": {"recipe": recipe, "eos_ids": eos_ids, "files": {"checkpoints": str(files.checkpoints)}}}
    )


def with_whole_paths(recipe: dict[str, Any]) -> dict[str, Any]:
    """Folders of models that sources name: Ray's processes may run in another folder. A hub id stays."""

    def whole(part: dict[str, Any]) -> dict[str, Any]:
        named = {key: Path(part[key]).expanduser() for key in ("path", "weights") if isinstance(part.get(key), str)}
        return part | {key: str(folder.absolute()) for key, folder in named.items() if folder.is_dir()}

    return recipe | {"sources": [whole(part) for part in recipe["sources"]]}


def _data_settings(config: Config, files: Files) -> dict[str, Any]:
    return {
        "data.train_files": str(files.train),
        "data.val_files": str(files.eval or files.train),
        "data.custom_cls.path": "pkg://trainer.verl.dataset",
        "data.custom_cls.name": "RecipeDataset",
        "data.train_batch_size": config.rollout.prompts_per_step,
        "data.max_prompt_length": config.data.max_prompt_tokens,
        "data.max_response_length": config.rollout.max_response_tokens,
        "data.dataloader_num_workers": 0,
        "data.seed": config.seed,
        "reward.num_workers": config.verl.reward_workers,
        "reward.reward_manager.source": "importlib",
        "reward.reward_manager.name": "RuleReward",
        "reward.reward_manager.module.path": "pkg://trainer.verl.reward",
    }


def _model_settings(config: Config, files: Files) -> dict[str, Any]:
    model, at = config.model, "actor_rollout_ref.model."
    out = {at + name: value for name, value in _of_a_model(config, files.model).items()}
    if model.lora is not None:
        out |= {
            at + "lora_rank": model.lora.rank,
            at + "lora_alpha": model.lora.alpha,
            at + "target_modules": model.lora.target_modules,
        }
    return out


def _of_a_model(config: Config, path: Path | str) -> dict[str, Any]:
    """Of verl's HFModelConfig."""
    out: dict[str, Any] = {
        "path": str(path),
        "trust_remote_code": config.model.trust_remote_code,
        "enable_gradient_checkpointing": config.model.gradient_checkpointing,
        "use_remove_padding": not on_cpu(config),
    }
    return out | ({"override_config": {"attn_implementation": "sdpa"}} if on_cpu(config) else {})


def _of_an_engine(config: Config) -> dict[str, Any]:
    """Of verl's FSDPEngineConfig."""
    return {
        "model_dtype": DTYPES[config.model.master_dtype],
        "dtype": config.model.compute_dtype,
        "mixed_precision": {
            "param_dtype": DTYPES[config.model.compute_dtype], "reduce_dtype": "fp32", "buffer_dtype": "fp32"
        },
        "use_torch_compile": not on_cpu(config),
    }  # fmt: skip


def optimizer_settings(optim: OptimConfig) -> dict[str, Any]:
    """Of verl's FSDPOptimizerConfig."""
    return {
        "lr": optim.lr,
        "betas": [optim.beta1, optim.beta2],
        "weight_decay": optim.weight_decay,
        "clip_grad": optim.grad_clip,
        "lr_warmup_steps": optim.warmup_steps,
        "lr_scheduler_type": optim.schedule,
        "min_lr_ratio": optim.min_lr_ratio,
        "override_optimizer_config": {"eps": optim.eps},
    }


def _actor_settings(config: Config) -> dict[str, Any]:
    at, train = "actor_rollout_ref.actor.", config.train
    out: dict[str, Any] = {
        at + "strategy": "fsdp2",
        at + "ppo_mini_batch_size": config.rollout.prompts_per_step // train.minibatches_per_step,
        at + "ppo_epochs": train.epochs_per_batch,
        at + "use_dynamic_bsz": True,
        at + "ppo_max_token_len_per_gpu": train.max_tokens_per_microbatch,
        at + "use_torch_compile": not on_cpu(config),
        at + "data_loader_seed": config.seed,
        at + "grad_clip": config.optim.grad_clip,
        # our loss has the KL in it; this makes verl load the reference policy and ask it
        at + "use_kl_loss": wants_reference(config),
        at + "kl_loss_coef": 0.0,
        "algorithm.adv_estimator": "assay_grpo",  # never asked: our trainer calls the recipe's estimator
    }
    out |= {f"{at}optim.{name}": value for name, value in optimizer_settings(config.optim).items()}
    for role in ("actor", "ref"):
        out |= {f"actor_rollout_ref.{role}.fsdp_config.{name}": value for name, value in _of_an_engine(config).items()}
    return out


def _critic_settings(config: Config, files: Files) -> dict[str, Any]:
    """verl's critic takes its mini-batches and passes over a batch from the actor's settings."""
    if config.critic is None:
        return {"critic.enable": False}
    assert files.critic is not None
    assert config.critic.optim is not None
    limit = config.train.max_tokens_per_microbatch
    parts = {
        "model": _of_a_model(config, files.critic) | {"tokenizer_path": str(files.model)},
        "fsdp": _of_an_engine(config),
        "optim": optimizer_settings(config.critic.optim),
    }
    return {
        "critic.enable": True,
        "critic.strategy": "fsdp2",
        "critic.ppo_max_token_len_per_gpu": limit,
        "critic.ppo_infer_max_token_len_per_gpu": limit,
        "critic.data_loader_seed": config.seed,
        # the first step, counted from 1, in which the policy learns too
        "trainer.critic_warmup": config.critic.warmup_steps + 1,
        "trainer.max_critic_ckpt_to_keep": config.checkpoint.keep_last,
        **{f"critic.{part}.{name}": value for part, values in parts.items() for name, value in values.items()},
    }


def wants_reference(config: Config) -> bool:
    """Whether verl must keep the frozen starting model."""
    implicit = [ImplicitOptions.model_validate(p.options) for p in config.sources if p.kind == "implicit"]
    return needs_reference(config.objective.kl) or any(o.reference == "frozen" for o in implicit)


def _rollout_settings(config: Config, files: Files) -> dict[str, Any]:
    at, rollout, own, cpu = "actor_rollout_ref.rollout.", config.rollout, config.verl, on_cpu(config)
    return {
        at + "name": "assay_cpu" if cpu else "vllm",
        at + "n": rollout.samples_per_prompt,
        at + "temperature": rollout.temperature,
        at + "top_p": rollout.top_p,
        at + "dtype": rollout.dtype,
        at + "seed": config.seed,
        at + "max_num_seqs": rollout.max_rows,
        at + "tensor_model_parallel_size": own.tensor_parallel,
        at + "gpu_memory_utilization": own.gpu_memory_utilization,
        at + "load_format": "auto" if cpu else "dummy",
        at + "calculate_log_probs": True,
        at + "agent.num_workers": own.agent_workers,
        at + "agent.default_agent_loop": "assay",
        at + "agent.agent_loop_config_path": str(files.agent_loops),
        at + "val_kwargs.n": config.eval.samples_per_prompt,
        at + "val_kwargs.temperature": config.eval.temperature,
        at + "val_kwargs.top_p": config.eval.top_p,
        at + "val_kwargs.do_sample": True,
    }


def _trainer_settings(config: Config, files: Files) -> dict[str, Any]:
    own, cpu = config.verl, on_cpu(config)
    at_the_end = config.train.steps + 1  # verl saves at the last step as well
    out: dict[str, Any] = {
        "trainer.v1.trainer_mode": "assay",
        "trainer.device": "cpu" if cpu else "cuda",
        "trainer.nnodes": own.nodes,
        "trainer.n_gpus_per_node": own.processes_per_node,
        "trainer.total_training_steps": config.train.steps,
        "trainer.total_epochs": config.train.steps,  # an upper bound: an epoch has at least one step
        "trainer.save_freq": config.checkpoint.every_steps or at_the_end,
        "trainer.max_actor_ckpt_to_keep": config.checkpoint.keep_last,
        "trainer.test_freq": config.eval.every_steps or -1,
        "trainer.val_before_train": config.eval.every_steps is not None,
        "trainer.default_local_dir": str(files.checkpoints),
        "trainer.resume_mode": "disable" if config.run.resume == "never" else "auto",
        "trainer.project_name": config.recipe or "assay",
        "trainer.experiment_name": config.name,
        "trainer.logger": ["console", "file", *(["tensorboard"] if config.record.tensorboard else [])],
    }
    if own.ray_cpus is not None:
        out["ray_kwargs.ray_init.num_cpus"] = own.ray_cpus
    if cpu:
        # Ray places verl's processes by GPUs, also where there are none
        out |= {
            "ray_kwargs.ray_init.num_gpus": own.processes,
            "ray_kwargs.ray_init.include_dashboard": False,
            "ray_kwargs.ray_init.object_store_memory": 500_000_000,
            "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        }
    return out
