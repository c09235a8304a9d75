"""Labelled responses to `chain` expressions, made by program: preference pairs, and responses with a conciseness level.

The wrong response of a pair is as long as the right one and wrong in the way of a confident solver: one operation has
another result, and everything after it is carried on from there. So neither length nor odd-looking text gives it away;
only the arithmetic does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pydantic import Field

from data.chain import ANSWER_MARK, Chain, Expression, Rule, conciseness_level
from data.example import Example
from data.labelled import LABELLED_DATA, LabelledResponse, Pair


def wrong_solution(example: Example, rng: random.Random) -> str:
    """A response of the form of the demonstration, one operation of which is wrong, and so is its answer."""
    expression = Expression.parse(str(example.meta["expression"]))
    assert expression is not None
    rule = Rule(example.meta["modulus"], example.meta["precedence"])
    truth = rule.value(expression)
    if example.meta["direct"]:
        return f"{ANSWER_MARK}{_other(truth, rule, rng)}"
    at = rng.randrange(len(expression.operators))
    lines = _lines_with_error(expression, rule, at, rng)
    if lines[-1] == str(truth):  # the error cancelled out: make it in the last operation
        lines = _lines_with_error(expression, rule, len(expression.operators) - 1, rng)
    return "\n".join([*lines, f"{ANSWER_MARK}{lines[-1]}"])


def _lines_with_error(expression: Expression, rule: Rule, at: int, rng: random.Random) -> list[str]:
    lines = []
    for step in range(len(expression.operators)):
        position = rule.next_operations(expression)[0]
        expression = rule.do(expression, position)
        if step == at:
            numbers = list(expression.numbers)
            numbers[position] = _other(numbers[position], rule, rng)
            expression = Expression(tuple(numbers), expression.operators)
        lines.append(expression.text)
    return lines


def _other(number: int, rule: Rule, rng: random.Random) -> int:
    return (number + rng.randrange(1, rule.modulus)) % rule.modulus


@LABELLED_DATA.register("chain_pairs")
class ChainPairs:
    """For each expression its demonstration, preferred to a wrong solution."""

    class Options(Chain.Options):
        """per_expression: pairs of each, with wrong solutions drawn anew. flip_share: share of the pairs whose sides
        are swapped. 0.25 is the label noise of the ensembles' paper; with 0.5 nothing can be learnt, the control."""

        per_expression: int = Field(default=1, ge=1)
        flip_share: float = Field(default=0.0, ge=0, le=1)

    def __init__(self, options: Options):
        self.options = options

    def load(self) -> list[Pair]:
        several = range(self.options.per_expression)
        examples = [(example, f"{example.id}/{k}") for example in Chain(self.options).load() for k in several]
        rng = random.Random(f"chain pairs/{self.options.seed}")
        flips = random.Random(f"chain flips/{self.options.seed}")  # of its own: the pairs are those of no flips
        flipped = set(flips.sample(range(len(examples)), round(self.options.flip_share * len(examples))))
        return [self._pair(example, id_, i in flipped, rng) for i, (example, id_) in enumerate(examples)]

    def _pair(self, example: Example, id_: str, flipped: bool, rng: random.Random) -> Pair:
        assert example.solution is not None
        sides = [example.solution, wrong_solution(example, rng)]
        chosen, rejected = reversed(sides) if flipped else sides
        return Pair(id_, example.prompt, chosen, rejected)


@LABELLED_DATA.register("chain_levels")
class ChainLevels:
    """Responses of every long-windedness, right and wrong, each with its conciseness level."""

    class Options(Chain.Options):
        """max_repeats: of one line. wrong_share: of the responses, so that the level says nothing about being right.
        empty_share: of the responses."""

        max_repeats: int = Field(default=2, ge=0)
        wrong_share: float = Field(default=0.3, ge=0, le=1)
        empty_share: float = Field(default=0.02, ge=0, le=1)

    def __init__(self, options: Options):
        self.options = options

    def load(self) -> list[LabelledResponse]:
        rng = random.Random(f"chain levels/{self.options.seed}")
        return [self._response(example, rng) for example in Chain(self.options).load()]

    def _response(self, example: Example, rng: random.Random) -> LabelledResponse:
        assert example.solution is not None
        wrong = rng.random() < self.options.wrong_share
        text = wrong_solution(example, rng) if wrong else example.solution
        if rng.random() < self.options.empty_share:
            text = ""
        text = repeat_lines(text.splitlines(keepends=True), self.options.max_repeats, rng)
        return LabelledResponse(example.id, example.prompt, text, conciseness_level(text))


def repeat_lines(lines: Sequence[str], max_repeats: int, rng: random.Random) -> str:
    """Each line but the last is written again up to `max_repeats` times, half of the texts stay as they are."""
    if rng.random() < 0.5:
        return "".join(lines)
    return "".join(line * (1 + rng.randint(0, max_repeats)) for line in lines[:-1]) + "".join(lines[-1:])
