"""Worker of `grpo_step`: our steps, by the parts the loop uses."""

from __future__ import annotations

import random
import time
from typing import Any

import torch

from benchmarks.worker import peak_mb
from benchmarks.workload import recipe
from rollout.engine import Prompt, SamplingParams
from rollout.models import DTYPES, load_policy
from rollout.torch_engine import TorchEngine
from rollout.trajectory import Trajectory
from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.config import Config
from trainer.learner import Learner, TrainingBatch
from verifiers.options import parse_options


def measure(options: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(options["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)  # as `assay train` does on a CPU
    torch.utils.deterministic.fill_uninitialized_memory = False
    config = recipe(
        f"train.max_tokens_per_microbatch={options['max_tokens_per_microbatch']}",
        f"model.gradient_checkpointing={str(options['gradient_checkpointing']).lower()}",
        "optim.lr=1e-6",
        "optim.warmup_steps=0",
    )
    device = torch.device("cpu")
    policy = load_policy(config.model, config.seed, device)
    learner = Learner(config, policy, device)
    prompt_ids = [list(policy.tokenizer(p, add_special_tokens=False)["input_ids"]) for p in options["prompts"]]
    engine = TorchEngine(
        policy.config, policy.tokenizer, (), dtype=DTYPES[config.rollout.dtype], device=device,
        max_prompt_tokens=max(map(len, prompt_ids)), max_response_tokens=options["response_tokens"],
        max_rows=config.rollout.max_rows,
    )  # fmt: skip
    engine.load_weights(learner.weights(), version=0)
    rewards = random.Random(0)
    phases = []
    for step in range(options["steps"]):
        at = step * options["prompts_per_step"]
        prompts = [Prompt(f"prompt-{at + i}", i, prompt_ids[at + i]) for i in range(options["prompts_per_step"])]
        phases.append(_step(config, learner, engine, prompts, options, step, rewards))
    seconds = [sum(p.values()) for p in phases]
    return {"peak_mb": peak_mb(), "first_seconds": seconds[0], "seconds": seconds[1:],
            "phases": phases[1:]}  # fmt: skip


def _step(
    config: Config, learner: Learner, engine: TorchEngine, prompts: list[Prompt], options: dict[str, Any], step: int,
    rewards: random.Random,
) -> dict[str, float]:  # fmt: skip
    """Seconds of each phase."""
    started = time.perf_counter()
    trajectories = engine.generate(prompts, options["samples"], SamplingParams(options["response_tokens"]), seed=step)
    if any(t.num_response_tokens != options["response_tokens"] for t in trajectories):
        raise RuntimeError("a response ended early: the sides did not do the same work")
    sampled = time.perf_counter()
    learner_batch = _weigh(config, trajectories, torch.tensor([rewards.random() for _ in trajectories]))
    engine.sleep()
    learner.update(learner_batch)
    learnt = time.perf_counter()
    engine.load_weights(learner.weights(), version=step + 1)
    return {"sample": sampled - started, "learn": learnt - sampled, "sync": time.perf_counter() - learnt}


def _weigh(config: Config, trajectories: list[Trajectory], reward_N: torch.Tensor) -> TrainingBatch:
    part = config.objective.advantage
    estimator = ADVANTAGES.get(part.kind, key="objective.advantage.kind")
    length_N = torch.tensor([t.num_response_tokens for t in trajectories])
    inputs = AdvantageInputs(reward_N, torch.tensor([t.group for t in trajectories]), length_N)
    advantage_R = estimator.compute(inputs, parse_options(estimator.options, part.options, "objective.advantage"))
    included_N = torch.ones(len(trajectories), dtype=torch.bool)
    return TrainingBatch(trajectories, list(advantage_R.split(length_N.tolist())), included_N)
