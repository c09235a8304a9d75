"""OREAL: behaviour cloning of correct responses, policy gradient on wrong ones, each class with a mean of its own.

    R_i = 2 r_i - 1                                              signed: the judge's -1 and 1
    A_i = R_i - mean_{j != i} R_j                                shaping=rloo
        = (R_i - mean_g) / (std_g + 1e-8)                        shaping=grpo
        = R_i                                                    shaping=none
    A_i = 1 for correct responses                                pos_mult_adv=false (the paper; the code multiplies)
    advantage = A_i * positive_coef * N / N+                     on a correct response's tokens
              = A_i * negative_coef * N / N-                     on a wrong one's

N+, N- and N count the tokens of correct, wrong and all responses *that take part in the loss*, over the whole batch;
A_i is relative to the whole group, whoever takes part. `objective.reduce=token` divides by N, so that the classes are
divided by N+ and N-. With the token weights of the source `token_credit` the gradient of

    L = - positive_coef / N+ sum_{+} A w+ logp - negative_coef / N- sum_{-} A w- exp(logp - logp.detach())
        + kl.coef / N sum KL

is that of `loss.kind=reinforce` (and, with one optimizer step on a batch, of ppo_clip) on these advantages. A response
without weight still counts in N+ or N-, so the step shrinks as the reward model is unsure.

Paper: arXiv:2502.06781, eq. 11 and 12. Reference: InternLM/OREAL 2859cc09, `train_oreal.py`. Its `kl_type` unbias is
k3, mse is k2; its `kl` is -k1, whose minimum is *away* from the reference, and is not offered.

Shapes: N trajectories.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from trainer.advantages.base import ADVANTAGES, AdvantageEstimator, AdvantageInputs, always, needed, own_lengths, spread
from trainer.advantages.grpo import GrpoOptions, grpo_advantage
from trainer.advantages.rloo import RlooOptions, rloo_advantage
from verifiers.options import Options


class OrealOptions(Options):
    """signed: rewards of 0 and 1 become -1 and 1, which doubles rloo's advantages and leaves grpo's. pos_mult_adv:
    correct responses are weighted by their advantage, too."""

    shaping: Literal["rloo", "grpo", "none"] = "rloo"
    signed: bool = True
    pos_mult_adv: bool = True
    positive_coef: float = Field(default=1.0, ge=0)
    negative_coef: float = Field(default=0.5, ge=0)


def oreal_advantage(inputs: AdvantageInputs, options: OrealOptions) -> Tensor:
    """A_i times the coefficient and N / N+ or N / N- of its class [N]."""
    correct_N = needed(inputs, "correct_N")
    reward_N = 2 * inputs.reward_N - 1 if options.signed else inputs.reward_N
    if options.shaping == "rloo":
        advantage_N = rloo_advantage(reward_N, inputs.group_N, RlooOptions())
    elif options.shaping == "grpo":
        advantage_N = grpo_advantage(reward_N, inputs.group_N, GrpoOptions(eps=1e-8))
    else:
        advantage_N = reward_N
    if not options.pos_mult_adv:
        advantage_N = torch.where(correct_N, 1.0, advantage_N)
    tokens_N = own_lengths(inputs)
    if inputs.included_N is not None:
        tokens_N = tokens_N * inputs.included_N
    total, positive = tokens_N.sum(), (tokens_N * correct_N).sum()
    share = [coef * total / tokens.clamp(min=1) for coef, tokens in
             ((options.positive_coef, positive), (options.negative_coef, total - positive))]  # fmt: skip
    return advantage_N * torch.where(correct_N, *share)


def _compute(inputs: AdvantageInputs, options: OrealOptions) -> Tensor:
    return spread(oreal_advantage(inputs, options), inputs)


ADVANTAGES.register("oreal")(AdvantageEstimator(OrealOptions, _compute, needs=("correct_N",), compares_samples=always))
