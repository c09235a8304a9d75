"""One step's responses, as they lie in verl's queue, through the recipe's own rewards and advantages.

verl samples, judges and gives log-probs; which groups are kept, how rewards are shaped, what the advantages are and how
much each token weighs in the loss is decided here, by the functions that the recipe runs everywhere else.

Shapes: N responses of a step; T_i tokens of response i.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from data.example import Example, Message
from prm.signal import SOURCES, Kept, Signal, Source
from rollout.trajectory import Finish, Trajectory
from trainer.advantages.base import ADVANTAGES
from trainer.collect import informative_groups, total_outcome, wanted_groups
from trainer.config import Config, ObjectiveConfig
from trainer.learner import TrainingBatch
from trainer.objective import mismatch_correction, proximal_logp, sequence_weights
from trainer.shaping.base import SHAPINGS
from trainer.weigh import weigh
from verifiers.errors import RunError
from verifiers.options import parse_options
from verifiers.verdict import Status, Verdict

if TYPE_CHECKING:
    from trainer.session import Session


@dataclass(slots=True)
class Row:
    """One response in verl's queue. verdict: of the recipe's verifier. old: the learner's log-probs before the update.
    reference: of the frozen starting model; values: of the critic; both None where the recipe has none."""

    trajectory: Trajectory
    example: Example
    verdict: Verdict
    old: Tensor
    reference: Tensor | None = None
    values: Tensor | None = None


@dataclass(slots=True)
class Weighed:
    """What the loss needs, in the order of the rows; zeros for what is not trained on. advantages, weights (in the sum
    that is the loss), corrections (of the mismatch between engine and learner), before (log-probs that the loss's ratio
    is taken against), returns and value_weights (of the critic; empty without one): one tensor [T_i] each. kept: the
    rows that are trained on."""

    advantages: list[Tensor]
    weights: list[Tensor]
    corrections: list[Tensor]
    before: list[Tensor]
    returns: list[Tensor]
    value_weights: list[Tensor]
    kept: list[int]


# ---- between verl's fields and ours ------------------------------


def example_fields(example: Example, prompt_ids: Sequence[int]) -> dict[str, Any]:
    """An example as plain JSON data, with the token ids of its prompt; `example_of` reads it back."""
    return {
        "example_id": example.id,
        "prompt": [[m.role, m.content] for m in example.prompt],
        "gold": example.gold,
        "meta": dict(example.meta),
        "prompt_ids": list(prompt_ids),
    }


def example_of(fields: Mapping[str, Any]) -> Example:
    prompt = tuple(Message(role, content) for role, content in fields["prompt"])
    return Example(fields["example_id"], prompt, fields["gold"], None, fields["meta"])


def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain data for verl's `reward_extra_info`; `acc` is the name under which verl reports accuracy."""
    return {
        "score": 0.0 if verdict.score is None else float(verdict.score),
        "acc": float(verdict.status is Status.CORRECT),
        "fault": float(verdict.is_fault),
        "status": str(verdict.status),
        "evidence": verdict.evidence,
        "milliseconds": float(verdict.milliseconds),
    }


def verdict_of(fields: Mapping[str, Any]) -> Verdict:
    score = None if fields["fault"] else float(fields["score"])
    return Verdict(score, Status(fields["status"]), fields["evidence"], float(fields["milliseconds"]))


def trajectory_of(
    fields: Mapping[str, Any],
    response_ids: Sequence[int],
    config: Config,
    eos_ids: Sequence[int],
    decode: Any,
    *,
    group: int = 0,
    sample: int = 0,
    logp_sampled: Sequence[float] = (),
    version: int = 0,
) -> Trajectory:
    """fields: of its example. A response ended by itself if its last token is an end of sequence; otherwise the limit
    cut it off, since verl knows no stop strings here. decode(ids) -> text, without special tokens."""
    ids = list(response_ids)
    ended = bool(ids) and ids[-1] in eos_ids
    rollout = config.rollout
    plain = rollout.temperature == 1 and rollout.top_p == 1
    return Trajectory(
        fields["example_id"],
        group,
        sample,
        list(fields["prompt_ids"]),
        ids,
        list(logp_sampled),
        list(logp_sampled) if plain else [math.nan] * len(logp_sampled),
        Finish.STOP if ended else Finish.LENGTH,
        decode(ids[:-1] if ended else ids),
        version,
    )


