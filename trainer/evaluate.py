"""Evaluation: avg@k, unbiased pass@k, maj@k and chosen answers, with bootstrap intervals over prompts.

Shapes: P prompts, K samples a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.example import Example
from prm.rule import verify_request
from rollout.engine import Engine, Prompt, SamplingParams, derive_seed
from rollout.trajectory import Finish, Trajectory
from rollout.world import World
from trainer.config import Config
from trainer.selection import best_of_majority, best_of_n, probability_score, weighted_majority
from verifiers.errors import RunError
from verifiers.runner import Runner
from verifiers.verdict import Status, Verdict


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts with its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased probability that at least one of k samples is correct, from `correct` of `samples`.

    1 - C(n - c, k) / C(n, k), as a product. Source: Chen et al. 2021, arXiv:2107.03374, eq. 1. Raises ValueError for
    k > samples, where no unbiased estimate exists (the reference returns 1.0 there).
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@k needs 0 <= correct <= samples and 1 <= k <= samples, got {correct}, {samples}, {k}")
    if samples - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - correct + 1, samples + 1))


def majority(scores: Sequence[float], answers: Sequence[str | None]) -> float:
    """Expected score of the most frequent answer; ties are broken by chance (their mean). Samples without an answer
    have no vote; if none has one the score is 0."""
    votes: dict[str, list[float]] = {}
    for score, answer in zip(scores, answers, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(score)
    if not votes:
        return 0.0
    most = max(len(v) for v in votes.values())
    winners = [sum(v) / len(v) for v in votes.values() if len(v) == most]
    return sum(winners) / len(winners)


def bootstrap(value_P: Sequence[float], resamples: int, seed: int) -> Estimate:
    """Mean of `value_P` with the percentile interval over resampled prompts. Deterministic in the seed."""
    values: Tensor = torch.tensor(value_P, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(values), (resamples, len(values)), generator=generator)
    means = values[draws].mean(1).sort().values
    low, high = means[int(0.025 * (resamples - 1))], means[math.ceil(0.975 * (resamples - 1))]
    return Estimate(float(values.mean()), float(low), float(high))


def chosen_scores(
    scores: Sequence[float], answers: Sequence[str | None], rewards: Sequence[float], bom_alpha: float | None
) -> dict[str, float]:
    """{method: expected score of the one answer that it chooses among the samples of a prompt}, by `rewards` >= 0: bon
    (best-of-n), wmaj (weighted majority), bom (Best-of-Majority, of answers that at least two samples gave). 0 where no
    sample has an answer."""
    by_answer: dict[str | None, list[float]] = {None: [0.0]}
    for score, answer in zip(scores, answers, strict=True):
        if answer is not None:
            by_answer.setdefault(answer, []).append(score)
    n = len(scores)
    alpha = max(bom_alpha or 0.0, 2 / n) if n > 1 else 0.0
    chosen = {
        "bon": best_of_n(answers, rewards),
        "wmaj": weighted_majority(answers, rewards),
        "bom": next(iter(best_of_majority(answers, rewards, 1, alpha)), None),
    }
    return {method: sum(by_answer[a]) / len(by_answer[a]) for method, a in chosen.items()}


def summarise(verdicts_PK: Sequence[Sequence[Verdict]], resamples: int, seed: int) -> dict[str, Estimate]:
    """{metric: estimate}: avg@K, pass@k for k = 2, 4, ... up to K, maj@K. Unjudged samples (faults of ours) are left
    out of their prompt; a prompt with fewer than K judged samples has no pass@k for the larger k."""
    judged = [[v for v in row if v.score is not None] for row in verdicts_PK]
    judged = [row for row in judged if row]
    if not judged:
        raise RunError("No sample of the evaluation could be judged.", why="there is no accuracy to report",
                       fix="look at the verdicts' evidence in the trajectories; the verifier is broken")  # fmt: skip
    k_max = max(len(row) for row in verdicts_PK)
    score = [[float(v.score or 0.0) for v in row] for row in judged]
    correct = [sum(v.status is Status.CORRECT for v in row) for row in judged]
    metrics = {f"avg@{k_max}": bootstrap([sum(s) / len(s) for s in score], resamples, seed)}
    k = 2
    while k <= k_max:
        rows = [pass_at_k(len(s), c, k) for s, c in zip(score, correct, strict=True) if len(s) >= k]
        if rows:
            metrics[f"pass@{k}"] = bootstrap(rows, resamples, seed)
        k *= 2
    if k_max > 1 and gives_answers(judged):
        votes = [majority(s, [v.answer for v in row]) for s, row in zip(score, judged, strict=True)]
        metrics[f"maj@{k_max}"] = bootstrap(votes, resamples, seed)
    return metrics


def gives_answers(judged: Sequence[Sequence[Verdict]]) -> bool:
    """Whether there is something to vote on: no, if what is right has no answer in words (programs)."""
    verdicts = [v for row in judged for v in row]
    return any(v.answer is not None for v in verdicts) or not any(v.status is Status.CORRECT for v in verdicts)


def summarise_chosen(
    verdicts_PK: Sequence[Sequence[Verdict]],
    rewards_PK: Sequence[Sequence[float]],
    bom_alpha: float | None,
    resamples: int,
    seed: int,
) -> dict[str, Estimate]:
    """{metric: estimate}: bon@K, wmaj@K and bom@K, the score of the one answer chosen by rewards. Unjudged samples are
    left out of their prompt."""
    chosen = []
    for row, rewards in zip(verdicts_PK, rewards_PK, strict=True):
        judged = [(v.score, v.answer, r) for v, r in zip(row, rewards, strict=True) if v.score is not None]
        if judged:
            scores, answers, kept = zip(*judged, strict=True)
            chosen.append(chosen_scores(scores, answers, kept, bom_alpha))
    k_max = max(len(row) for row in verdicts_PK)
    return {f"{method}@{k_max}": bootstrap([c[method] for c in chosen], resamples, seed) for method in chosen[0]}


def evaluate(
    config: Config,
    engine: Engine,
    runner: Runner,
    examples: Sequence[Example],
    prompt_ids: Mapping[str, list[int]],
    name: str,
    world: World | None = None,
) -> tuple[dict[str, Estimate], dict[str, float], list[tuple[Trajectory, Verdict]]]:
    """Sample and judge one evaluation set: (metrics, shares of each status and mean length, every trajectory with
    verdict).

    The random streams depend on the run's seed, the set and the example only, so `before` and `after` differ by the
    weights alone. world: each rank judges what it generated.
    """
    options = config.eval
    sampling = SamplingParams(
        options.max_response_tokens or config.rollout.max_response_tokens,
        options.temperature,
        options.top_p,
        tuple(config.rollout.stop),
    )
    prompts = [Prompt(e.id, p, prompt_ids[e.id]) for p, e in enumerate(examples)]
    k = options.samples_per_prompt
    waits: dict[int, Callable[[], list[Verdict]]] = {}

    def on_group(group: list[Trajectory]) -> None:
        waits[group[0].group] = start_verifying(runner, group, [examples[t.group] for t in group])

    seed = derive_seed(config.seed, "eval", name)
    trajectories = engine.generate(prompts, k, sampling, seed, on_group)
    by_prompt = (world or World()).union({p: wait() for p, wait in waits.items()})
    verdicts = [verdict for p in range(len(prompts)) for verdict in by_prompt[p]]
    rows = [verdicts[p * k : (p + 1) * k] for p in range(len(examples))]
    bootstrap_seed = derive_seed(config.seed, "bootstrap", name)
    metrics = summarise(rows, options.bootstrap_samples, bootstrap_seed)
    if options.scorer is not None:
        scored = [probability_score(t.logp_model) for t in trajectories]
        rewards = [scored[p * k : (p + 1) * k] for p in range(len(examples))]
        metrics |= summarise_chosen(rows, rewards, options.bom_alpha, options.bootstrap_samples, bootstrap_seed)
    total = len(verdicts)
    facts = {f"verdict/{status}": sum(v.status is status for v in verdicts) / total for status in Status}
    facts["response/length_mean"] = sum(t.num_response_tokens for t in trajectories) / total
    return metrics, facts, list(zip(trajectories, verdicts, strict=True))


def verify_trajectories(
    runner: Runner, trajectories: Sequence[Trajectory], examples: Sequence[Example]
) -> list[Verdict]:
    """Verdicts of evaluation samples. A response that hit the limit is judged like any other, but never right: an
    answer that was not finished is not an answer."""
    return start_verifying(runner, trajectories, examples)()


def start_verifying(
    runner: Runner, trajectories: Sequence[Trajectory], examples: Sequence[Example]
) -> Callable[[], list[Verdict]]:
    """`verify_trajectories` that returns at once; the function returned waits for the verdicts."""
    wait = runner.submit([verify_request(t, e) for t, e in zip(trajectories, examples, strict=True)])

    def finish() -> list[Verdict]:
        return [
            Verdict(0.0, Status.TRUNCATED, v.evidence, v.milliseconds, parts=v.parts)
            if t.finish == Finish.LENGTH and v.score is not None
            else v
            for t, v in zip(trajectories, wait(), strict=True)
        ]

    return finish


def evaluate_checkpoint(config: Config, checkpoint: str) -> dict[str, Any]:
    """`assay eval`: the recipe's evaluation sets on the weights of a checkpoint folder (or any HF folder or hub id)."""
    from trainer.session import Session

    with Session(config, weights=checkpoint) as session:
        session.engine.load_weights(session.learner.weights(), version=0)
        return {
            f"{name}/{metric}": estimate.as_dict()
            for name in session.prepared.evals
            for metric, estimate in session.evaluate_set(name)[0].items()
        }
