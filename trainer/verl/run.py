"""``assay train RECIPE engine=verl``: prepare what verl needs, start Ray and verl's trainer, say where it all is.

The run's folder holds ``resolved.yaml`` (the recipe), and under ``verl/`` what was made for verl: ``verl.yaml`` (its
whole configuration), ``model/``, ``critic/``, the examples, ``checkpoints/``, and ``metrics_from_<step>.jsonl`` of each
start.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
import yaml

from rollout.models import load_policy
from trainer.checkpoint import export_hf
from trainer.compose import to_yaml
from trainer.config import Config
from trainer.critic import Critic
from trainer.learner import Learner
from trainer.preflight import Prepared, prepare
from trainer.session import model_setup
from trainer.verl import translate
from trainer.verl.dataset import write_examples
from trainer.verl.translate import Files
from trainer.warm_start import warm_start
from verifiers.errors import AssayError, ConfigError, MissingExtraError, RunError


def train(config: Config) -> Path:
    """Run the whole recipe in verl; returns the run's folder. Raises `ConfigError` for what verl cannot do,
    `MissingExtraError` without verl."""
    translate.check(config)
    for package in ("verl", "transfer_queue"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "verl", "engine=verl")
    prepared = prepare(config)
    prepared.runner.close()  # the reward workers have their own
    path = prepared.run_path
    done = _steps_done(config, path)
    files, eos_ids = _write(config, prepared, path / "verl", resumes=done > 0)
    (path / "resolved.yaml").write_text(to_yaml(config), encoding="utf-8")
    environment = _environment(config, path / "verl", done)
    os.environ.update(environment)
    recipe = translate.with_whole_paths(config.model_dump(mode="json"))
    values = translate.settings(config, files, recipe, list(eos_ids))
    _start(compose(values, config.verl.overrides, environment), path / "verl" / "verl.yaml")
    return path


def _steps_done(config: Config, path: Path) -> int:
    """The step of the checkpoint to go on from, 0 without one. Raises `ConfigError` where run.resume forbids what is
    found."""
    latest = path / "verl" / "checkpoints" / "latest_checkpointed_iteration.txt"
    used = (path / "resolved.yaml").exists()
    if config.run.resume == "must" and not latest.exists():
        raise ConfigError(f"There is no checkpoint in {path} to go on from.", where="run.resume",
                          fix="run.resume=auto, or another name or run.dir")  # fmt: skip
    if config.run.resume == "never" and used:
        raise ConfigError(f"{path} holds a run already.", where="run.resume", fix="another name, or run.resume=auto")
    return int(latest.read_text()) if latest.exists() else 0


def _write(config: Config, prepared: Prepared, folder: Path, *, resumes: bool) -> tuple[Files, tuple[int, ...]]:
    """Everything that verl reads. The model is the starting point, also of a run that is resumed: the reference."""
    folder.mkdir(parents=True, exist_ok=True)
    train, evaluation = folder / "train.jsonl", folder / "eval.jsonl"
    for file in (train, evaluation):
        file.unlink(missing_ok=True)
    write_examples(prepared.train, prepared.prompt_ids, train, name="train", evaluation=False)
    for name, examples in prepared.evals.items():
        write_examples(examples, prepared.prompt_ids, evaluation, name=name, evaluation=True)
    loops = folder / "agent_loops.yaml"
    loops.write_text(yaml.safe_dump([{"name": "assay", "_target_": "trainer.verl.agent_loop.RecipeAgentLoop"}]))
    model, critic = (folder / "model").absolute(), (folder / "critic").absolute()
    eos_ids = write_starting_models(config, prepared, model, critic, resumes)
    evals = evaluation if prepared.evals else None
    checkpoints = (folder / "checkpoints").absolute()
    return Files(train, evals, model, loops, checkpoints, critic if config.critic is not None else None), eos_ids


def write_starting_models(
    config: Config, prepared: Prepared, folder: Path, of_critic: Path, resumes: bool
) -> tuple[int, ...]:
    """Write the policy that RL starts from, and beside it the critic, which starts as its copy with a head of zeros;
    returns the end-of-sequence ids. A warm start is ours, in this process, before Ray starts."""
    base = config.model_copy(update={"model": config.model.model_copy(update={"lora": None})})
    policy = load_policy(base.model, config.seed, torch.device("cpu"))
    if not (resumes and (folder / "config.json").exists()):
        learner = Learner(base, policy, torch.device("cpu"))
        if config.warm_start is not None:
            if config.hardware.threads is not None:
                torch.set_num_threads(config.hardware.threads)
            warm_start(learner, config.warm_start, prepared.demonstrations, config.seed, lambda step, metrics: None)
        folder.mkdir(parents=True, exist_ok=True)
        export_hf(folder, learner, prepared.tokenizer)
        if config.critic is not None:
            critic = Critic(base, model_setup(base, learner.device))
            critic.start_from(learner.weights())
            critic.export_hf(of_critic)
    return policy.eos_ids


def _environment(config: Config, folder: Path, done: int) -> dict[str, str]:
    """Of this process and of all of Ray's. verl's log begins anew in every process: each start has a file of its
    own."""
    folder = folder.absolute()
    out = {
        "VERL_FILE_LOGGER_PATH": str(folder / f"metrics_from_{done + 1}.jsonl"),
        "TENSORBOARD_DIR": str(folder / "tensorboard"),
    }
    if translate.on_cpu(config):
        out |= {
            "VERL_PLATFORM": "cpu",
            "OMP_NUM_THREADS": str(config.hardware.threads or 1),
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
    return out


def compose(values: dict[str, Any], overrides: list[str], environment: dict[str, str]) -> Any:
    """verl's configuration with these values by dotted key, then `overrides` (``key=value``, as on its command
    line)."""
    from hydra import compose as compose_hydra
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf, open_dict

    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base="1.3"):
        config = compose_hydra("ppo_trainer")
    own = OmegaConf.from_dotlist(overrides)
    with open_dict(config):
        for key, value in values.items():
            OmegaConf.update(config, key, value, force_add=True)
        OmegaConf.update(config, "ray_kwargs.ray_init.runtime_env.env_vars", environment, force_add=True)
        config.merge_with(own)
    return config


def _start(config: Any, path: Path) -> None:
    """verl's own entry, without its command line."""
    import ray
    from omegaconf import OmegaConf
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from trainer.verl import registered

    registered.check()
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    path.write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    try:
        run_ppo(config, task_runner_class=TaskRunnerV1)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AssayError):
            raise error.cause from error
        raise RunError(
            f"verl stopped: {error.cause!r}.",
            where=str(path.parent),
            why="the lines above are verl's own account of it",
            fix="verl.yaml there is the configuration that verl ran with",
        ) from error
    finally:
        ray.shutdown()
