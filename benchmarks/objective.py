"""Time and memory of the objective's own code, as a share of a whole optimizer step.

The step is a real `Learner.update` on made-up trajectories of a recipe's size, without rollouts and verification, whose
time would only make the share smaller. The objective is what stands between log-probs and gradient: advantages, the
correction over the batch, weights of the reduction, and in every micro-batch the policy loss, mismatch weights, KL,
weighted sum and means of the diagnostics, forward and backward down to the log-probs. The forward pass of the KL's
reference belongs to the rest of the step.

Time: the objective is run a second time, apart from the model, and that time is not part of the step's. Memory: every
tensor that it makes in a micro-batch, as if none were ever freed, against what a step adds to the resident memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import trainer.learner
from benchmarks.report import Report, progress, show, spread, table
from benchmarks.worker import peak_mb, resident_mb, run_worker
from rollout.models import load_policy
from rollout.packing import PackedBatch
from rollout.trajectory import Finish, Trajectory
from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.compose import load_recipe
from trainer.config import Config
from trainer.learner import Learner, TokenLoss, TrainingBatch
from verifiers.options import parse_options


@dataclass(frozen=True, slots=True)
class Size:
    """One batch. steps: how many are timed."""

    prompts: int
    samples: int
    prompt_tokens: int
    response_tokens: int
    steps: int


RECIPES = {"quickstart": Size(32, 8, 12, 24, 3), "smollm2_mawps": Size(2, 4, 50, 50, 1)}

_WITHOUT_CLIP = ["~objective.loss.clip_low", "~objective.loss.clip_high"]
# objective -> overrides of the recipe
OBJECTIVES = {name: [f"objective={name}"] for name in ("grpo", "dr_grpo", "rloo", "reinforce_pp", "ppo", "dapo")}
OBJECTIVES |= {name: [f"objective={name}"] for name in ("gspo", "cispo")}
OBJECTIVES["gmpo"] = ["objective.loss.kind=gmpo", "objective.reduce=sequence"]
OBJECTIVES["sapo"] = ["objective.loss.kind=sapo", *_WITHOUT_CLIP, "objective.reduce=sequence"]
OBJECTIVES["grpo, k3 in the loss"] = ["objective.kl={coef: 0.001, estimator: k3}"]
OBJECTIVES["grpo, mismatch over the batch"] = [
    "objective.mismatch={kind: truncated, level: sequence, normalise: token, "
    "rejection: {level: sequence_mean, statistic: k3, upper: 1e9}}"
]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))


def run(options: argparse.Namespace, report: Report) -> None:
    measured = []
    for number in range(1, options.rounds + 1):
        for recipe in options.recipes:
            asked = {"threads": options.threads, "recipe": recipe, "objectives": options.objectives}
            for m in run_worker("benchmarks.objective", asked)["measurements"]:
                measured.append({"round": number, "recipe": recipe, **m})
    sizes = {r: {n: getattr(RECIPES[r], n) for n in Size.__slots__} for r in options.recipes}
    body = {"settings": {"threads": options.threads, "recipes": sizes}, "measurements": measured,
            "summary": summarise(measured)}  # fmt: skip
    report.write(body, tables(body))


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """For the worker: the timed steps of every objective; seconds are those of one step. Before them a step that warms
    up, and whose memory stands for all."""
    torch.set_num_threads(options["threads"])
    size, device, watch = RECIPES[options["recipe"]], torch.device("cpu"), Watch()
    made: list[dict[str, Any]] = []
    policy, added_mb = None, 0.0
    for name in options["objectives"]:
        config = load_recipe(options["recipe"], ["rollout.temperature=1.0", *OBJECTIVES[name]])
        policy = policy or load_policy(config.model, config.seed, device)
        learner = Learner(config, policy, device)
        learner.freeze_reference()
        watch.attach(learner)
        trajectories = make_trajectories(size, policy.config.vocab_size)
        if not made:
            before_mb = resident_mb()
            learner.update(watch.weigh(config, trajectories))
            added_mb = peak_mb() - before_mb
        watch.seconds = watch.apart_seconds = 0.0
        watch.bytes = 0
        started = time.perf_counter()
        for _ in range(size.steps):
            learner.update(watch.weigh(config, trajectories))
        seconds = (time.perf_counter() - started - watch.apart_seconds) / size.steps
        made.append({"objective": name, "seconds": seconds, "objective_seconds": watch.seconds / size.steps,
                     "objective_mb": watch.bytes / 2**20, "added_mb": added_mb})  # fmt: skip
        progress(f"objective {options['recipe']} {name}: {watch.seconds / size.steps / seconds:.2%} of {seconds:.2f} s")
    return {"measurements": made}


class Watch:
    """seconds: of the objective. apart_seconds: of what the learner did not ask for. bytes: of all tensors made in one
    micro-batch, the most of any."""

    def __init__(self) -> None:
        self.seconds, self.apart_seconds, self.bytes = 0.0, 0.0, 0
        for name in ("sequence_weights", "mismatch_correction"):
            setattr(trainer.learner, name, self.timed(getattr(trainer.learner, name)))

    def attach(self, learner: Learner) -> None:
        accumulate = learner.accumulate_gradient

        def watched(sequences: Any, weight_N: Tensor, token_loss: TokenLoss, *others: Any, **named: Any) -> Any:
            return accumulate(sequences, weight_N, self.watch(token_loss, weight_N), *others, **named)

        learner.accumulate_gradient = watched  # type: ignore[method-assign]

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - started
            return result

        return watched

    def weigh(self, config: Config, trajectories: list[Trajectory]) -> TrainingBatch:
        estimator = ADVANTAGES.get(config.objective.advantage.kind)
        chosen = parse_options(estimator.options, config.objective.advantage.options)
        length_N = torch.tensor([t.num_response_tokens for t in trajectories])
        generator = torch.Generator().manual_seed(0)
        reward_N = torch.rand(len(trajectories), generator=generator)
        value_R = torch.rand(int(length_N.sum()), generator=generator)
        group_N = torch.tensor([t.group for t in trajectories])
        advantage_R = self.timed(estimator.compute)(
            AdvantageInputs(reward_N, group_N, length_N, value_R=value_R), chosen
        )
        advantages = list(advantage_R.split(length_N.tolist()))
        return TrainingBatch(trajectories, advantages, torch.ones(len(trajectories), dtype=torch.bool))

    def watch(self, token_loss: TokenLoss, weight_N: Tensor) -> TokenLoss:
        def apart(mb: PackedBatch, logp_R: Tensor, entropy_R: Tensor) -> None:
            """What the learner does between log-probs and gradient."""
            loss_R, diagnostics = token_loss(mb, logp_R, entropy_R)
            counts = torch.bincount(mb.segment_R, minlength=len(mb.sequence_index))
            weight_R = weight_N[mb.sequence_index].repeat_interleave(counts)
            loss = torch.where(weight_R > 0, loss_R * weight_R.to(loss_R.dtype), 0.0).sum()
            float(loss.detach())
            loss.backward()
            counted_R = weight_R > 0
            for values_R in diagnostics.values():
                float((values_R.detach() * counted_R).sum())

        def watched(mb: PackedBatch, logp_R: Tensor, entropy_R: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            started = time.perf_counter()
            self.timed(apart)(mb, logp_R.detach().requires_grad_(), entropy_R)
            with MadeTensors() as made:
                apart(mb, logp_R.detach().requires_grad_(), entropy_R)
            self.bytes = max(self.bytes, made.bytes())
            self.apart_seconds += time.perf_counter() - started
            return token_loss(mb, logp_R, entropy_R)

        return watched


class MadeTensors(TorchDispatchMode):
    """Keeps the storage of every tensor that an operation returns, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = storage
        return result

    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())


