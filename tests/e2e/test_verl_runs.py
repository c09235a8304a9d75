"""Real runs of verl on the CPU: Ray, its trainer, its FSDP2 workers. What verl recorded of each step is then computed
again by assay's own session on the same trajectories, from the same starting weights.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from prm.cotrained import CoTrained
from prm.reward_model import FitContext, build, write_card
from prm.signal import Signal
from prm.verify_rm import VerifyRM
from rollout.models import load_tokenizer
from rollout.options import WriterConfig
from trainer.collect import Rollouts, informative_groups, total_outcome, wanted_groups
from trainer.compose import load_recipe, load_resolved
from trainer.config import Config
from trainer.loop import policy_waits_steps
from trainer.preflight import prepare
from trainer.session import Session, model_setup
from trainer.verl.run import write_starting_models
from trainer.weigh import credit, weigh

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("verl", "ray", "transfer_queue"))
        or "assay" not in {point.name for point in entry_points(group="verl.plugins")},
        reason="needs the extra verl, and assay installed",
    ),
]

SMALL = [
    "engine=verl", "hardware=cpu", "hardware.threads=1", "verl.record_tensors=true", "verl.ray_cpus=6",
    "verifier.workers=1", "warm_start.steps=60", "rollout.prompts_per_step=4", "rollout.samples_per_prompt=4",
    "rollout.max_response_tokens=24", "data.train.count=400", "data.eval=[]", "eval.every_steps=null",
    "optim.warmup_steps=0", "record.tensorboard=false",
]  # fmt: skip
TWO_RANKS = ["verl.processes_per_node=2", "verl.ray_cpus=10"]
PPO = ["objective=ppo", "critic.optim.lr=1e-3", "critic.warmup_steps=1", "objective.advantage.lam=0.9"]
PRIME = ["rollout.keep.oversample=1", "rollout.keep.put_back_surplus=false", "rollout.keep.pass_rate=null"]


def run(folder: Path, recipe: str, name: str, *overrides: str) -> Path:
    """`assay train` in a process of its own; the run's folder."""
    command = [sys.executable, "-m", "trainer.cli", "train", recipe, f"name={name}", f"run.dir={folder}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "RAY_worker_register_timeout_seconds": "900"}
    done = subprocess.run([*command, *SMALL, *overrides], env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / name


def metrics_of(path: Path) -> dict[int, dict[str, float]]:
    files = sorted((path / "verl").glob("metrics_from_*.jsonl"), key=lambda f: int(f.stem.rpartition("_")[2]))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["data"] for line in map(json.loads, lines)}


def as_assay_would(path: Path, folder: Path) -> Config:
    """The recipe of the run, started by assay's own loop from the weights that verl started from."""
    config = load_resolved(path / "resolved.yaml")
    model = config.model.model_copy(update={"path": str(path / "verl" / "model"), "scratch": None, "tokenizer": None})
    run = config.run.model_copy(update={"dir": str(folder)})
    return config.model_copy(update={"model": model, "engine": "assay", "warm_start": None, "run": run})


class Difference(dict[str, float]):
    """The largest absolute difference by what was compared."""

    def see(self, name: str, ours: Any, theirs: Any) -> None:
        of = torch.cat([torch.as_tensor(x).flatten().double() for x in ours])
        to = torch.cat([torch.as_tensor(x).flatten().double() for x in theirs])
        assert of.shape == to.shape, name
        self[name] = max(self.get(name, 0.0), float((of - to).abs().max()))


def compare(path: Path, folder: Path, steps: int) -> Difference:
    """Every step of the run again, in assay's session: verdicts, rewards of tokens, values, advantages, losses and
    gradients, and by the next step's log-probs and values the weights that came of them."""
    difference, metrics = Difference(), metrics_of(path)
    with Session(as_assay_would(path, folder)) as session:
        config, learner = session.config, session.learner
        learner.freeze_reference()
        for part in (*session.sources, *([session.critic] if session.critic is not None else [])):
            part.start_from(learner.weights())
        examples = {e.id: e for e in session.prepared.train}
        for step in range(1, steps + 1):
            seen = torch.load(path / "verl" / "tensors" / f"step_{step}.pt", weights_only=False)
            trajectories = seen["trajectories"]
            difference.see(f"log-probs, step {step}", learner.logprobs(trajectories), seen["old"])
            difference.see("log-probs as sampled", [t.logp_sampled for t in trajectories], seen["old"])
            asked = [examples[t.example_id] for t in trajectories]
            judged = [
                s.score(trajectories, asked) if s.phase == "judge" else Signal.silent(len(trajectories))
                for s in session.sources
            ]
            difference.see("rewards", [judged[0].outcome_N], [[v.score for v in seen["verdicts"]]])
            reward_N = total_outcome(judged, [part.weight for part in config.sources])
            groups, _ = informative_groups(trajectories, reward_N, config.objective.zero_variance.drop)
            groups, _ = wanted_groups(trajectories, judged[0].labels["verdict"], groups, config.rollout.keep)
            index = [i for group in groups for i in group]
            assert index == seen["kept"]
            rollouts = Rollouts(trajectories, asked, judged, reward_N, index, 0, len(groups), 0)
            kept = rollouts.what_is_kept(step - 1)
            signals = credit(session, rollouts, kept)
            for signal, outcome_N, theirs in zip(signals, seen["outcome"], seen["token_reward"], strict=True):
                difference.see(f"outcomes, step {step}", [signal.outcome_N], [outcome_N])
                if signal.token_reward is not None:
                    difference.see(f"token rewards, step {step}", signal.token_reward, theirs)
            batch, _ = weigh(session, kept, signals)
            advantages: list[Tensor] = [seen["advantages"][i] for i in index]
            difference.see(f"advantages, step {step}", batch.advantages, advantages)
            if session.critic is not None:
                for name, ours in (("values", batch.values), ("returns", batch.returns)):
                    difference.see(f"{name}, step {step}", ours, [seen[name][i] for i in index])
            learns = index and step > policy_waits_steps(session)
            updated = {"actor": learner.update(batch)} if learns else {}
            if index and session.critic is not None:
                updated["critic"] = session.critic.update(batch)
            for name in ("actor", "critic"):  # who waits, waits in both
                assert (name in updated) == (f"{name}/grad_norm" in metrics[step])
            for part, source, signal in zip(config.sources, session.sources, signals, strict=True):
                for name, value in source.learn(kept, signal).items():
                    if name in ("loss", "grad_norm"):
                        difference.see(f"{name} of {part.kind}, step {step}", [value],
                                       [metrics[step][f"{part.kind}/{name}"]])  # fmt: skip
            for name, found in updated.items():
                for what in ("loss", "grad_norm"):
                    theirs = metrics[step][f"{name}/{what}"]
                    difference.see(f"{what} of {name}, step {step}", [found[what]], [theirs])
    return difference


def assert_close(difference: Difference) -> None:
    """The first step's numbers come from the same weights; what follows has gone through Adam, which turns rounding in
    tiny gradients into steps of the size of the learning rate."""
    first = {n: d for n, d in difference.items() if "step" not in n or n.endswith("step 1")}
    assert max(first.values()) < 1e-5, difference
    assert max(difference.values()) < 1e-3, difference


def test_grpo_in_verl_is_grpo_in_assay(tmp_path: Path) -> None:
    path = run(tmp_path / "runs", "quickstart", "grpo", "train.steps=3")
    assert sorted(metrics_of(path)) == [1, 2, 3]
    assert_close(compare(path, tmp_path / "again", 3))


@pytest.mark.parametrize(("recipe", "overrides"), [("quickstart", []), ("prime_chain", PRIME)])
def test_two_processes_in_verl_are_one_in_assay(recipe: str, overrides: list[str], tmp_path: Path) -> None:
    path = run(tmp_path / "runs", recipe, "two", *overrides, *TWO_RANKS, "train.steps=2")
    assert_close(compare(path, tmp_path / "again", 2))


def test_ppo_in_verl_is_ppo_in_assay_and_its_critic_is_resumed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    path = run(runs, "quickstart", "ppo", *PPO, "train.steps=2", "checkpoint.every_steps=2")
    run(runs, "quickstart", "ppo", *PPO, "train.steps=3", "checkpoint.every_steps=2")
    assert sorted(metrics_of(path)) == [1, 2, 3]
    assert_close(compare(path, tmp_path / "again", 3))


def test_prime_in_verl_is_prime_in_assay_and_its_prm_is_resumed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    path = run(runs, "prime_chain", "prime", *PRIME, "train.steps=2", "checkpoint.every_steps=2")
    assert (path / "verl" / "checkpoints" / "global_step_2" / "implicit").is_dir()
    run(runs, "prime_chain", "prime", *PRIME, "train.steps=3", "checkpoint.every_steps=2")
    assert max(metrics_of(path)) == 3
    assert_close(compare(path, tmp_path / "again", 3))


def trained_models(folder: Path) -> tuple[Path, Path]:
    """Folders of a VerifyRM and of a scorer of steps, as random as they were made."""
    config = load_recipe("quickstart", ["hardware=cpu"])
    setup, tokenizer = model_setup(config, torch.device("cpu")), load_tokenizer(config.model)
    verify, steps = folder / "verify", folder / "steps"
    context = FitContext(tokenizer, config.template, 128, 0, WriterConfig())
    reward_model = VerifyRM(VerifyRM.Options(), context)
    for path, model in ((verify, build(reward_model, setup, None)), (steps, CoTrained(setup, "scalar", None))):
        path.mkdir(parents=True)
        model.export_hf(path)
    tokenizer.save_pretrained(verify)
    write_card(verify, "verify_rm", reward_model)
    return verify, steps


def test_models_judge_credit_and_learn_in_verl_as_in_assay_and_are_resumed(tmp_path: Path) -> None:
    verify, steps = trained_models(tmp_path)
    sources = (
        f"sources=[{{kind: rule}}, {{kind: verify_rm, path: {verify}, weight: 0.3}}, "
        f"{{kind: cooper, path: {verify}, weight: 0.2, optim: {{lr: 1e-3}}, assistant: {{kind: corrupt}}}}, "
        f"{{kind: step_prm, path: {steps}, weight: 0.5, refine: {{kind: clip, eta: running_mean}}}}]"
    )
    what = (tmp_path / "runs", "quickstart", "beside", "objective=returns_to_go", sources, "checkpoint.every_steps=2")
    path = run(*what, "train.steps=2")
    run(*what, "train.steps=3")
    difference = compare(path, tmp_path / "again", 3)
    assert any(name.startswith("loss of cooper") for name in difference)
    assert_close(difference)


# verl's own command, as in docs/verl.md ("The plugin without assay's command"), and what the CPU needs beside it
PLAIN = [
    "algorithm.adv_estimator=assay_rloo", "+algorithm.assay.singleton=zero",
    "actor_rollout_ref.actor.policy_loss.loss_mode=assay_cispo", "actor_rollout_ref.actor.clip_ratio_high=4.0",
    "reward.custom_reward_function.path=pkg://verifiers.adapters.verl",
    "reward.custom_reward_function.name=compute_score", "+reward.custom_reward_function.reward_kwargs.kind=exact",
    "+reward.custom_reward_function.reward_kwargs.options={marker: '#'}",
]  # fmt: skip
ON_CPU = [
    "data.train_batch_size=4", "data.max_prompt_length=16", "data.max_response_length=24",
    "data.dataloader_num_workers=0", "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.actor.use_dynamic_bsz=True",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=4096", "actor_rollout_ref.actor.use_torch_compile=False",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False", "actor_rollout_ref.model.use_remove_padding=False",
    "+actor_rollout_ref.model.override_config.attn_implementation=sdpa", "actor_rollout_ref.rollout.name=assay_cpu",
    "actor_rollout_ref.rollout.n=4", "actor_rollout_ref.rollout.load_format=auto",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=1", "actor_rollout_ref.rollout.max_num_seqs=64",
    "actor_rollout_ref.rollout.agent.num_workers=1", "critic.enable=False", "reward.num_workers=1",
    "trainer.device=cpu", "trainer.nnodes=1", "trainer.n_gpus_per_node=1", "trainer.total_training_steps=2",
    "trainer.save_freq=-1", "trainer.test_freq=-1", "trainer.val_before_train=False", "trainer.logger=[file]",
    "ray_kwargs.ray_init.num_cpus=8", "+ray_kwargs.ray_init.num_gpus=1", "+ray_kwargs.ray_init.include_dashboard=False",
    "+ray_kwargs.ray_init.object_store_memory=500000000",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
]  # fmt: skip


def test_verls_own_command_trains_with_our_estimator_loss_and_verifier(tmp_path: Path) -> None:
    config = load_recipe("quickstart", [*SMALL, f"run.dir={tmp_path}"])
    prepared = prepare(config)
    prepared.runner.close()
    model = tmp_path / "model"
    write_starting_models(config, prepared, model, tmp_path / "critic", resumes=False)
    tokenizer = load_tokenizer(config.model)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(model)
    rows = [
        {"data_source": "chain", "prompt": [{"role": m.role, "content": m.content} for m in e.prompt],
         "reward_model": {"style": "rule", "ground_truth": e.gold}, "extra_info": {"index": i}}
        for i, e in enumerate(prepared.train[:32])
    ]  # fmt: skip
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    data = [f"data.{side}_files={tmp_path / 'train.parquet'}" for side in ("train", "val")]
    log = tmp_path / "metrics.jsonl"
    environment = os.environ | {
        "VERL_PLATFORM": "cpu", "VERL_FILE_LOGGER_PATH": str(log), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_worker_register_timeout_seconds": "900",
    }  # fmt: skip
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *PLAIN, *ON_CPU, *data,
               f"actor_rollout_ref.model.path={model}"]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [json.loads(line)["data"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(steps) == 2
    thirds = {k / 3 for k in range(-3, 4)}  # a group of four, rewards 0 and 1: R - mean of the other three
    for found in steps:
        assert 0 < found["critic/score/mean"] < 1
        for end in ("min", "max"):
            assert min(abs(found[f"critic/advantages/{end}"] - third) for third in thirds) < 1e-5
        assert found["actor/grad_norm"] > 0
        assert "actor/clip_fraction" in found  # assay's name, of its cispo
