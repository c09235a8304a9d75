"""What sources that score the steps of a response share: the split, the refinement, the placement, the health.

Shapes: N trajectories; K_i steps and T_i tokens of trajectory i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from data.example import Example
from data.sources import oracle_of
from prm.bench.calibration import expected_calibration_error
from prm.bench.ranking import auc
from prm.refine import RefineOptions, Refiner
from prm.signal import Kept, Signal, Source, SourceContext
from prm.steps import StepOptions, Steps, StepSplitter
from verifiers.options import Options as BaseOptions

# which part of the oracle's truth about a line is meant; see data/steps.py
Truth = Literal["on_track", "follows", "correct"]


class StepSource(Source):
    """Phase credit: the (refined) score of each step at its last token, 0 elsewhere. Subclasses give `scores`.

    The source's weight in the recipe is the alpha of the method. Where the examples come from a data source with a step
    oracle, the scores are compared with it.
    """

    phase = "credit"
    gives = ("token_reward_R",)

    class Options(BaseOptions):
        """steps: where a response is split. refine: what is made of the scores. truth: what the oracle is asked about a
        line: whether the right answer has not been lost (on_track), whether it follows from the lines before it, or
        both (correct)."""

        steps: StepOptions = StepOptions()
        refine: RefineOptions = RefineOptions()
        truth: Truth = "on_track"

    def __init__(self, options: StepSource.Options, context: SourceContext):
        super().__init__(options, context)
        self.splitter = StepSplitter(options.steps, context.tokenizer)
        self.refiner = Refiner(options.refine)

    def scores(self, kept: Kept, steps: Sequence[Steps]) -> list[Tensor]:
        """How good the prefix that ends with each step is, in 0..1: one float32 tensor [K_i] a trajectory."""
        raise NotImplementedError

    def credit(self, kept: Kept) -> Signal:
        steps = [self.splitter.split(t.text, t.response_ids) for t in kept.trajectories]
        scores = self.scores(kept, steps)
        rewards = self.refiner.refine(scores)
        placed = [
            s.place(reward_K, t.num_response_tokens)
            for s, reward_K, t in zip(steps, rewards, kept.trajectories, strict=True)
        ]
        total_N = torch.tensor([float(r.sum()) for r in rewards], dtype=torch.float64)
        metrics = {
            "steps_per_response": sum(map(len, steps)) / len(steps),
            "reward_per_response": float(total_N.mean()),
            **self.refiner.metrics(),
            **self._health(kept, steps, scores),
        }
        return Signal(
            torch.zeros(len(steps)),
            token_reward=placed,
            labels={"step_scores": [s.tolist() for s in scores]},
            metrics=metrics,
        )

    def _health(self, kept: Kept, steps: Sequence[Steps], scores: Sequence[Tensor]) -> dict[str, float]:
        score = torch.cat(list(scores)).tolist()
        truth = [
            label
            for t, e, s in zip(kept.trajectories, kept.examples, steps, strict=True)
            for label in step_truth(e, t.text, s, self.options.truth)
        ]
        return score_health(score, truth)

    def state_dict(self) -> dict[str, Any]:
        return {"refine": self.refiner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.refiner.load_state_dict(state["refine"])


# ---- the truth -----------------------------------------------------


def step_truth(example: Example, text: str, steps: Steps, truth: Truth) -> list[float]:
    """1 or 0 for each step [K]: whether all of the oracle's lines that start in it are right. NaN without an oracle,
    and for a step in which no line starts."""
    oracle = oracle_of(example)
    labels = [] if oracle is None else oracle(example, text)
    out = []
    for start, end in steps.spans:
        inside = [getattr(label, truth) for label in labels if start <= label.start < end]
        out.append(float(all(inside)) if inside else math.nan)
    return out


def score_health(scores: Sequence[float], truth: Sequence[float]) -> dict[str, float]:
    """mean_score; and, over what has a truth: accuracy at 0.5, calibration error, and AUC if there are both classes."""
    if not scores:
        return {}
    known = [(s, t > 0.5) for s, t in zip(scores, truth, strict=True) if not math.isnan(t)]
    metrics = {"mean_score": math.fsum(scores) / len(scores)}
    if not known:
        return metrics
    judged, labels = [s for s, _ in known], [t for _, t in known]
    metrics["true_share"] = sum(labels) / len(labels)
    metrics["accuracy"] = sum((s > 0.5) == t for s, t in known) / len(known)
    metrics["calibration_error"] = expected_calibration_error(judged, labels) or 0.0
    area = auc(judged, labels)
    return metrics if area is None else metrics | {"auc": area}
