"""What an advantage estimator gets and returns, and the sums, means and placements that several of them share.

Shapes: N trajectories; R response tokens of all of them, end to end in trajectory order; K reward streams.

Tokens outside `mask_R` (tool output) are not the policy's: every estimator gives them 0 and computes as if they were
not there. An estimator sees the whole batch of a step, so nothing depends on the split into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verifiers.errors import ConfigError
from verifiers.options import Options
from verifiers.registry import Registry


@dataclass(frozen=True, slots=True)
class AdvantageInputs:
    """reward_N: the weighted sum of the sources' outcomes. group_N: int64, equal for samples of one prompt. length_N:
    int64 response lengths. token_reward_R: dense process reward, None when no source gives one.

    mask_R: bool, the tokens the policy wrote; None: all. value_R: a critic's value before each token. baseline_N: the
    reward of a greedy response to the same prompt. stream_RK: rewards a token, one column for each source with a
    discount of its own, outcomes already at their last token (`at_last_token`). token_label_R: int64, classes of tokens
    that a source gave. correct_N: bool, who is right. included_N: bool, who takes part in the loss; None: all."""

    reward_N: Tensor
    group_N: Tensor
    length_N: Tensor
    token_reward_R: Tensor | None = None
    mask_R: Tensor | None = None
    value_R: Tensor | None = None
    baseline_N: Tensor | None = None
    stream_RK: Tensor | None = None
    token_label_R: Tensor | None = None
    correct_N: Tensor | None = None
    included_N: Tensor | None = None


def always(_: Options) -> bool:
    return True


def never(_: Options) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class AdvantageEstimator:
    """options: the typed options of this kind. compute(inputs, options) -> advantage_R, 0 outside mask_R.

    returns(inputs, options) -> what a critic should have predicted [R], for estimators with one. needs: the optional
    inputs that it cannot do without. uses_token_reward: whether token_reward_R changes the result. uses_rewards_to_go:
    whether a token answers only for the rewards from it on.

    By its options: compares_samples(options), whether it needs other samples of the prompt;
    teaches_from_flat_groups(options), whether groups of equal outcomes change the policy."""

    options: type[Options]
    compute: Callable[[AdvantageInputs, Any], Tensor]
    returns: Callable[[AdvantageInputs, Any], Tensor] | None = None
    needs: tuple[str, ...] = ()
    uses_token_reward: bool = False
    uses_rewards_to_go: bool = False
    compares_samples: Callable[[Any], bool] = never
    teaches_from_flat_groups: Callable[[Any], bool] = never

    @property
    def takes_rewards_by_token(self) -> bool:
        """Dense, or as columns of its reward streams."""
        return self.uses_token_reward or "stream_RK" in self.needs


ADVANTAGES: Registry[AdvantageEstimator] = Registry("advantage estimator", "trainer.advantages")


def needed(inputs: AdvantageInputs, field: str) -> Tensor:
    """The optional input `field`, or `ConfigError` if this run does not have it."""
    value = getattr(inputs, field)
    if value is None:
        raise ConfigError(f"This advantage estimator needs {field}, and the recipe does not produce it.",
                          where="objective.advantage.kind", fix="see the estimator's page in docs/methods")  # fmt: skip
    return value


# ---- groups --------------------------------------------------------


def group_sum(value_N: Tensor, group_N: Tensor) -> Tensor:
    """Sum over the own group, float64 [N]."""
    _, index_N = torch.unique(group_N, return_inverse=True)
    groups = int(index_N.max()) + 1 if len(index_N) else 0
    sum_P = torch.zeros(groups, dtype=torch.float64, device=value_N.device)
    return sum_P.index_add_(0, index_N, value_N.double())[index_N]


def group_mean(value_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean of the own group [N], size of the own group [N]). Summed in float64, so that the mean of equal
    float32 rewards is that reward and not a rounding error that a standard deviation of 0 would blow up."""
    size_N = group_sum(torch.ones_like(value_N), group_N)
    return (group_sum(value_N, group_N) / size_N).to(value_N.dtype), size_N.to(value_N.dtype)


