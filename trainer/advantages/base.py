"""What an advantage estimator gets and returns.

Shapes: N trajectories; R response tokens of all of them, end to end in trajectory order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from verifiers.options import Options
from verifiers.registry import Registry


@dataclass(frozen=True, slots=True)
class AdvantageInputs:
    """reward_N: the weighted sum of the sources' outcomes. group_N: int64, equal for samples of one prompt. length_N:
    int64 response lengths. token_reward_R: dense process reward, None when no source gives one."""

    reward_N: Tensor
    group_N: Tensor
    length_N: Tensor
    token_reward_R: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AdvantageEstimator:
    """options: the typed options of this kind. compute(inputs, options) -> advantage_R."""

    options: type[Options]
    compute: Callable[[AdvantageInputs, Options], Tensor]


ADVANTAGES: Registry[AdvantageEstimator] = Registry("advantage estimator", "trainer.advantages")


def group_mean(value_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean of the own group [N], size of the own group [N])."""
    _, index_N = torch.unique(group_N, return_inverse=True)
    groups = int(index_N.max()) + 1 if len(index_N) else 0
    size_P = torch.bincount(index_N, minlength=groups).to(value_N.dtype)
    sum_P = torch.zeros(groups, dtype=value_N.dtype, device=value_N.device).index_add_(0, index_N, value_N)
    return (sum_P / size_P)[index_N], size_P[index_N]