def make_trajectories(size: Size, vocabulary: int) -> list[Trajectory]:
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int) -> list[int]:
        return torch.randint(10, vocabulary, (n,), generator=generator).tolist()

    n = size.response_tokens
    return [
        Trajectory(
            example_id=f"p{g}", group=g, sample=s, prompt_ids=tokens(size.prompt_tokens), response_ids=tokens(n),
            logp_sampled=[-10.0] * n, logp_model=[-10.0] * n, finish=Finish.STOP, text="",
        )
        for g in range(size.prompts)
        for s in range(size.samples)
    ]  # fmt: skip


def summarise(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    summary = []
    for recipe, name in dict.fromkeys((m["recipe"], m["objective"]) for m in measured):
        mine = [m for m in measured if (m["recipe"], m["objective"]) == (recipe, name)]
        summary.append({
            "recipe": recipe,
            "objective": name,
            "seconds": spread([m["seconds"] for m in mine]),
            "time_percent": spread([100 * m["objective_seconds"] / m["seconds"] for m in mine]),
            "objective_mb": spread([m["objective_mb"] for m in mine]),
            "memory_percent": spread([100 * m["objective_mb"] / m["added_mb"] for m in mine]),
        })  # fmt: skip
    return summary


def tables(body: dict[str, Any]) -> str:
    rows = [
        [s["recipe"], s["objective"], show(s["seconds"], 2), show(s["time_percent"], 3), show(s["objective_mb"], 2),
         show(s["memory_percent"], 3)]
        for s in body["summary"]
    ]  # fmt: skip
    return table(
        ["recipe", "objective", "seconds of an optimizer step", "objective code, % of the time", "its tensors, MB",
         "% of what the step adds to the memory"],
        rows,
    )  # fmt: skip
