"""`corrupt`: an assistant that makes wrong solutions out of right ones without a language model, for examples of the
data source `chain`.

A request carries the right response and its example in `meta`; the reply is that response with one number changed and
everything after it worked out from there, so that every later line follows and the answer is another: what a plausible
wrong solution looks like. A response whose lines cannot be followed has the number in its answer changed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field

from data.chain import ANSWER_MARK, Expression, Rule
from data.example import Example
from prm.judge.base import JUDGES, Judge, JudgeReply, JudgeRequest, ReplyStatus
from rollout.engine import derive_seed
from verifiers.options import Options as BaseOptions

_ANSWER = re.compile(rf"{ANSWER_MARK} *[0-9]+")


@JUDGES.register("corrupt")
class CorruptJudge(Judge):
    """Replies depend on the seed, the request's id and its sample. A request without an example of `chain` is not
    answered (``no_oracle``)."""

    class Options(BaseOptions):
        """where: `anywhere` errs in any line and goes on from there, `answer` changes the answer alone. failure_rate,
        useless_rate: chance of no reply, and of the right response as it was, for experiments with a bad assistant."""

        where: Literal["anywhere", "answer"] = "anywhere"
        failure_rate: float = Field(default=0.0, ge=0, le=1)
        useless_rate: float = Field(default=0.0, ge=0, le=1)

    def __init__(self, options: CorruptJudge.Options, *, seed: int = 0):
        self.options, self.seed = options, seed

    @classmethod
    def from_context(cls, options: CorruptJudge.Options, context: Any) -> Self:
        return cls(options, seed=context.seed)

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        return [self._reply(request) for request in requests]

    def _reply(self, request: JudgeRequest) -> JudgeReply:
        example, response = request.meta.get("example"), request.meta.get("response")
        if not isinstance(example, Example) or response is None or example.meta.get("task") != "chain":
            return JudgeReply(None, ReplyStatus.NO_ORACLE, "only responses to examples of `chain` can be corrupted")
        rng = random.Random(derive_seed(self.seed, "corrupt", request.id, request.sample))
        if rng.random() < self.options.failure_rate:
            return JudgeReply(None, ReplyStatus.UNREACHABLE, "failure_rate", attempts=1)
        if rng.random() < self.options.useless_rate:
            return JudgeReply(response, ReplyStatus.OK, attempts=1)
        return JudgeReply(corrupted(example, response, self.options.where, rng), ReplyStatus.OK, attempts=1)


def corrupted(example: Example, response: str, where: Literal["anywhere", "answer"], rng: random.Random) -> str:
    """`response` with one error and all that follows from it."""
    rule = Rule(example.meta["modulus"], example.meta["precedence"])
    lines = response.splitlines()
    solution = [line for line in map(Expression.parse, lines) if line is not None]
    numbers = list(range(len(solution))) if where == "anywhere" else []
    # the last choice stands for the answer line
    chosen = rng.choice([*numbers, None])
    if chosen is None:
        return _other_answer(response, rule.modulus, rng)
    wrong = _other_number(solution[chosen], rule.modulus, rng)
    texts = [line.text for line in [*solution[:chosen], wrong, *rule.lines(wrong)]]
    answer = f"{ANSWER_MARK}{rule.value(wrong)}"
    return "\n".join([*texts, answer])


def _other_number(expression: Expression, modulus: int, rng: random.Random) -> Expression:
    """The first number, which the last operation gave, is another."""
    first, *rest = expression.numbers
    return Expression(((first + rng.randrange(1, modulus)) % modulus, *rest), expression.operators)


def _other_answer(response: str, modulus: int, rng: random.Random) -> str:
    found = list(_ANSWER.finditer(response))
    if not found:
        return response
    number = int(found[-1][0].removeprefix(ANSWER_MARK))
    changed = f"{ANSWER_MARK}{(number + rng.randrange(1, modulus)) % modulus}"
    return response[: found[-1].start()] + changed + response[found[-1].end() :]
