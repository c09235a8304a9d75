"""How good a learned reward is, measured while it is used: against outcomes, and against the line oracle of examples
whose generator has one.

Shapes: N trajectories; T_i response tokens of one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedTokenizerBase

from data.example import Example
from data.sources import oracle_of
from prm.bench.ranking import auc
from prm.steps import StepOptions, StepSplitter
from rollout.trajectory import Trajectory


def outcome_health(logit_N: Tensor, label_N: Tensor, group_N: Tensor) -> dict[str, float]:
    """How well logits of being right tell the outcomes, labels in [0, 1]. A label above 1/2 counts as right; `auc` is
    there only if both kinds are."""
    right_N, p_N = label_N > 0.5, logit_N.sigmoid()
    metrics = {
        "ce": float(binary_cross_entropy_with_logits(logit_N, label_N)),
        "accuracy": float(((p_N > 0.5) == right_N).double().mean()),
        "pairwise_accuracy": pairwise_accuracy(logit_N, label_N, group_N),
        "brier": float(((p_N - label_N) ** 2).mean()),
        "label_mean": float(label_N.mean()),
        "probability_mean": float(p_N.mean()),
    }
    area = auc(logit_N.tolist(), right_N.tolist())
    return metrics if area is None else metrics | {"auc": area}


def pairwise_accuracy(score_N: Tensor, label_N: Tensor, group_N: Tensor) -> float:
    """Mean over groups of the share of pairs in the order of their labels, each weighing the difference of these; 1/2
    for a group of equal labels, and for a pair of equal scores. Reference: PRIME-RL/PRIME 18ad596f,
    `compute_dpo_accuracy`."""
    shares = []
    for group in torch.unique(group_N):
        score, label = score_N[group_N == group], label_N[group_N == group]
        weight = (label[:, None] - label[None, :]).clamp(min=0)
        above = (score[:, None] - score[None, :]).sign() / 2 + 0.5
        total = float(weight.sum())
        shares.append(float((weight * above).sum()) / total if total > 0 else 0.5)
    return sum(shares) / len(shares)


@dataclass(frozen=True, slots=True)
class RewardedLine:
    """reward: the sum over its tokens. after_error: an earlier line was wrong."""

    reward: float
    right: bool
    after_error: bool


class LineOracle:
    """Token rewards against what the generator of an example (`check_steps`) says of each line."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._splitter = StepSplitter(StepOptions(), tokenizer)

    def health(
        self, trajectories: Sequence[Trajectory], examples: Sequence[Example], rewards: Sequence[Tensor]
    ) -> dict[str, float]:
        """`line_auc`: how well the reward of a line tells right lines from wrong ones; `line_auc_to_error` leaves out
        what follows the first wrong line, of which nothing is right. Without examples of both kinds: nothing."""
        lines = [line for t, e, r in zip(trajectories, examples, rewards, strict=True) for line in self.lines(t, e, r)]
        until = [line for line in lines if not line.after_error]
        areas = {name: auc([x.reward for x in of], [x.right for x in of])
                 for name, of in (("line_auc", lines), ("line_auc_to_error", until))}  # fmt: skip
        return {name: area for name, area in areas.items() if area is not None}

    def lines(self, trajectory: Trajectory, example: Example, reward_T: Tensor) -> list[RewardedLine]:
        """Every line of a response; [] without an oracle, or where the text is not the tokens' texts end to end. The
        end-of-sequence token belongs to the last line."""
        check_steps, text, ids = oracle_of(example), trajectory.text, trajectory.response_ids
        if check_steps is None or not text or self._splitter.decode(ids) != text:
            return []
        steps = check_steps(example, text)
        starts = [step.start for step in steps]
        total = [0.0] * len(steps)
        # as in `StepSplitter.cut`: a token belongs to the line of its first character
        for first, reward in zip([0, *self._splitter.token_ends(text, ids)[:-1]], reward_T.tolist(), strict=True):
            total[bisect_right(starts, first) - 1] += reward
        wrong = next((i for i, step in enumerate(steps) if step.first_error), len(steps))
        return [RewardedLine(total[i], step.correct, i > wrong) for i, step in enumerate(steps)]