# ---- the step ----------------------------------------------------


class _Logprobs:
    """What `weigh` asks of a learner and of a critic; verl has computed all of it before."""

    def __init__(self, kl_coef: float, rows: Sequence[Row]):
        self.kl_coef, self._rows = kl_coef, rows

    def logprobs(self, _: Sequence[Trajectory]) -> list[Tensor]:
        return [row.old for row in self._rows]

    def reference_logprobs(self, _: Sequence[Trajectory]) -> list[Tensor]:
        return [cast(Tensor, row.reference) for row in self._rows]

    def values(self, _: Sequence[Trajectory]) -> list[Tensor]:
        return [cast(Tensor, row.values) for row in self._rows]

    def adapt_kl(self, *_: float) -> dict[str, float]:
        return {}  # the recipe has no controller: translate.check refuses it


@dataclass(slots=True)
class Step:
    """The rewarding half of a recipe's loop, without engine and learner. sources: by their place in the recipe; those
    that give credit are put in by the trainer, where their models live."""

    config: Config
    sources: list[Source] = field(default_factory=list)
    advantage: Any = None
    advantage_options: Any = None
    shapings: list[Any] = field(default_factory=list)
    learner: _Logprobs | None = None
    critic: _Logprobs | None = None

    def __post_init__(self) -> None:
        objective = self.config.objective
        self.advantage = ADVANTAGES.get(objective.advantage.kind)
        self.advantage_options = parse_options(self.advantage.options, objective.advantage.options)
        self.shapings = [
            (SHAPINGS.get(p.kind), parse_options(SHAPINGS.get(p.kind).options, p.options)) for p in objective.shaping
        ]
        if not self.sources:  # the rule is asked nothing here: its verdicts are in the rows
            self.sources = [cast(Source, SOURCES.get(part.kind)) for part in self.config.sources]

    def judge(self, rows: Sequence[Row]) -> list[Signal]:
        """What each source says of the responses before it is decided which are kept."""
        trajectories, examples = [row.trajectory for row in rows], [row.example for row in rows]
        verdicts = [row.verdict for row in rows]
        score_N = torch.tensor([math.nan if v.score is None else v.score for v in verdicts])
        return [
            Signal(score_N, labels={"verdict": verdicts})
            if part.kind == "rule"
            else source.score(trajectories, examples)
            if source.phase == "judge"
            else Signal.silent(len(rows))
            for part, source in zip(self.config.sources, self.sources, strict=True)
        ]

    def keep(
        self, rows: Sequence[Row], signals: Sequence[Signal], step: int
    ) -> tuple[list[int], Kept, dict[str, float]]:
        """(rows that are trained on, what the sources are told of them, metrics). Raises `RunError` where more
        responses than the recipe allows could not be judged."""
        config = self.config
        trajectories, verdicts = [row.trajectory for row in rows], [row.verdict for row in rows]
        reward_N = total_outcome(list(signals), [part.weight for part in config.sources])
        faults = float(reward_N.isnan().double().mean()) if rows else 0.0
        if faults > config.alarms.max_fault_share:
            shown = next((f", example '{row.example.id}': {row.verdict.evidence}" for row in rows
                          if row.verdict.is_fault), ", a learned reward source")  # fmt: skip
            raise RunError(
                f"{faults:.1%} of the step's responses could not be judged, above {config.alarms.max_fault_share:.1%}.",
                where=f"alarms.max_fault_share{shown}",
                why="a reward that is missing so often trains on what the verifier can bear",
                fix="repair the verifier or the data; verifier.timeout_s and verifier.memory_mb bound it",
            )
        groups, flat = informative_groups(trajectories, reward_N, config.objective.zero_variance.drop)
        groups, dropped = wanted_groups(trajectories, verdicts, groups, config.rollout.keep)
        index = [i for group in groups for i in group]
        kept = Kept(
            [trajectories[i] for i in index],
            [rows[i].example for i in index],
            reward_N[index],
            [verdicts[i] for i in index],
            step,
        )
        judged = reward_N[~reward_N.isnan()]
        metrics = {
            "reward/mean": float(judged.double().mean()) if len(judged) else 0.0,
            "reward/fault_share": faults,
            "rollout/kept_share": len(index) / max(1, len(rows)),
            "rollout/flat_groups": float(flat),
        }
        return index, kept, metrics | _counts(dropped)

    def advantages(
        self, rows: Sequence[Row], kept: Kept, index: Sequence[int], signals: Sequence[Signal]
    ) -> tuple[TrainingBatch, dict[str, float]]:
        """`trainer.weigh.weigh` of the kept rows."""
        logprobs = _Logprobs(self.config.objective.kl.coef, [rows[i] for i in index])
        self.learner, self.critic = logprobs, None if self.config.critic is None else logprobs
        return weigh(cast("Session", self), kept, signals)