def unequal_groups(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """bool [N]: whether the own group has more than one reward."""
    _, index_N = torch.unique(group_N, return_inverse=True)
    first_N = torch.zeros_like(reward_N).scatter_(0, index_N, reward_N)[index_N]  # any one of the group
    return group_sum((reward_N != first_N).double(), group_N) > 0


def group_baseline(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """The own group's mean [N]; 0 in a group of one, which has nothing to compare with."""
    mean_N, size_N = group_mean(reward_N, group_N)
    return torch.where(size_N > 1, mean_N, torch.zeros_like(mean_N))


def group_std(reward_N: Tensor, group_N: Tensor, ddof: int) -> Tensor:
    """The own group's standard deviation [N]; 1 in a group of one, as in verl."""
    mean_N, size_N = group_mean(reward_N, group_N)
    square_N, _ = group_mean((reward_N - mean_N) ** 2, group_N)
    std_N = (square_N * size_N / (size_N - ddof).clamp(min=1)).sqrt()
    return torch.where(size_N > 1, std_N, torch.ones_like(std_N))


# ---- tokens --------------------------------------------------------


def own_tokens(inputs: AdvantageInputs) -> Tensor:
    """bool [R]: the tokens the policy wrote."""
    if inputs.mask_R is not None:
        return inputs.mask_R.bool()
    return torch.ones(int(inputs.length_N.sum()), dtype=torch.bool, device=inputs.length_N.device)


def trajectory_index(length_N: Tensor) -> Tensor:
    """int64 [R]: the trajectory of each token."""
    return torch.arange(len(length_N), device=length_N.device).repeat_interleave(length_N)


def own_lengths(inputs: AdvantageInputs) -> Tensor:
    """int64 [N]: how many tokens of each trajectory the policy wrote."""
    zero_N = torch.zeros_like(inputs.length_N)
    return zero_N.index_add_(0, trajectory_index(inputs.length_N), own_tokens(inputs).to(zero_N.dtype))


def spread(advantage_N: Tensor, inputs: AdvantageInputs) -> Tensor:
    """One value a trajectory -> the same value on each of its own tokens, 0 on the others [R]."""
    return advantage_N.repeat_interleave(inputs.length_N) * own_tokens(inputs)


def at_last_token(value_N: Tensor, inputs: AdvantageInputs) -> Tensor:
    """One value a trajectory -> that value at its last own token, 0 elsewhere [R]. Not at the last position: a response
    may end in tool output. A trajectory without own tokens has no place for it."""
    own_R, index_R = own_tokens(inputs), trajectory_index(inputs.length_N)
    position_R = torch.arange(len(own_R), device=own_R.device)
    last_N = torch.full_like(inputs.length_N, -1).scatter_reduce_(0, index_R[own_R], position_R[own_R], "amax")
    out_R = torch.zeros(len(own_R), dtype=value_N.dtype, device=value_N.device)
    out_R[last_N[last_N >= 0]] = value_N[last_N >= 0]
    return out_R


def token_rewards(inputs: AdvantageInputs) -> Tensor:
    """Dense reward plus the outcome at the last own token [R]."""
    reward_R = at_last_token(inputs.reward_N, inputs)
    return reward_R if inputs.token_reward_R is None else reward_R + inputs.token_reward_R


def discounted_to_go(value_R: Tensor, inputs: AdvantageInputs, discount: float) -> Tensor:
    """x_t = value_t + discount * x_{t+1} over the own tokens of each trajectory, 0 elsewhere [R]."""
    own_R, length_N = own_tokens(inputs), own_lengths(inputs)
    out_R = torch.zeros_like(value_R)
    if not bool(own_R.any()):
        return out_R
    padded_NT = torch.nn.utils.rnn.pad_sequence(list(value_R[own_R].split(length_N.tolist())), batch_first=True)
    running_N = torch.zeros_like(padded_NT[:, 0])
    for t in reversed(range(padded_NT.shape[1])):
        running_N = padded_NT[:, t] + discount * running_N
        padded_NT[:, t] = running_N
    out_R[own_R] = padded_NT[torch.arange(padded_NT.shape[1], device=length_N.device) < length_N[:, None]]
    return out_R


def whiten(value_R: Tensor, inputs: AdvantageInputs) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) over the own tokens of the batch, 0 elsewhere [R]. The variance is unbiased,
    as in verl's `masked_whiten`; a single token, where verl raises, becomes 0."""
    own_R = own_tokens(inputs)
    out_R = torch.zeros_like(value_R)
    if int(own_R.sum()) > 1:
        own = value_R[own_R].double()  # as in group_mean: equal values must give 0
        out_R[own_R] = ((own - own.mean()) / (own.var(correction=1) + 1e-8).sqrt()).to(value_R.dtype)
    return out_R
