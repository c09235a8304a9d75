"""One step's trajectories: sample, judge while sampling goes on, drop what teaches nothing, refill.

Shapes: N trajectories of a step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.example import Example
from prm.signal import Kept, Signal, Source, verdicts_in
from rollout.engine import Prompt, SamplingParams, derive_seed
from rollout.trajectory import Finish, Trajectory
from rollout.world import World
from trainer.config import KeepConfig, PassRateBand
from verifiers.verdict import Verdict

if TYPE_CHECKING:
    from trainer.loop import LoopState
    from trainer.session import Session


@dataclass(slots=True)
class Rollouts:
    """All trajectories of a step with what the sources said. reward_N: weighted sum of outcomes, NaN where any source
    could not judge. baseline_N: the same of the greedy response to the prompt, if the estimator wants it. kept: indices
    of the trajectories that are trained on, whole groups in order. dropped: groups that rollout.keep left out, by the
    reason, and surplus prompts put back. verify_wait_s: how long the loop waited for the sources once everything was
    generated (a clock reading). shuffled: the outcomes were permuted, so that no verdict may teach."""

    trajectories: list[Trajectory]
    examples: list[Example]
    signals: list[Signal]
    reward_N: Tensor
    kept: list[int]
    refills: int
    groups: int
    flat_groups: int
    verify_wait_s: float = 0.0
    baseline_N: Tensor | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    shuffled: bool = False

    def what_is_kept(self, step: int) -> Kept:
        """For the sources that give credit, and for learning."""
        verdicts = self.verdicts
        return Kept(
            [self.trajectories[i] for i in self.kept],
            [self.examples[i] for i in self.kept],
            self.reward_N[self.kept],
            [verdicts[i] for i in self.kept] if verdicts and not self.shuffled else [],
            step,
            None if self.baseline_N is None else self.baseline_N[self.kept],
            self.shuffled,
        )

    @property
    def verdicts(self) -> list[Verdict]:
        """The rule verdicts, if a source gives any."""
        return verdicts_in(self.signals)

    @property
    def verify_s(self) -> float:
        """Seconds the rule verdicts took, summed over the workers (a clock reading)."""
        return sum(v.milliseconds for v in self.verdicts) / 1000


def collect(session: Session, state: LoopState) -> Rollouts:
    """Groups for one step, refilled as often as the recipe allows."""
    config, train = session.config, session.train_examples
    rollout, zero_variance = config.rollout, config.objective.zero_variance
    sampling = SamplingParams(rollout.max_response_tokens, rollout.temperature, rollout.top_p, tuple(rollout.stop))
    trajectories: list[Trajectory] = []
    examples: list[Example] = []
    parts: list[list[Signal]] = []
    rewards: list[Tensor] = []
    baselines: list[Tensor] = []
    kept: list[int] = []
    dropped: Counter[str] = Counter()
    indices: list[int] = []  # of the drawn examples, by group: the views of a question stand together
    flat_groups = refills = 0
    verify_wait_s = 0.0
    for attempt in range(1 + zero_variance.max_refills):
        refills = attempt
        offset = len(indices)
        questions = state.sampler.next(config.questions_per_batch)
        indices += [i for i in questions for _ in range(config.num_views)]
        drawn = [train[i] for i in questions]
        if config.num_views > 1:
            drawn = [view for example in drawn for view in session.prepared.views(example)]
        prompts = [Prompt(e.id, offset + p, session.prepared.prompt_ids[e.id]) for p, e in enumerate(drawn)]
        seed = derive_seed(config.seed, "rollout", state.step, attempt)
        asked = {prompt.group: e for prompt, e in zip(prompts, drawn, strict=True)}
        judging = Judging(session.sources, asked, session.world)
        new = session.engine.generate(prompts, rollout.samples_per_prompt, sampling, seed, judging.on_group)
        generated = time.monotonic()
        signals = judging.signals(new)
        verify_wait_s += time.monotonic() - generated
        reward_N = total_outcome(signals, [part.weight for part in config.sources])
        if config.train.shuffle_rewards:
            generator = torch.Generator().manual_seed(derive_seed(config.seed, "shuffle", state.step, attempt))
            reward_N = reward_N[torch.randperm(len(reward_N), generator=generator)]
        if "baseline_N" in session.advantage.needs:
            greedy_N = greedy_rewards(session, prompts, drawn, sampling, seed)[[t.group - offset for t in new]]
            reward_N = torch.where(greedy_N.isnan(), greedy_N, reward_N)  # no baseline, no advantage
            baselines.append(greedy_N)
        groups, flat = informative_groups(new, reward_N, zero_variance.drop)
        if config.num_views > 1:
            groups = with_other_views(new, groups, informative_groups(new, reward_N, False)[0])
        groups, reasons = wanted_groups(new, verdicts_in(signals), groups, rollout.keep)
        if config.num_views > 1:
            groups, reasons["other_view"] = whole_pairs(new, groups)
        flat_groups += flat
        dropped += reasons
        kept += [len(trajectories) + i for group in groups for i in group]
        trajectories += new
        examples += [drawn[t.group - offset] for t in new]
        parts.append(signals)
        rewards.append(reward_N)
        if len({trajectories[i].group for i in kept}) >= rollout.prompts_per_step:
            break
    good = list(dict.fromkeys(trajectories[i].group for i in kept))
    kept = first_groups(trajectories, kept, rollout.prompts_per_step)
    if rollout.keep.put_back_surplus:
        surplus = good[rollout.prompts_per_step :]
        state.sampler.put_back([indices[group] for group in surplus[:: config.num_views]])
        dropped["put_back"] = len(surplus)
    merged = [Signal.concat([p[s] for p in parts]) for s in range(len(session.sources))]
    return Rollouts(
        trajectories,
        examples,
        merged,
        torch.cat(rewards),
        kept,
        refills,
        len(indices),
        flat_groups,
        verify_wait_s,
        torch.cat(baselines) if baselines else None,
        dict(dropped),
        config.train.shuffle_rewards,
    )


def greedy_rewards(
    session: Session, prompts: Sequence[Prompt], examples: Sequence[Example], sampling: SamplingParams, seed: int
) -> Tensor:
    """The reward of the most likely response to each prompt [P]; it is not trained on."""
    asked = {p.group: e for p, e in zip(prompts, examples, strict=True)}
    judging = Judging(session.sources, asked, session.world)
    greedy = session.engine.generate(prompts, 1, replace(sampling, greedy=True), seed, judging.on_group)
    return total_outcome(judging.signals(greedy), [part.weight for part in session.config.sources])


class Judging:
    """The sources at work on one batch of prompts while it is being generated. examples: by group. What it gives does
    not depend on the order in which groups or verdicts come. world: each rank starts the groups that it generated."""

    def __init__(self, sources: Sequence[Source], examples: Mapping[int, Example], world: World | None = None):
        self._sources, self._examples, self._world = sources, examples, world or World()
        self._started: dict[int, dict[int, Callable[[], Signal]]] = {
            s: {} for s, source in enumerate(sources) if hasattr(source, "start")
        }

    def on_group(self, group: list[Trajectory]) -> None:
        """Start judging a group in the sources that can."""
        asked = [self._examples[t.group] for t in group]
        for s, started in self._started.items():
            started[group[0].group] = self._sources[s].start(group, asked)  # type: ignore[attr-defined]

    def signals(self, trajectories: Sequence[Trajectory]) -> list[Signal]:
        """What each source says about all trajectories, in their order (by group, then sample)."""
        asked = [self._examples[t.group] for t in trajectories]
        said = {s: self._world.union({group: finish() for group, finish in started.items()})
                for s, started in self._started.items()}  # fmt: skip
        return [
            Signal.concat([said[s][group] for group in sorted(said[s])])
            if s in said
            else source.score(trajectories, asked)
            if source.phase == "judge"
            else Signal.silent(len(trajectories))
            for s, source in enumerate(self._sources)
        ]


def total_outcome(signals: list[Signal], weights: list[float]) -> Tensor:
    """Weighted sum of the sources' outcomes [N]; NaN as soon as one of them could not judge."""
    return torch.stack([w * s.outcome_N for w, s in zip(weights, signals, strict=True)]).sum(0)


