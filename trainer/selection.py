"""Choosing answers among samples at test time, with a reward model or by counting.

Samples are given as parallel lists: the canonical answer of each (None: it gave none) and its reward. A sample without
an answer is never chosen, but it counts among the samples. Ties go to what was sampled first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal


def probability_score(logp: Sequence[float]) -> float:
    """The geometric mean of a response's token probabilities, from their log-probs: ranks as the mean log-prob does,
    and is positive, so that it can be the weight of a vote. 0 for a response without tokens."""
    return math.exp(sum(logp) / len(logp)) if logp else 0.0


def best_of_n(answers: Sequence[str | None], rewards: Sequence[float]) -> str | None:
    """The answer of the sample with the highest reward; None if no sample has one."""
    best: tuple[float, str] | None = None
    for answer, reward in zip(answers, rewards, strict=True):
        if answer is not None and (best is None or reward > best[0]):
            best = (reward, answer)
    return best[1] if best else None


def weighted_majority(answers: Sequence[str | None], weights: Sequence[float]) -> str | None:
    """The answer whose samples' weights add up highest (all 1: majority); None if no sample has one. Raises ValueError
    for a negative weight, with which a vote for an answer would count against it."""
    if any(weight < 0 for weight in weights):
        raise ValueError(f"weights of votes must not be negative, got {min(weights)}: a log-prob or logit is none")
    total: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            total[answer] = total.get(answer, 0.0) + weight
    return max(total, key=lambda a: total[a]) if total else None


def best_of_majority(
    answers: Sequence[str | None],
    rewards: Sequence[float],
    k: int,
    alpha: float,
    answer_reward: Literal["mean", "max"] = "mean",
) -> list[str]:
    """Best-of-Majority: up to k answers of highest reward among those that make up at least `alpha` of the samples.

    Rewards of answers that the policy rarely gives are not to be trusted. alpha=0: best-of-n over distinct answers.
    The paper leaves open: the reward of an answer that several samples gave (`answer_reward`), and what to do when none
    is frequent enough (here: the k most frequent). Raises ValueError for an alpha that every answer passes (0 < alpha
    <= 1 / samples), which is best-of-n under another name.

    Paper: arXiv:2510.03199; there alpha is 0.003 to 0.015 with 500 to 2,000 samples. No reference implementation.
    """
    n = len(answers)
    if k < 1 or not 0 <= alpha <= 1:
        raise ValueError(f"k={k} must be at least 1 and alpha={alpha} in [0, 1]")
    if n and 0 < alpha <= 1 / n:
        raise ValueError(f"alpha={alpha} is not above 1/{n}, so no answer is ever too rare: set alpha=0 or sample more")
    scores: dict[str, list[float]] = {}
    for answer, reward in zip(answers, rewards, strict=True):
        if answer is not None:
            scores.setdefault(answer, []).append(reward)
    kept = [a for a, values in scores.items() if len(values) / n >= alpha]
    if not kept:
        return sorted(scores, key=lambda a: -len(scores[a]))[:k]
    value = {a: max(v) if answer_reward == "max" else sum(v) / len(v) for a, v in scores.items()}
    return sorted(kept, key=lambda a: -value[a])[:k]
