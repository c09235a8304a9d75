"""AdamW with its schedule, for the policy and for every model that learns beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from rollout.options import OptimConfig
from rollout.sharding import full
from verifiers.errors import RunError


class NonFiniteError(RunError):
    """A loss or gradient is NaN or infinite; `sequences` are the indices of the micro-batch it came from."""

    def __init__(self, what: str, sequences: list[int]):
        self.sequences = sequences
        super().__init__(
            f"{what} is not finite.",
            why="a step would destroy the weights; they are as they were before this optimizer step",
            fix="look at the bundle with `assay replay BUNDLE`; usual causes: learning rate too high, a log-prob of "
            "-inf under the learner, half precision overflow",
        )


def learning_rate(optim: OptimConfig, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up, then constant or cosine down to min_lr_ratio."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * cosine)


def make_adamw(parameters: Sequence[nn.Parameter], optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only, not norms and biases."""
    decay, plain = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=all(p.device.type in ("cpu", "cuda") for p in parameters),
    )


def clip_and_step(
    parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, optim: OptimConfig, step: int, total: int
) -> dict[str, float] | None:
    """Clip the gradient and take optimizer step `step` (from 0) of `total`; return its norm before clipping and the
    learning rate. None if the norm is not finite: nothing was changed, the gradient is gone."""
    lr = learning_rate(optim, step, total)
    for group in optimizer.param_groups:
        group["lr"] = lr
    grad_norm = float(full(torch.nn.utils.clip_grad_norm_(parameters, optim.grad_clip)))
    if math.isfinite(grad_norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": grad_norm, "lr": lr} if math.isfinite(grad_norm) else None
