"""The objective on one process and on two ranks: the same batch, dealt out by whole groups.

There is no distributed learner yet. What a rank does here is what one would have to do with the functions that exist:
add up the counts, weigh with them, sum the gradients; and gather the batch before the advantages.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from rollout.packing import PackedBatch
from rollout.trajectory import Trajectory
from tests.helpers import CPU, gradients, make_config, make_learner, random_trajectories, training_batch
from tests.trainer.advantages.batches import random_inputs, run, select
from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.learner import Learner, TrainingBatch
from trainer.losses.base import LOSSES, LossInputs
from trainer.objective import BatchCounts, Reduce, count_batch, rejection_mask, sequence_weights

OBJECTIVES = [(kind, reduce) for kind in LOSSES.names() for reduce in get_args(Reduce)]
GROUPS_OF_RANK = [(0,), (1, 2, 3)]  # of `standard_batch`
PROMPTS_OF_RANK = [(5,), (1, 9)]  # of `standard_inputs`


def make_policy() -> Any:
    """A small float64 policy, the same in every process."""
    return make_learner(double=True).policy


def make_objective(policy: Any, kind: str, reduce: str, max_tokens: int = 4096) -> Learner:
    """A float64 learner of `policy` whose objective rejects some tokens."""
    rejection = {"level": "token", "statistic": "k1", "lower": 0.05, "upper": 20.0}
    overrides = {
        "objective.loss": {"kind": kind},
        "objective.reduce": reduce,
        "objective.constant_tokens": 16 if reduce == "constant" else None,
        "objective.mismatch": {"rejection": rejection},
        "train.max_tokens_per_microbatch": max_tokens,
    }
    learner = Learner(make_config(overrides), policy, CPU)
    learner.compute_dtype = learner.packed.compute_dtype = torch.float64
    return learner


def standard_batch(policy: Any) -> TrainingBatch:
    """Four groups of two, one trajectory left out; old log-probs from which the policy has moved away."""
    batch = training_batch(random_trajectories(), included=[True] * 5 + [False] + [True] * 2)
    generator = torch.Generator().manual_seed(9)
    now = make_objective(policy, "ppo_clip", "token").logprobs(batch.trajectories)
    batch.old = [x + 0.3 * torch.randn(len(x), generator=generator, dtype=torch.float64) for x in now]
    return batch


def take(batch: TrainingBatch, index: list[int]) -> TrainingBatch:
    """The trajectories `index`, in this order."""
    assert batch.old is not None
    return TrainingBatch([batch.trajectories[i] for i in index], [batch.advantages[i] for i in index],
                         batch.included_N[index], [batch.old[i] for i in index])  # fmt: skip


def share(batch: TrainingBatch, rank: int) -> list[int]:
    return [i for i, t in enumerate(batch.trajectories) if t.group in GROUPS_OF_RANK[rank]]


def kept_tokens(learner: Learner, t: Trajectory, old: Tensor) -> Tensor:
    """bool [T_i]: what the rejection leaves of one response."""
    options = learner.config.objective.mismatch.rejection
    assert options is not None
    return rejection_mask(old - torch.tensor(t.logp_sampled), torch.zeros(len(old), dtype=torch.long), options)


def flat(named: dict[str, Tensor]) -> Tensor:
    return torch.cat([named[name].flatten() for name in sorted(named)])


def gradient_of_rank(learner: Learner, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """(loss, gradient) of the whole batch, from this rank's part of it."""
    old = batch.old
    assert old is not None
    keep = [kept_tokens(learner, t, o) for t, o in zip(batch.trajectories, old, strict=True)]
    length_N = torch.stack([k.sum() for k in keep])
    here = count_batch(length_N, batch.included_N)
    counts = torch.tensor([here.tokens, here.sequences])
    dist.all_reduce(counts)
    objective = learner.config.objective
    weight_N = sequence_weights(
        length_N, batch.included_N, objective.reduce, objective.constant_tokens, BatchCounts(*counts.tolist())
    )

    def token_loss(mb: PackedBatch, logp_R: Tensor, entropy_R: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        advantage_R = mb.flatten(batch.advantages).to(logp_R.dtype)
        inputs = LossInputs(logp_R, mb.flatten(old), advantage_R, mb.segment_R, mb.flatten(keep))
        return learner.loss.compute(inputs, learner.loss_options)

    sums = learner.accumulate_gradient(batch.trajectories, weight_N, token_loss, keep)
    loss, gradient = torch.tensor(sums["loss"], dtype=torch.float64), flat(gradients(learner))
    learner.optimizer.zero_grad(set_to_none=True)
    dist.all_reduce(loss)
    dist.all_reduce(gradient)
    return loss, gradient


# ---- advantages ----------------------------------------------------


def standard_inputs() -> AdvantageInputs:
    """With a reward of 0, which GPG counts."""
    inputs = random_inputs()
    inputs.reward_N[0] = 0
    return inputs


def joined(parts: list[AdvantageInputs]) -> AdvantageInputs:
    return AdvantageInputs(*(torch.cat([getattr(p, field.name) for p in parts]) for field in fields(AdvantageInputs)))


def prompts_of(inputs: AdvantageInputs, rank: int) -> list[int]:
    return [i for i, group in enumerate(inputs.group_N.tolist()) if group in PROMPTS_OF_RANK[rank]]


def gathered_advantages(kind: str, rank: int) -> Tensor:
    """The advantages [R] of this rank's trajectories: the statistics are taken over the gathered batch."""
    own = select(standard_inputs(), prompts_of(standard_inputs(), rank))
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    sizes = [int(p.length_N.sum()) for p in parts]
    return run(kind, joined(parts)).split(sizes)[rank]


# ---- the process of one rank ---------------------------------------


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank,
                            world_size=len(GROUPS_OF_RANK), timeout=timedelta(seconds=600))  # fmt: skip
    policy = make_policy()
    batch = standard_batch(policy)
    mine = take(batch, share(batch, rank))
    found = {
        "objectives": {o: gradient_of_rank(make_objective(policy, *o, max_tokens=40), mine) for o in OBJECTIVES},
        "advantages": {kind: gathered_advantages(kind, rank) for kind in ADVANTAGES.names()},
    }
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()
