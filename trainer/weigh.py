"""Rewards -> advantages: shaping, then the estimator, for the trajectories that are trained on.

Shapes: N trajectories; R response tokens of all of them, end to end; K reward streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prm.signal import Kept, Signal
from rollout.trajectory import Finish, Trajectory
from trainer.advantages.base import AdvantageInputs, at_last_token
from trainer.collect import Rollouts
from trainer.learner import TrainingBatch
from trainer.objective import kl_penalty, kl_reward, needs_reference, soft_overlong_penalty
from trainer.shaping.base import ShapingInputs

if TYPE_CHECKING:
    from trainer.session import Session


def credit(session: Session, rollouts: Rollouts, kept: Kept) -> list[Signal]:
    """What every source says about the kept trajectories: the judging sources have said it, the others are asked."""
    signals = [s.select(rollouts.kept) for s in rollouts.signals]
    if not kept.trajectories:
        return signals
    return [
        source.credit(kept) if source.phase == "credit" else signal
        for source, signal in zip(session.sources, signals, strict=True)
    ]


def weigh(session: Session, kept: Kept, signals: Sequence[Signal]) -> tuple[TrainingBatch, dict[str, float]]:
    """The kept trajectories with their advantages, and what shaping did to the rewards (metrics)."""
    trajectories = kept.trajectories
    if not trajectories:
        return TrainingBatch([], [], torch.ones(0, dtype=torch.bool)), {}
    length_N = kept.length_N
    reward_N = kept.outcome_N
    for source, part, signal in zip(session.sources, session.config.sources, signals, strict=True):
        if source.phase == "credit":
            reward_N = reward_N + part.weight * signal.outcome_N
    inputs = AdvantageInputs(reward_N, kept.group_N, length_N, baseline_N=kept.baseline_N)
    kl_R, old, metrics = kl_in_reward(session, trajectories)
    inputs, shaping = shaped(session, inputs, kept, signals, kl_R)
    included_N = included(session, trajectories, signals)
    inputs = replace(inputs, correct_N=kept.correct_N, included_N=included_N)
    values, returns = [], []
    if session.critic is not None:
        values = session.critic.values(trajectories)
        inputs = replace(inputs, value_R=torch.cat(values))
        assert session.advantage.returns is not None
        return_R = session.advantage.returns(inputs, session.advantage_options)
        returns = list(return_R.split(length_N.tolist()))
    advantage_R = session.advantage.compute(inputs, session.advantage_options)
    for signal in signals:
        if signal.token_weight is not None:
            advantage_R = advantage_R * torch.cat(signal.token_weight)
    advantages = list(advantage_R.split(length_N.tolist()))
    batch = TrainingBatch(trajectories, advantages, included_N, old, values, returns)
    return batch, metrics | shaping


def included(session: Session, trajectories: Sequence[Trajectory], signals: Sequence[Signal]) -> Tensor:
    """bool [N]: who takes part in the loss."""
    included_N = torch.ones(len(trajectories), dtype=torch.bool)
    if session.config.objective.overlong.kind == "mask":
        included_N = torch.tensor([t.finish != Finish.LENGTH for t in trajectories], dtype=torch.bool)
    for signal in signals:
        if signal.included_N is not None:
            included_N = included_N & signal.included_N
    return included_N


def kl_in_reward(
    session: Session, trajectories: Sequence[Trajectory]
) -> tuple[Tensor | None, list[Tensor] | None, dict[str, float]]:
    """(the KL as a reward on each token [R], the learner's log-probs that it was taken from, metrics); nothing unless
    the recipe puts the KL there."""
    kl = session.config.objective.kl
    if not needs_reference(kl) or kl.place != "reward":
        return None, None, {}
    learner = session.learner
    old = learner.logprobs(trajectories)
    old_R, reference_R = torch.cat(old), torch.cat(learner.reference_logprobs(trajectories))
    measured = float(kl_penalty(old_R, reference_R, kl.estimator).double().mean())
    reward_R = kl_reward(old_R, reference_R, learner.kl_coef, kl.estimator)
    coef = {f"policy/{name}": value for name, value in learner.adapt_kl(measured, len(trajectories)).items()}
    return reward_R, old, {"policy/kl_reference": measured} | coef


def shaped(
    session: Session,
    inputs: AdvantageInputs,
    kept: Kept,
    signals: Sequence[Signal],
    kl_R: Tensor | None,
) -> tuple[AdvantageInputs, dict[str, float]]:
    """The inputs with every reward in them: what the sources gave, then each shaping in the recipe's order, then the
    soft length penalty and the KL. A stream is one source, one shaping (the difference that it made), or the KL."""
    config = session.config
    before = inputs.reward_N
    streams = [
        (part.weight * s.outcome_N, None if s.token_reward is None else part.weight * torch.cat(s.token_reward))
        for s, part in zip(signals, config.sources, strict=True)
    ]
    reward_N = before.clone()
    for shaping, options in session.shapings:
        asked = ShapingInputs(
            reward_N,
            kept.correct_N,
            inputs.group_N,
            [t.response_ids for t in kept.trajectories],
            config.rollout.max_response_tokens,
        )
        made = shaping.compute(asked, options)
        streams.append((made.reward_N - reward_N, made.token_reward_R))
        reward_N = made.reward_N
    reward_N = reward_N + overlong_penalty(session, kept.trajectories)
    if kl_R is not None and session.advantage.takes_rewards_by_token:
        streams.append((torch.zeros_like(reward_N), kl_R))
    elif kl_R is not None:
        reward_N = reward_N + torch.stack([part.sum() for part in kl_R.split(inputs.length_N.tolist())])
    dense = [token_R for _, token_R in streams if token_R is not None]
    token_reward_R = torch.stack(dense).sum(0) if dense else None
    stream_RK = None
    if "stream_RK" in session.advantage.needs:
        stream_RK = torch.stack([stream(outcome_N, token_R, inputs) for outcome_N, token_R in streams], 1)
    metrics = {"reward/shaped_mean": float(reward_N.double().mean())} if not torch.equal(reward_N, before) else {}
    full = replace(
        inputs,
        reward_N=reward_N,
        token_reward_R=token_reward_R,
        stream_RK=stream_RK,
        token_label_R=next((torch.cat(s.token_label) for s in signals if s.token_label is not None), None),
    )
    return full, metrics


def stream(outcome_N: Tensor, token_reward_R: Tensor | None, inputs: AdvantageInputs) -> Tensor:
    """One column of `stream_RK` [R]."""
    column_R = at_last_token(outcome_N, inputs)
    return column_R if token_reward_R is None else column_R + token_reward_R


def overlong_penalty(session: Session, trajectories: Sequence[Trajectory]) -> Tensor:
    """DAPO's soft length penalty [N], 0 unless the recipe asks for it."""
    overlong = session.config.objective.overlong
    if overlong.kind != "soft":
        return torch.zeros(len(trajectories))
    assert overlong.buffer_tokens is not None
    limit = session.config.rollout.max_response_tokens
    return torch.tensor([
        soft_overlong_penalty(t.num_response_tokens, limit, overlong.buffer_tokens, overlong.penalty)
        for t in trajectories
    ])  # fmt: skip