def informative_groups(
    trajectories: list[Trajectory], reward_N: Tensor, drop_zero_variance: bool
) -> tuple[list[list[int]], int]:
    """(groups of judged trajectories worth training on, number of groups whose rewards are all equal)."""
    groups: dict[int, list[int]] = {}
    for i, trajectory in enumerate(trajectories):
        if not torch.isnan(reward_N[i]):
            groups.setdefault(trajectory.group, []).append(i)
    flat = {g for g, index in groups.items() if len({float(reward_N[i]) for i in index}) == 1}
    return [index for g, index in groups.items() if not (drop_zero_variance and g in flat)], len(flat)


def wanted_groups(
    trajectories: list[Trajectory], verdicts: list[Verdict], groups: list[list[int]], keep: KeepConfig
) -> tuple[list[list[int]], Counter[str]]:
    """(those of `groups` that `keep` lets pass, how many it left out for each reason). A group's pass rate is the mean
    score of its judged samples, in float32 as the bounds."""
    wanted, left_out = [], Counter[str]()
    for index in groups:
        if keep.drop_truncated and any(trajectories[i].finish == Finish.LENGTH for i in index):
            left_out["truncated"] += 1
        elif keep.pass_rate is not None and not in_band([verdicts[i].score or 0.0 for i in index], keep.pass_rate):
            left_out["pass_rate"] += 1
        else:
            wanted.append(index)
    return wanted, left_out


def with_other_views(
    trajectories: list[Trajectory], groups: list[list[int]], judged: list[list[int]]
) -> list[list[int]]:
    """`groups`, and of the `judged` ones those whose other view is among them. Groups 2k and 2k + 1 are the views of
    one question: it stays as long as one of them teaches."""
    questions = {trajectories[index[0]].group // 2 for index in groups}
    return [index for index in judged if trajectories[index[0]].group // 2 in questions]


def whole_pairs(trajectories: list[Trajectory], groups: list[list[int]]) -> tuple[list[list[int]], int]:
    """(`groups` without those whose other view is not among them, how many these are)."""
    views = Counter(trajectories[index[0]].group // 2 for index in groups)
    whole = [index for index in groups if views[trajectories[index[0]].group // 2] == 2]
    return whole, len(groups) - len(whole)


def in_band(scores: Sequence[float], band: PassRateBand) -> bool:
    rate, low, high = float32(scores).mean(), float32(band.low), float32(band.high)
    return bool(low < rate < high if band.strict else low <= rate <= high)


def float32(values: float | Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def first_groups(trajectories: list[Trajectory], kept: list[int], limit: int) -> list[int]:
    allowed = set(list(dict.fromkeys(trajectories[i].group for i in kept))[:limit])
    return [i for i in kept if trajectories[i].group in allowed]
