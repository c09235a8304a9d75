"""`judge`: a judge's word on each response as its outcome."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from data.example import Example
from prm.judge.base import JudgeReply, JudgeRequest, ReplyStatus, build_judge, hear_all, judge_options
from prm.judge.oracle import err_yes_no
from prm.judge.parsing import parse_score, parse_yes_no
from prm.judge.prompts import GRADED, YES_NO, fill
from prm.rule import verify_request
from prm.signal import SOURCES, Signal, Source, SourceContext
from rollout.trajectory import Finish, Trajectory
from verifiers.options import Options as BaseOptions
from verifiers.text import answer_text
from verifiers.verdict import Verdict

UNPARSABLE = "unparsable"
NO_ANSWER = "no_answer"
TRUNCATED = "truncated_response"


@dataclass(frozen=True, slots=True)
class Judgement:
    """score: in [0, 1], None if not judged. word: ``yes``, ``no`` or the score as given; else the cause. asks: replies
    that were wanted; cached: how many of them were there already. tokens: what the others took, in and out."""

    score: float | None
    word: str
    detail: str = ""
    asks: int = 0
    cached: int = 0
    tokens: int = 0


@SOURCES.register("judge")
class JudgeSource(Source):
    """outcome = 1 or 0 (`yes_no`), or score / `max_score` (`graded`). A judge that could not be asked, refused, or said
    nothing that can be read after `unparsable_retries` further tries gives NaN, so that the trajectory leaves its
    group: only what the policy did costs it reward.

    Labels: ``judgement`` holds the `Judgement` of each trajectory, ``judge_rule_verdict`` (with `compare_with_rule`)
    the verifier's `Verdict`. Metrics: shares of the trajectories, by cause; agreement with the verifier.
    """

    class Options(BaseOptions):
        """judge: its kind and options. prompt: with ``{response}``, and what else it needs of ``{question}``,
        ``{reference}``, ``{fence}`` and ``{max_score}``; default: as the form needs it. marker_required: only what
        follows "Final Judgment" or "Final Score" counts.

        thinking: ``strip`` shows the judge what stands outside <think>; a response without any is a 0, unasked.
        truncated: ``wrong`` gives a response that hit the token limit 0 without asking. max_response_chars: of a
        longer one the judge sees the end. compare_with_rule: ask the recipe's verifier too, and log the agreement.
        """

        judge: dict[str, Any]
        form: Literal["yes_no", "graded"] = "yes_no"
        max_score: int = Field(default=10, ge=1)
        prompt: str | None = None
        marker_required: bool = False
        max_tokens: int = Field(default=1024, ge=1)
        temperature: float = Field(default=0.0, ge=0)
        unparsable_retries: int = Field(default=2, ge=0)
        thinking: Literal["strip", "keep"] = "strip"
        truncated: Literal["wrong", "judge"] = "wrong"
        max_response_chars: int = Field(default=30_000, ge=1)
        compare_with_rule: bool = False

        @field_validator("prompt")
        @classmethod
        def _shows_the_response(cls, prompt: str | None) -> str | None:
            if prompt is not None and "{response}" not in prompt:
                raise ValueError("must contain {response}, or every response would be judged alike")
            return prompt

        @field_validator("judge")
        @classmethod
        def _is_a_judge(cls, judge: dict[str, Any]) -> dict[str, Any]:
            judge_options(judge, "judge")
            return judge

    def __init__(self, options: Any, context: SourceContext):
        super().__init__(options, context)
        self.judge = build_judge(self.options.judge, context)

    def start(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Callable[[], Signal]:
        """Ask, and return at once if the judge is elsewhere; the function returned waits for the judgements."""
        prepared = [self._prepare(t, e) for t, e in zip(trajectories, examples, strict=True)]
        requests = [p for p in prepared if isinstance(p, JudgeRequest)]
        wait = self.judge.submit(requests)
        wait_for_rule = self._ask_rule(trajectories, examples)

        def finish() -> Signal:
            retries = self.options.unparsable_retries
            judged = iter(hear_all(self.judge, requests, wait(), self._read, _is_useless, retries))
            judgements = [p if isinstance(p, Judgement) else next(judged) for p in prepared]
            return _signal(judgements, wait_for_rule())

        return finish

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        return self.start(trajectories, examples)()

    def state_dict(self) -> dict[str, Any]:
        """What was spent of the judge's budget."""
        return {"judge": self.judge.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.judge.load_state_dict(state["judge"])

    def close(self) -> None:
        self.judge.close()

    # ---- asking --------------------------------------------------------

    def _prepare(self, trajectory: Trajectory, example: Example) -> JudgeRequest | Judgement:
        o = self.options
        if trajectory.finish == Finish.LENGTH and o.truncated == "wrong":
            return Judgement(0.0, TRUNCATED)
        response = answer_text(trajectory.text) if o.thinking == "strip" else trajectory.text
        if response is None or not response.strip():
            return Judgement(0.0, NO_ANSWER)
        template = o.prompt or (YES_NO if o.form == "yes_no" else GRADED)
        content = fill(
            template,
            question=example.question,
            reference=example.gold,
            response=response.strip()[-o.max_response_chars :],
            max_score=o.max_score,
        )
        return JudgeRequest(
            f"{example.id}/{trajectory.weights_version}/{trajectory.sample}",
            [{"role": "user", "content": content}],
            o.max_tokens,
            o.temperature,
            meta={"oracle": lambda _: self._truth(trajectory, example), "oracle_err": self._err},
        )

    def _read(self, _: int, reply: JudgeReply) -> Judgement:
        counts: dict[str, Any] = reply.counts
        if reply.text is None:
            return Judgement(None, str(reply.status), reply.detail, **counts)
        o = self.options
        text = answer_text(reply.text) or ""  # a judge may think aloud too
        if o.form == "yes_no":
            says_yes = parse_yes_no(text, marker_required=o.marker_required)
            if says_yes is not None:
                return Judgement(float(says_yes), "yes" if says_yes else "no", **counts)
        else:
            points = parse_score(text, o.max_score, marker_required=o.marker_required)
            if points is not None:
                return Judgement(points / o.max_score, f"{points:g}", **counts)
        return Judgement(None, UNPARSABLE, f"...{reply.text[-200:]}", **counts)

    # ---- the verifier beside it ----------------------------------------

    def _ask_rule(
        self, trajectories: Sequence[Trajectory], examples: Sequence[Example]
    ) -> Callable[[], list[Verdict] | None]:
        if not self.options.compare_with_rule:
            return lambda: None
        return self.context.runner.submit([verify_request(t, e) for t, e in zip(trajectories, examples, strict=True)])

    def _truth(self, trajectory: Trajectory, example: Example) -> str | None:
        """What an oracle says: the verifier's verdict in the judge's words."""
        verdict = self.context.runner.verify([verify_request(trajectory, example)])[0]
        if verdict.score is None:
            return None
        if self.options.form == "yes_no":
            return f"Final Judgment: {'Yes' if verdict.score >= 0.5 else 'No'}"
        return f"Final Score: {round(verdict.score * self.options.max_score)}"

    def _err(self, truth: str, error_rate: float, rng: random.Random) -> str:
        if self.options.form == "yes_no":
            return err_yes_no(truth, error_rate, rng)
        points = int(truth.rpartition(" ")[2])
        return f"Final Score: {self.options.max_score - points}" if rng.random() < error_rate else truth


def _is_useless(judgement: Judgement) -> bool:
    return judgement.word in (UNPARSABLE, ReplyStatus.TRUNCATED)


def _signal(judgements: list[Judgement], verdicts: list[Verdict] | None) -> Signal:
    outcome = torch.tensor([math.nan if j.score is None else j.score for j in judgements], dtype=torch.float32)
    labels: dict[str, list[Any]] = {"judgement": judgements}
    metrics = health(judgements)
    if verdicts is not None:
        labels["judge_rule_verdict"] = verdicts
        metrics |= agreement([j.score for j in judgements], [v.score for v in verdicts])
    return Signal(outcome, labels=labels, metrics=metrics)


def health(judgements: Sequence[Judgement]) -> dict[str, float]:
    """Shares of the trajectories; each cause of failure is always there, so that means over groups are right."""
    if not judgements:
        return {}
    n = len(judgements)
    causes = [UNPARSABLE, *(str(status) for status in ReplyStatus if status is not ReplyStatus.OK)]
    asks = sum(j.asks for j in judgements)
    return {
        "unjudged_share": sum(j.score is None for j in judgements) / n,
        "unasked_share": sum(j.asks == 0 for j in judgements) / n,
        "asks_per_trajectory": asks / n,
        "cached_per_trajectory": sum(j.cached for j in judgements) / n,
        "tokens_per_trajectory": sum(j.tokens for j in judgements) / n,
        **{f"failed/{cause}_share": sum(j.word == cause for j in judgements) / n for cause in causes},
    }


def agreement(judge: Sequence[float | None], rule: Sequence[float | None]) -> dict[str, float]:
    """Of the trajectories that both judged: the share on which they agree (0.5 and above is right), and the two ways
    to disagree. {} if there are none."""
    pairs = [(j >= 0.5, r >= 0.5) for j, r in zip(judge, rule, strict=True) if j is not None and r is not None]
    if not pairs:
        return {}
    return {
        "rule_agreement": sum(j == r for j, r in pairs) / len(pairs),
        "accepts_what_rule_rejects_share": pairs.count((True, False)) / len(pairs),
        "rejects_what_rule_accepts_share": pairs.count((False, True)) / len(pairs),
    }
