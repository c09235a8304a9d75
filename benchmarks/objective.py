"""Time and memory of the objective's own code, as a share of a whole optimizer step.

One batch of trajectories on the `smollm2` model. The objective is what stands between log-probs and gradient: the
advantages, and in every micro-batch the policy loss, the mismatch weights and their diagnostics, forward and backward
down to the log-probs. It is timed inside a real `Learner.update`; the rest of the step is forward, head and backward of
the model and the optimizer. Its memory is what it keeps for its backward pass and returns, the most of any micro-batch,
counted from sizes, against the peak resident memory of the process.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Report, progress, show, spread, table
from benchmarks.worker import peak_mb, run_worker
from benchmarks.workload import recipe
from rollout.models import load_policy
from rollout.packing import PackedBatch
from rollout.trajectory import Finish, Trajectory
from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.config import Config
from trainer.learner import Learner, TokenLoss, TrainingBatch
from verifiers.options import parse_options

# objective -> overrides of the recipe
OBJECTIVES = {name: [f"objective={name}"] for name in ("grpo", "dr_grpo", "rloo", "dapo", "gspo", "cispo")}
OBJECTIVES["reinforce_pp"] = ["objective=reinforce_pp"]
OBJECTIVES["gmpo"] = ["objective.loss={kind: gmpo}", "objective.reduce=sequence"]
OBJECTIVES["sapo"] = ["objective.loss={kind: sapo}", "objective.reduce=sequence"]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--response-tokens", type=int, default=100)
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))


def run(options: argparse.Namespace, report: Report) -> None:
    names = ("threads", "prompts", "samples", "prompt_tokens", "response_tokens")
    asked = {name: getattr(options, name) for name in names}
    measured = []
    for number in range(1, options.rounds + 1):
        for name in options.objectives:
            result = run_worker("benchmarks.objective", asked | {"objective": name})
            measured.append({"round": number, "objective": name, **result})
            share = result["objective_seconds"] / result["seconds"]
            progress(f"objective round {number} {name}: {share:.2%} of {result['seconds']:.1f} s")
    body = {"settings": asked, "measurements": measured, "summary": summarise(measured)}
    report.write(body, tables(body))


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """For the worker: one warm-up step, one measured step."""
    torch.set_num_threads(options["threads"])
    config = recipe(*OBJECTIVES[options["objective"]])
    device = torch.device("cpu")
    learner = Learner(config, load_policy(config.model, config.seed, device), device)
    trajectories = make_trajectories(options, learner.policy.config.vocab_size)
    timer = Timer(learner)
    seconds = []
    for _ in range(2):
        timer.seconds = 0.0
        started = time.perf_counter()
        learner.update(timer.weigh(config, trajectories))
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[1], "objective_seconds": timer.seconds, "objective_mb": timer.bytes / 2**20,
            "peak_mb": peak_mb()}  # fmt: skip


class Timer:
    """Adds up the time of advantages and token losses; these are run a second time, apart from the model, forward and
    backward down to the log-probs."""

    def __init__(self, learner: Learner):
        self.seconds, self.bytes = 0.0, 0
        accumulate = learner.accumulate_gradient

        def watched(sequences: Any, weight_N: Tensor, token_loss: TokenLoss, keep: Any = None) -> dict[str, float]:
            return accumulate(sequences, weight_N, self.watch(token_loss), keep)

        learner.accumulate_gradient = watched  # type: ignore[method-assign]

    def weigh(self, config: Config, trajectories: list[Trajectory]) -> TrainingBatch:
        estimator = ADVANTAGES.get(config.objective.advantage.kind)
        chosen = parse_options(estimator.options, config.objective.advantage.options)
        length_N = torch.tensor([t.num_response_tokens for t in trajectories])
        reward_N = torch.rand(len(trajectories), generator=torch.Generator().manual_seed(0))
        started = time.perf_counter()
        inputs = AdvantageInputs(reward_N, torch.tensor([t.group for t in trajectories]), length_N)
        advantages = list(estimator.compute(inputs, chosen).split(length_N.tolist()))
        self.seconds += time.perf_counter() - started
        return TrainingBatch(trajectories, advantages, torch.ones(len(trajectories), dtype=torch.bool))

    def watch(self, token_loss: TokenLoss) -> TokenLoss:
        def watched(mb: PackedBatch, logp_R: Tensor, entropy_R: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            apart_R, held = logp_R.detach().requires_grad_(), 0

            def count(tensor: Tensor) -> Tensor:
                nonlocal held
                held += tensor.numel() * tensor.element_size()
                return tensor

            started = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                loss_R, diagnostics = token_loss(mb, apart_R, entropy_R)
            loss_R.sum().backward()
            self.seconds += time.perf_counter() - started
            held += sum(d.numel() * d.element_size() for d in (loss_R, *diagnostics.values()))
            self.bytes = max(self.bytes, held)
            return token_loss(mb, logp_R, entropy_R)

        return watched


def make_trajectories(options: dict[str, Any], vocabulary: int) -> list[Trajectory]:
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int) -> list[int]:
        return torch.randint(10, vocabulary, (n,), generator=generator).tolist()

    n = options["response_tokens"]
    return [
        Trajectory(
            example_id=f"p{g}", group=g, sample=s, prompt_ids=tokens(options["prompt_tokens"]), response_ids=tokens(n),
            logp_sampled=[-10.0] * n, logp_model=[-10.0] * n, finish=Finish.STOP, text="",
        )
        for g in range(options["prompts"])
        for s in range(options["samples"])
    ]  # fmt: skip


def summarise(measured: list[dict[str, Any]]) -> dict[str, Any]:
    summary = {}
    for name in dict.fromkeys(m["objective"] for m in measured):
        mine = [m for m in measured if m["objective"] == name]
        summary[name] = {
            "seconds": spread([m["seconds"] for m in mine]),
            "time_percent": spread([100 * m["objective_seconds"] / m["seconds"] for m in mine]),
            "memory_percent": spread([100 * m["objective_mb"] / m["peak_mb"] for m in mine]),
        }
    return summary


def tables(body: dict[str, Any]) -> str:
    rows = [
        [name, show(s["seconds"], 1), show(s["time_percent"], 3), show(s["memory_percent"], 4)]
        for name, s in body["summary"].items()
    ]
    return table(["objective", "seconds of a step", "objective code, % of the time", "% of the peak memory"], rows)