def _counts(dropped: Counter[str]) -> dict[str, float]:
    return {f"rollout/dropped_{reason}": float(count) for reason, count in dropped.items()}


def in_the_order_of_rows(
    rows: Sequence[Row],
    index: Sequence[int],
    batch: TrainingBatch,
    minibatch: Sequence[int],
    objective: ObjectiveConfig,
) -> Weighed:
    """Advantages and weights of all rows. minibatch: the optimizer step that each row takes part in, for the counts of
    the reduction. What a token weighs does not depend on micro-batches or ranks: the loss is the sum of weight * loss
    over all of them."""
    zeros = [torch.zeros(len(row.old)) for row in rows]
    sampled = [torch.tensor(row.trajectory.logp_sampled) for row in rows]
    form = "bypass" if objective.mismatch.kind == "bypass" else "decoupled"
    before = [proximal_logp(row.old, s, form) for row, s in zip(rows, sampled, strict=True)]
    out = Weighed(list(zeros), list(zeros), [torch.ones_like(z) for z in zeros], before, [], [], list(index))
    if batch.returns:
        out.returns, out.value_weights = list(zeros), list(zeros)
    for part in sorted(set(minibatch)):
        own = [k for k, i in enumerate(index) if minibatch[i] == part]
        if not own:
            continue
        rows_of = [index[k] for k in own]
        included_N = batch.included_N[own]
        correction, keep = _correct(
            [rows[i].old for i in rows_of], [sampled[i] for i in rows_of], included_N, objective
        )
        counted_N = torch.stack([k.sum() for k in keep])
        weight_N = sequence_weights(counted_N, included_N, objective.reduce, objective.constant_tokens)
        for k, i, weight, corrected, kept_T in zip(own, rows_of, weight_N, correction, keep, strict=True):
            out.advantages[i] = batch.advantages[k].float()
            out.weights[i] = (weight * kept_T).float()
            out.corrections[i] = corrected.float()
        if batch.returns:
            length_N = torch.tensor([len(rows[i].old) for i in rows_of])
            of_values_N = sequence_weights(length_N, included_N, "token", None)
            for k, i, weight in zip(own, rows_of, of_values_N, strict=True):
                out.returns[i] = batch.returns[k].float()
                out.value_weights[i] = weight.expand(len(rows[i].old)).float()
    return out


def _correct(
    old: list[Tensor], sampled: list[Tensor], included_N: Tensor, objective: ObjectiveConfig
) -> tuple[list[Tensor], list[Tensor]]:
    """(weights, which tokens stay in the loss) of one optimizer step, one tensor [T_i] each."""
    lengths = [len(o) for o in old]
    segment_R = torch.arange(len(old)).repeat_interleave(torch.tensor(lengths))
    weight_R, keep_R = mismatch_correction(
        torch.cat(old), torch.cat(sampled), segment_R, included_N[segment_R], objective.mismatch
    )
    return list(weight_R.split(lengths)), list(keep_R.split(lengths))


def minibatches(rows: int, ranks: int, rows_per_minibatch: int) -> list[int]:
    """The optimizer step in which verl trains on each row: every rank has an equal part of the batch, in order, and
    takes its share of each mini-batch from it in order."""
    on_rank, share = rows // ranks, rows_per_minibatch // ranks
    return [(row % on_rank) // share for row in range(rows)]
