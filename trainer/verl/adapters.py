"""assay's estimators and losses in the form in which verl calls its own: padded tensors in, padded tensors out.

Nothing is computed here. verl's tensors become the inputs of the registered function, and its result verl's tensors.

Shapes: B responses of a batch, padded to R tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from trainer.advantages.base import ADVANTAGES, AdvantageEstimator, AdvantageInputs
from trainer.losses.base import LOSSES, LossInputs
from verifiers.options import parse_options

PREFIX = "assay_"
OPTIONS_KEY = "assay"  # of verl's `algorithm`: the options of the estimator

# what verl hands to an estimator; those that need more run in the trainer `assay` only
GIVEN = {"correct_N", "baseline_N"}
# outcome and process reward are weighed apart, and verl's rewards hold only their sum
TELLS_REWARDS_APART = ("prime_rloo", "prime_grpo")

Aggregate = Callable[..., Tensor]


def plain_estimators() -> list[str]:
    """Kinds that plain verl can run: what they need is in the tensors that verl gives."""
    kinds = ADVANTAGES.names()
    return [k for k in kinds if set(ADVANTAGES.get(k).needs) <= GIVEN and k not in TELLS_REWARDS_APART]


def advantage_function(kind: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The estimator `kind` for verl's registry. Its options come from ``algorithm.assay``. Returns (advantages,
    returns), both [B, R]; returns are the advantages where there is no critic to be taught."""
    estimator = ADVANTAGES.get(kind)

    def compute(
        token_level_rewards: Tensor,
        response_mask: Tensor,
        index: Sequence[Any] | None = None,
        config: Any = None,
        reward_baselines: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        own = {} if config is None else config.get(OPTIONS_KEY) or {}
        options = parse_options(estimator.options, _plain(own), f"algorithm.{OPTIONS_KEY}")
        inputs = advantage_inputs(token_level_rewards, response_mask, index, estimator, reward_baselines)
        advantages = estimator.compute(inputs, options).view(response_mask.shape).to(token_level_rewards.dtype)
        return advantages, advantages

    return compute


def advantage_inputs(
    reward_BR: Tensor,
    mask_BR: Tensor,
    index: Sequence[Any] | None,
    estimator: AdvantageEstimator,
    baseline_B: Tensor | None = None,
) -> AdvantageInputs:
    """verl's batch as the estimators see one: every position is a token, those outside the mask are not the policy's.
    index: equal for samples of one prompt; None: every response is a prompt of its own."""
    B, R = mask_BR.shape
    names = list(range(B)) if index is None else list(index)
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    group_B = torch.tensor([numbers[name] for name in names], device=mask_BR.device)
    outcome_B = (reward_BR * mask_BR).sum(1)
    dense = estimator.uses_token_reward
    return AdvantageInputs(
        torch.zeros_like(outcome_B) if dense else outcome_B,
        group_B,
        torch.full((B,), R, device=mask_BR.device),
        token_reward_R=(reward_BR * mask_BR).flatten() if dense else None,
        mask_R=mask_BR.bool().flatten(),
        baseline_N=baseline_B,
        correct_N=outcome_B > 0,
    )


def loss_function(kind: str, agg_loss: Aggregate) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """The policy loss `kind` for verl's registry; `agg_loss` is verl's reduction, which its own setting
    ``loss_agg_mode`` chooses."""
    entry = LOSSES.get(kind)

    def compute(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        mask = response_mask.bool()
        segment_R = torch.arange(len(mask), device=mask.device)[:, None].expand(mask.shape)[mask]
        inputs = LossInputs(log_prob[mask], old_log_prob[mask], advantages[mask], segment_R)
        loss_R, diagnostics = entry.compute(inputs, loss_options(entry.options, config))  # type: ignore[arg-type]
        if rollout_is_weights is not None:
            loss_R = loss_R * rollout_is_weights[mask]
        loss_BR = torch.zeros(mask.shape, dtype=loss_R.dtype, device=mask.device).masked_scatter(mask, loss_R)
        batch = dict(config.global_batch_info) if config is not None else {}
        loss = agg_loss(loss_mat=loss_BR, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **batch)
        tokens = max(1, int(mask.sum()))
        return loss, {f"actor/{name}": float(values.detach().sum()) / tokens for name, values in diagnostics.items()}

    return compute


def loss_options(options: type[BaseModel], config: Any) -> BaseModel:
    """The loss's options from verl's actor settings of the same meaning; the others keep their defaults."""
    if config is None:
        return options()
    low, high = config.clip_ratio_low, config.clip_ratio_high
    known = {
        "clip_low": low,
        "clip_high": high,
        "min_ratio": 1 - low,
        "max_ratio": 1 + high,
        "dual_clip": config.clip_ratio_c,
        "tau_positive": config.tau_pos,
        "tau_negative": config.tau_neg,
    }
    clips = "clip_low" in options.model_fields  # where there are both, the ratios bound something else
    own = {n: float(v) for n, v in known.items() if n in options.model_fields and not (clips and "_ratio" in n)}
    return parse_options(options, own, "actor_rollout_ref.actor")


def _plain(values: Any) -> Any:
    """OmegaConf's containers as dicts and lists, without importing it."""
    if hasattr(values, "items"):
        return {str(k): _plain(v) for k, v in values.items()}
    return [_plain(v) for v in values] if isinstance(values, Sequence) and not isinstance(values, str) else values
