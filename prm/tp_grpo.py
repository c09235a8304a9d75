"""`thoughts`: a judge's word on the steps of a response, as a label on every token, for the estimator `tp_grpo`.

Paper: arXiv:2507.23317 (TP-GRPO). Its code and its prompts are not public: docs/methods/tp_grpo.md says what is ours.

Shapes: N trajectories; K_i steps of the thinking and T_i tokens of trajectory i.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pydantic import Field, ValidationInfo, field_validator

from data.example import Example
from prm.judge.base import Judge, JudgeReply, JudgeRequest, ReplyStatus, build_judge, hear_all, judge_options
from prm.judge.prompts import fill
from prm.signal import SOURCES, Kept, Signal, Source, SourceContext
from prm.step_source import step_truth
from prm.steps import StepOptions, Steps, StepSplitter
from prm.thought_prompts import RIGHT_SOLUTION, SPLIT, WRONG_SOLUTION, numbered
from prm.thoughts import (
    Answer,
    cuts_at_markers,
    cuts_at_separators,
    label_tokens,
    matched_steps_reply,
    merge,
    parse_markers,
    parse_matched_steps,
    parse_wrong_steps,
    steps_of,
    think_end,
    wrong_steps_reply,
)
from rollout.trajectory import Finish
from verifiers.options import Options as BaseOptions

MALFORMED = "malformed_judgement"
BAD_SPLIT = "bad_split"
NO_ANSWER = "no_answer"
NO_STEPS = "no_steps"
NOT_NEEDED = "not_needed"
CAUSES = (MALFORMED, BAD_SPLIT, NO_ANSWER, NO_STEPS, NOT_NEEDED,
          *(str(status) for status in ReplyStatus if status is not ReplyStatus.OK))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """What a judge said to one request. value: None if that cannot be used, and then the cause. The rest: see
    `Heard`."""

    value: Any
    cause: str
    asks: int
    cached: int
    tokens: int


@dataclass(slots=True)
class Evaluation:
    """Of one trajectory. is_key: of each step, the answer last; None without a process reward, for this `cause`. lost:
    of each step of the thinking, whether the right answer is lost in it, None where no oracle knows."""

    steps: Steps | None = None
    is_key: list[bool] | None = None
    lost: list[bool | None] = field(default_factory=list)
    cause: str = ""
    asks: int = 0
    tokens: int = 0

    def note(self, reading: Reading) -> None:
        self.asks, self.tokens, self.cause = self.asks + reading.asks, self.tokens + reading.tokens, reading.cause


@SOURCES.register("thoughts")
class ThoughtSource(Source):
    """Phase credit: `token_label` is 1 on key tokens (right solution: steps that are not wrong; wrong solution: steps
    that its answer uses; the answer itself) and 0 on the others. A response without a process reward (whatever went
    wrong in asking, or nothing to ask about) is 1 throughout, which is plain GRPO.

    Groups of equal outcomes in which nobody is right are not asked about: all their advantages are 0.

    Labels: ``step_is_key``, a list of K_i + 1 booleans a trajectory, None without a process reward.
    """

    phase = "credit"
    gives = ("token_label_R",)

    class Options(BaseOptions):
        """judge: of the steps, its kind and options. splitter: a judge that says where steps begin; None: at the
        separators of `steps`. answer: what is the answer and not the thinking. max_tokens, temperature: of a reply.
        malformed_retries: how often what cannot be used, or was cut off, is asked for again. only_with_process_reward:
        responses in which every token is key take no part in the loss."""

        judge: dict[str, Any]
        splitter: dict[str, Any] | None = None
        steps: StepOptions = StepOptions(separator="blank_line")
        answer: Answer = "after_think"
        max_tokens: int = Field(default=4096, ge=1)
        temperature: float = Field(default=0.0, ge=0)
        malformed_retries: int = Field(default=2, ge=0)
        only_with_process_reward: bool = False

        @field_validator("judge", "splitter")
        @classmethod
        def _is_a_judge(cls, judge: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
            if judge is not None:
                judge_options(judge, str(info.field_name))
            return judge

    def __init__(self, options: Any, context: SourceContext):
        super().__init__(options, context)
        self.judge = build_judge(self.options.judge, context)
        splitter = self.options.splitter
        self.splitter = None if splitter is None else build_judge(splitter, context, "splitter")
        self.steps = StepSplitter(self.options.steps, context.tokenizer)

    def credit(self, kept: Kept) -> Signal:
        evaluations = [Evaluation(cause="" if wanted else NOT_NEEDED) for wanted in _worth_asking(kept)]
        self._split(kept, evaluations)
        self._judge(kept, evaluations)
        labels = [
            torch.ones(t.num_response_tokens, dtype=torch.long)
            if e.is_key is None or e.steps is None
            else label_tokens(e.steps, e.is_key, t.num_response_tokens)
            for t, e in zip(kept.trajectories, evaluations, strict=True)
        ]
        included = None
        if self.options.only_with_process_reward:
            included = torch.tensor([e.is_key is not None and not all(e.is_key) for e in evaluations])
        return Signal(
            torch.zeros(len(labels)),
            token_label=labels,
            labels={"step_is_key": [e.is_key for e in evaluations]},
            metrics=health(kept, evaluations),
            included_N=included,
        )

    # ---- asking --------------------------------------------------------

    def _split(self, kept: Kept, evaluations: Sequence[Evaluation]) -> None:
        """Give every evaluation that is still wanted its steps, or the cause why there are none."""
        ends: dict[int, int] = {}
        for i, (t, e) in enumerate(zip(kept.trajectories, evaluations, strict=True)):
            if e.cause:
                continue
            end = None if t.finish == Finish.LENGTH else think_end(t.text, self.options.answer, self.steps.pattern)
            if end is None:
                e.cause = NO_ANSWER
            elif not t.text[:end].strip():
                e.cause = NO_STEPS
            else:
                ends[i] = end
        for i, cuts in self._cuts(kept, ends, evaluations).items():
            t = kept.trajectories[i]
            evaluations[i].steps = steps_of(self.steps, t.text, t.response_ids, cuts, ends[i])

    def _cuts(self, kept: Kept, ends: dict[int, int], evaluations: Sequence[Evaluation]) -> dict[int, list[int]]:
        thinking = {i: kept.trajectories[i].text[:end] for i, end in ends.items()}
        if self.splitter is None:
            return {i: cuts_at_separators(text, self.steps.pattern) for i, text in thinking.items()}
        requests = [
            self._request(kept, i, "split", fill(SPLIT, question="", reference="", response=text, max_score=0), {})
            for i, text in thinking.items()
        ]
        read = [partial(_read_cuts, text) for text in thinking.values()]
        readings = self._ask(self.splitter, requests, read, BAD_SPLIT)
        for i, reading in zip(thinking, readings, strict=True):
            evaluations[i].note(reading)
        return {i: r.value for i, r in zip(thinking, readings, strict=True) if r.value is not None}

    def _judge(self, kept: Kept, evaluations: Sequence[Evaluation]) -> None:
        """Give every evaluation with steps its labels, or the cause why there are none."""
        asked: list[tuple[Evaluation, bool]] = []
        requests, readers = [], []
        for i, (t, e, right) in enumerate(zip(kept.trajectories, evaluations, kept.correct_N.tolist(), strict=True)):
            if e.steps is None:
                continue
            count = len(e.steps) - 1
            if count < 1:  # one token reaches over the border between thinking and answer
                e.cause = NO_STEPS
                continue
            shown = numbered([t.text[start:end] for start, end in e.steps.spans])
            template = RIGHT_SOLUTION if right else WRONG_SOLUTION
            content = fill(template, question=kept.examples[i].question, reference="", response=shown, max_score=0)
            e.lost = _lost(kept.examples[i], t.text, e.steps)
            meta = {"oracle": _truth(e.lost, right), "oracle_err": partial(_err, count, right)}
            asked.append((e, right))
            requests.append(self._request(kept, i, "judge", content, meta))
            readers.append(partial(parse_wrong_steps if right else parse_matched_steps, steps=count))
        for (e, right), reading in zip(asked, self._ask(self.judge, requests, readers, MALFORMED), strict=True):
            e.note(reading)
            if reading.value is not None and e.steps is not None:
                e.is_key = [(k in reading.value) != right for k in range(1, len(e.steps))] + [True]

    def _request(self, kept: Kept, i: int, what: str, content: str, meta: dict[str, Any]) -> JudgeRequest:
        t, o = kept.trajectories[i], self.options
        name = f"{kept.examples[i].id}/{kept.step}/{t.group}/{t.sample}/{what}"
        return JudgeRequest(name, [{"role": "user", "content": content}], o.max_tokens, o.temperature, meta=meta)

    def _ask(
        self,
        judge: Judge,
        requests: Sequence[JudgeRequest],
        readers: Sequence[Callable[[str], Any]],
        unusable: str,
    ) -> list[Reading]:
        """One reading a request; what cannot be used, or was cut off, is asked for again as another sample."""

        def hear(read: Callable[[str], Any], reply: JudgeReply) -> Reading:
            value = None if reply.text is None else read(reply.text)
            cause = str(reply.status) if reply.text is None else unusable if value is None else ""
            return Reading(value, cause, **reply.counts)

        def is_useless(reading: Reading) -> bool:
            return reading.cause in (unusable, ReplyStatus.TRUNCATED)

        def readings(index: list[int]) -> list[Reading]:
            asked = [requests[i] for i in index]
            of = [readers[i] for i in index]
            retries = self.options.malformed_retries
            return hear_all(judge, asked, judge.ask(asked), lambda i, reply: hear(of[i], reply), is_useless, retries)

        return self.context.world.shared_work(range(len(requests)), readings)

    # ---- state ---------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was spent of the judges' budgets."""
        return {"judge": self.judge.state_dict(), "splitter": self.splitter.state_dict() if self.splitter else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.judge.load_state_dict(state["judge"])
        if self.splitter is not None:
            self.splitter.load_state_dict(state["splitter"])

    def close(self) -> None:
        self.judge.close()
        if self.splitter is not None:
            self.splitter.close()


def _worth_asking(kept: Kept) -> list[bool]:
    """Whether the group of each trajectory has a right response, or different outcomes [N]."""
    outcomes: dict[int, set[float]] = defaultdict(set)
    solved = set()
    for t, outcome, right in zip(kept.trajectories, kept.outcome_N.tolist(), kept.correct_N.tolist(), strict=True):
        outcomes[t.group].add(outcome)
        if right:
            solved.add(t.group)
    return [t.group in solved or len(outcomes[t.group]) > 1 for t in kept.trajectories]


def _read_cuts(thinking: str, reply: str) -> list[int] | None:
    markers = parse_markers(reply)
    return None if markers is None else cuts_at_markers(thinking, markers)


# ---- the oracle ----------------------------------------------------


def _lost(example: Example, text: str, steps: Steps) -> list[bool | None]:
    truth = step_truth(example, text, steps, "on_track")[:-1]
    return [None if math.isnan(value) else value < 0.5 for value in truth]


def _truth(lost: Sequence[bool | None], right: bool) -> str | None:
    """What a judge that knows the truth replies: the steps in which the right answer is lost are wrong in a right
    solution, and in a wrong one they are what its answer comes from."""
    if all(value is None for value in lost):
        return None
    named = {k for k, value in enumerate(lost, start=1) if value}
    return wrong_steps_reply(named) if right else matched_steps_reply(named)


def _err(count: int, right: bool, truth: str, error_rate: float, rng: random.Random) -> str:
    """The truth with each step judged the other way at this rate, independently."""
    named = (parse_wrong_steps if right else parse_matched_steps)(truth, count) or set()
    flipped = {k for k in range(1, count + 1) if (k in named) != (rng.random() < error_rate)}
    return wrong_steps_reply(flipped) if right else matched_steps_reply(flipped)


# ---- health --------------------------------------------------------


def health(kept: Kept, evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Shares of the trajectories by cause; shares of thoughts by kind of solution; agreement with the step oracle."""
    n = len(evaluations)
    causes = Counter(e.cause for e in evaluations)
    judged = [(e.is_key, e.lost, right) for e, right in zip(evaluations, kept.correct_N.tolist(), strict=True)
              if e.is_key is not None]  # fmt: skip
    metrics = {
        "judged_share": len(judged) / n,
        "asks_per_trajectory": sum(e.asks for e in evaluations) / n,
        "tokens_per_trajectory": sum(e.tokens for e in evaluations) / n,
        **{f"unjudged/{cause}_share": causes[cause] / n for cause in CAUSES},
    }
    if not judged:
        return metrics
    metrics["steps_per_response"] = sum(len(is_key) for is_key, _, _ in judged) / len(judged)
    metrics["thoughts_per_response"] = sum(len(merge(is_key)) for is_key, _, _ in judged) / len(judged)
    for name, kind in (("wrong_thought_share", True), ("unmatched_thought_share", False)):
        thoughts = [t.is_key for is_key, _, right in judged if right == kind for t in merge(is_key)]
        if thoughts:
            metrics[name] = thoughts.count(False) / len(thoughts)
    agreements = [
        (key != right) == lost
        for is_key, known, right in judged
        for key, lost in zip(is_key[:-1], known, strict=True)
        if lost is not None
    ]
    return metrics | ({"oracle_agreement": sum(agreements) / len(agreements)} if agreements else {})
