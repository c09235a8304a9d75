"""PRIME: an outcome and a reward on every token, each centred on the other samples of the prompt, then added.

    A_t = sum over both sources of sum_{s >= t} gamma^(s - t) r'_s, whitened over the batch's tokens

With K samples of a prompt and mu_j the mean reward a token of sample j (of the outcome: the reward itself), r' is

    code     r'_{i,s} = (K r_{i,s} - sum_j mu_j) / (K - 1)
    paper    r'_{i,s} = r_{i,s} - sum_{j != i} mu_j / (K - 1)

on every token for the dense reward, on the last one for the outcome, where both forms are RLOO. For the dense reward
they differ by (r_{i,s} - mu_i) / (K - 1), which adds up to 0 over a response. `prime_grpo` divides by standard
deviations instead of leaving one out: of the outcomes, and of the mu_j. It is ours: the paper reports GRPO, the formula
was not to be found. A sample that lost the others of its prompt to faults of the verifier has nothing to be compared
with and gets 0; K = 1 is an error.

Paper: arXiv:2502.01456, algorithm 1, line 18 (not whitened). Reference: PRIME-RL/PRIME 18ad596f, `compute_rloo_returns`
(the code form, whitened); verl-project/verl-recipe 48ea0a79, prime/, `compute_rloo_advantage_return` (the same with
gammas of 1, and a factor for each source: here the source's weight).

Shapes: N trajectories; R response tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from trainer.advantages.base import (
    ADVANTAGES,
    AdvantageEstimator,
    AdvantageInputs,
    always,
    at_last_token,
    discounted_to_go,
    group_mean,
    group_std,
    group_sum,
    own_lengths,
    own_tokens,
    trajectory_index,
    whiten,
)
from trainer.advantages.rloo import RlooOptions, rloo_advantage
from verifiers.errors import ConfigError
from verifiers.options import Options


class PrimeGrpoOptions(Options):
    """gamma_outcome, gamma_process: discount a token of each source. eps: added to both standard deviations (the
    unbiased ones)."""

    gamma_outcome: float = Field(default=1.0, ge=0, le=1)
    gamma_process: float = Field(default=1.0, ge=0, le=1)
    eps: float = Field(default=1e-6, gt=0)


class PrimeRlooOptions(Options):
    """gamma_outcome, gamma_process: discount a token of each source. whiten: over the batch's tokens."""

    form: Literal["code", "paper"] = "code"
    gamma_outcome: float = Field(default=1.0, ge=0, le=1)
    gamma_process: float = Field(default=1.0, ge=0, le=1)
    whiten: bool = True


def mean_token_reward(inputs: AdvantageInputs) -> Tensor:
    """mu: the dense reward of each trajectory's own tokens, by their number, float64 [N]; 0 where there is none."""
    mu_N = torch.zeros(len(inputs.length_N), dtype=torch.float64, device=inputs.length_N.device)
    if inputs.token_reward_R is not None:
        own_R = own_tokens(inputs)
        mu_N.index_add_(0, trajectory_index(inputs.length_N)[own_R], inputs.token_reward_R[own_R].double())
    return mu_N / own_lengths(inputs).clamp(min=1)


def prime_rloo_return(inputs: AdvantageInputs, options: PrimeRlooOptions) -> Tensor:
    """The advantage before whitening [R], 0 outside the own tokens. Raises `ConfigError` for K = 1."""
    mu_N = mean_token_reward(inputs)
    size_N = group_sum(torch.ones_like(mu_N), inputs.group_N)
    if bool(inputs.length_N.any()) and bool((size_N < 2).all()):
        raise ConfigError("prime_rloo compares the samples of a prompt, and no prompt of this step has two.",
                          where="rollout.samples_per_prompt", fix="sample at least 2 a prompt")  # fmt: skip
    others_N, compared_N = (size_N - 1).clamp(min=1), (size_N > 1).double()
    total_N = group_sum(mu_N, inputs.group_N)
    scale_N = size_N / others_N if options.form == "code" else torch.ones_like(mu_N)
    shift_N = (total_N if options.form == "code" else total_N - mu_N) / others_N
    outcome_N = rloo_advantage(inputs.reward_N, inputs.group_N, RlooOptions(singleton="zero"))
    return _to_go(inputs, outcome_N, scale_N * compared_N, shift_N * compared_N, options)


def _rloo(inputs: AdvantageInputs, options: PrimeRlooOptions) -> Tensor:
    return_R = prime_rloo_return(inputs, options)
    return whiten(return_R, inputs) if options.whiten else return_R


def _grpo(inputs: AdvantageInputs, options: PrimeGrpoOptions) -> Tensor:
    mu_N, reward_N, group_N = mean_token_reward(inputs), inputs.reward_N, inputs.group_N
    mean_N, size_N = group_mean(reward_N, group_N)
    compared_N = (size_N > 1).to(reward_N.dtype)
    outcome_N = compared_N * (reward_N - mean_N) / (group_std(reward_N, group_N, 1) + options.eps)
    scale_N = compared_N / (group_std(mu_N, group_N, 1) + options.eps)
    return _to_go(inputs, outcome_N, scale_N, scale_N * group_mean(mu_N, group_N)[0], options)


def _to_go(
    inputs: AdvantageInputs, outcome_N: Tensor, scale_N: Tensor, shift_N: Tensor,
    options: PrimeRlooOptions | PrimeGrpoOptions,
) -> Tensor:  # fmt: skip
    """Discounted sums of the centred outcome, and of scale * dense reward - shift, on the own tokens [R]."""
    index_R = trajectory_index(inputs.length_N)
    dense_R = inputs.token_reward_R if inputs.token_reward_R is not None else torch.zeros_like(scale_N)[index_R]
    process_R = ((scale_N[index_R] * dense_R - shift_N[index_R]) * own_tokens(inputs)).to(outcome_N.dtype)
    return discounted_to_go(at_last_token(outcome_N, inputs), inputs, options.gamma_outcome) + discounted_to_go(
        process_R, inputs, options.gamma_process
    )


ADVANTAGES.register("prime_rloo")(
    AdvantageEstimator(
        PrimeRlooOptions, _rloo, uses_token_reward=True, uses_rewards_to_go=True, compares_samples=always
    )
)
ADVANTAGES.register("prime_grpo")(
    AdvantageEstimator(
        PrimeGrpoOptions, _grpo, uses_token_reward=True, uses_rewards_to_go=True, compares_samples=always
    )
)
