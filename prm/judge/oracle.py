"""`oracle`: a judge that knows the truth and errs as often as it is told to, for experiments with judge noise."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Self

from pydantic import Field

from prm.judge.base import JUDGES, Judge, JudgeReply, JudgeRequest, ReplyStatus
from rollout.engine import derive_seed
from verifiers.options import Options as BaseOptions

Truth = Callable[[JudgeRequest], str | None]
# (the true reply, error_rate, random numbers of this request) -> what the judge says
Err = Callable[[str, float, random.Random], str]

MALFORMED_TEXT = "As far as this can be told at all, it depends."
_YES_NO = re.compile(r"(?<!\w)(?:yes|no)(?!\w)", re.IGNORECASE)


def err_yes_no(truth: str, error_rate: float, rng: random.Random) -> str:
    """The other word for the last Yes or No, with probability `error_rate`."""
    found = list(_YES_NO.finditer(truth))
    if rng.random() >= error_rate or not found:
        return truth
    return truth[: found[-1].start()] + ("No" if found[-1][0].lower() == "yes" else "Yes") + truth[found[-1].end() :]


@JUDGES.register("oracle")
class OracleJudge(Judge):
    """The truth of a request is `truth(request)`, or ``meta["oracle"]``: a text, or such a function; None if unknown,
    which gives a reply ``no_oracle``. How it errs is `err`, or ``meta["oracle_err"]``; a form with several decisions
    (one per step, say) errs in each on its own.

    What it says depends on the seed, the request's id and its sample, not on the order or the number of requests.
    """

    class Options(BaseOptions):
        """error_rate: probability of the wrong judgement. failure_rate: probability of a text that is none."""

        error_rate: float = Field(default=0.0, ge=0, le=1)
        failure_rate: float = Field(default=0.0, ge=0, le=1)

    def __init__(
        self, options: OracleJudge.Options, truth: Truth | None = None, *, err: Err = err_yes_no, seed: int = 0
    ):
        self.options, self.truth, self.err, self.seed = options, truth, err, seed

    @classmethod
    def from_context(cls, options: OracleJudge.Options, context: Any) -> Self:
        return cls(options, seed=context.seed)

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        return [self._reply(request) for request in requests]

    def _reply(self, request: JudgeRequest) -> JudgeReply:
        oracle: str | Truth | None = request.meta.get("oracle", self.truth)
        truth = oracle if oracle is None or isinstance(oracle, str) else oracle(request)
        if truth is None:
            return JudgeReply(None, ReplyStatus.NO_ORACLE, "nobody knows the truth of this request", attempts=1)
        rng = random.Random(derive_seed(self.seed, "oracle", request.id, request.sample))
        if rng.random() < self.options.failure_rate:
            return JudgeReply(MALFORMED_TEXT, ReplyStatus.OK, attempts=1)
        err: Err = request.meta.get("oracle_err", self.err)
        return JudgeReply(err(truth, self.options.error_rate, rng), ReplyStatus.OK, attempts=1)
