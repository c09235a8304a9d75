"""`chain`: evaluate an arithmetic expression step by step. Every line can be checked by program.

    prompt      3+4*2-5=
    scratchpad  7*2-5        one operation done, the rest copied
                4-5          (numbers are modulo 10)
                9            ... until one number is left
                #9           the answer: everything after the last '#'
    direct      #9

All arithmetic is modulo `modulus`, so every number has few digits and none is negative. The default rule is left to
right, without precedence: the next operation is always at the head of the line, which a character model of about a
million parameters can learn to find; with ``precedence: standard`` products come first, as in school.

The gold is the answer as text. Read responses with a verifier that takes what follows the last '#'.

The step oracle (`check_steps`) accepts any operation that the rule allows next (left to right: exactly one; standard:
any whose neighbours do not bind its operands first), and an answer from any line, so that a direct answer is one step.

The conciseness level of a response stands in for a large model's judgement. It counts what a reader would call
long-winded, and says nothing about being right; an answer without working has level 1, and so has an empty response:

    level = 1 - 0.1 * (different lines of working) - 0.2 * (lines that repeat an earlier one), at least 0.1
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field, field_validator, model_validator

from data.example import Example, Message
from data.sources import DATA_SOURCES
from data.steps import StepLabel, label_lines
from verifiers.errors import DataError
from verifiers.options import Options as BaseOptions

ANSWER_MARK = "#"
WORKING_COST, REPEAT_COST = 0.1, 0.2  # of a line, in conciseness
_EXPRESSION = re.compile(r"[0-9]{1,18}(?:[+*-][0-9]{1,18})*")
_ANSWER = re.compile(r"# *([0-9]{1,18}) *")

Precedence = Literal["left_to_right", "standard"]


@dataclass(frozen=True, slots=True)
class Expression:
    """numbers[i] operators[i] numbers[i + 1] ..."""

    numbers: tuple[int, ...]
    operators: str

    @property
    def text(self) -> str:
        pairs = zip(self.operators, self.numbers[1:], strict=True)
        return str(self.numbers[0]) + "".join(f"{operator}{number}" for operator, number in pairs)

    @staticmethod
    def parse(text: str) -> Expression | None:
        """None when `text` is not an expression."""
        if not _EXPRESSION.fullmatch(text):
            return None
        return Expression(tuple(int(n) for n in re.findall("[0-9]+", text)), "".join(re.findall("[+*-]", text)))


@dataclass(frozen=True, slots=True)
class Rule:
    """How expressions are evaluated."""

    modulus: int
    precedence: Precedence

    def next_operations(self, expression: Expression) -> list[int]:
        """Positions of the operators that may be done next; empty for a single number."""
        ranks = [2 if op == "*" and self.precedence == "standard" else 1 for op in expression.operators]
        padded = [0, *ranks, 0]
        return [i for i, rank in enumerate(ranks) if padded[i] < rank >= padded[i + 2]]

    def do(self, expression: Expression, position: int) -> Expression:
        """The expression with the operation at `position` done."""
        left, right = expression.numbers[position : position + 2]
        operator = expression.operators[position]
        result = {"+": left + right, "-": left - right, "*": left * right}[operator] % self.modulus
        numbers = (*expression.numbers[:position], result, *expression.numbers[position + 2 :])
        return Expression(numbers, expression.operators[:position] + expression.operators[position + 1 :])

    def lines(self, expression: Expression) -> Iterator[Expression]:
        """The scratchpad: after each operation, products first if the rule says so, else from the left."""
        while expression.operators:
            allowed = self.next_operations(expression)
            products = [i for i in allowed if expression.operators[i] == "*"]
            expression = self.do(expression, (products or allowed)[0])
            yield expression

    def value(self, expression: Expression) -> int:
        for line in self.lines(expression):
            expression = line
        return expression.numbers[0] % self.modulus


def check_steps(example: Example, response: str) -> list[StepLabel]:
    """Label every line of `response` to a `chain` example; the answer line is the last step. Total on model text.

    A line follows if it is the line before it (at first: the question) with one allowed operation done, or an answer
    that has the value of the line before it; nothing may come after the answer. A line is on track if it has the true
    value.
    """
    return label_lines(response, _Judge(example))


def paraphrase(example: Example) -> Example | None:
    """The same calculation with every addition written as a subtraction and the other way round: of 3+4*2-5 modulo 10,
    3-6*2+5. Exact, and its own inverse. None where there is nothing but products: they stay as they are."""
    expression = Expression.parse(str(example.meta["expression"]))
    if expression is None or set(expression.operators) <= {"*"}:
        return None
    rule = Rule(example.meta["modulus"], example.meta["precedence"])
    first, *others = expression.numbers
    numbers = [n if op == "*" else -n % rule.modulus for op, n in zip(expression.operators, others, strict=True)]
    other = Expression((first, *numbers), expression.operators.translate(str.maketrans("+-", "-+")))
    meta = {**example.meta, "expression": other.text}
    return replace(example, prompt=(Message("user", f"{other.text}="),), solution=None, meta=meta)


class _Judge:
    def __init__(self, example: Example):
        expression = Expression.parse(str(example.meta.get("expression")))
        if example.meta.get("task") != "chain" or expression is None:
            raise DataError("Only examples made by the data source 'chain' have its step oracle.", where=example.id)
        self.rule = Rule(example.meta["modulus"], example.meta["precedence"])
        self.truth = self.rule.value(expression)
        self.previous: Expression | None = expression  # None: the last line could not be read, or was the answer
        self.answered = False

    def __call__(self, line: str) -> tuple[bool, bool]:
        previous, self.previous = self.previous, None
        if answer := _ANSWER.fullmatch(line):
            self.answered = True
            number = int(answer[1])
            return previous is not None and number == self.rule.value(previous), number == self.truth
        expression = Expression.parse(line)
        if expression is None:
            return False, False
        self.previous = None if self.answered else expression
        allowed = [] if previous is None else self.rule.next_operations(previous)
        follows = any(previous is not None and self.rule.do(previous, i).text == line for i in allowed)
        return follows, self.rule.value(expression) == self.truth


def conciseness_level(response: str) -> float:
    """0.1, 0.2 .. 1.0."""
    lines = [line for line in response.splitlines() if line and not line.startswith(ANSWER_MARK)]
    different = len(set(lines))
    level = 1 - WORKING_COST * different - REPEAT_COST * (len(lines) - different)
    return max(0.1, round(level, 1))


@DATA_SOURCES.register("chain")
class Chain:
    """Generates distinct expressions with gold answer, demonstration and step oracle. See the module docstring."""

    class Options(BaseOptions):
        """count: examples to make. operators: a subset of ``+-*``, as one text. direct_share: share of the examples
        whose demonstration answers directly instead of using the scratchpad. repeat_share: chance that a line of a
        demonstration is written twice, as language models do. seed: another seed, other expressions."""

        count: int = Field(ge=1)
        seed: int = 0
        modulus: int = Field(default=10, ge=2, le=10**6)
        min_operands: int = Field(default=3, ge=2)
        max_operands: int = Field(default=5, le=30)
        operators: str = "+-*"
        precedence: Precedence = "left_to_right"
        direct_share: float = Field(default=0.0, ge=0.0, le=1.0)
        repeat_share: float = Field(default=0.0, ge=0.0, le=1.0)

        @field_validator("operators")
        @classmethod
        def _known_operators(cls, operators: str) -> str:
            if not operators or not set(operators) <= set("+-*") or len(set(operators)) < len(operators):
                raise ValueError("must be some of the characters + - *, each at most once")
            return operators

        @model_validator(mode="after")
        def _operand_range(self) -> Chain.Options:
            if self.min_operands > self.max_operands:
                raise ValueError(f"min_operands ({self.min_operands}) exceeds max_operands ({self.max_operands})")
            return self

    check_steps = staticmethod(check_steps)
    paraphrase = staticmethod(paraphrase)
    conciseness_level = staticmethod(conciseness_level)

    def __init__(self, options: Options):
        self.options = options
        self.rule = Rule(options.modulus, options.precedence)

    def load(self) -> list[Example]:
        """`count` examples with distinct expressions, as many of each length as there can be. Raises `DataError`."""
        rng = random.Random(f"chain/{self.options.seed}")
        expressions = [
            self._expression(operands, index)
            for operands, count in self._counts().items()
            for index in _distinct(rng, count, self._space(operands))
        ]
        rng.shuffle(expressions)
        direct = set(rng.sample(range(len(expressions)), round(self.options.direct_share * len(expressions))))
        return [self._example(expression, i in direct) for i, expression in enumerate(expressions)]

    def _space(self, operands: int) -> int:
        return self.options.modulus**operands * len(self.options.operators) ** (operands - 1)

    def _counts(self) -> dict[int, int]:
        """Examples of each length: equal shares, except where a length has fewer expressions than its share."""
        lengths = range(self.options.min_operands, self.options.max_operands + 1)
        left, total = self.options.count, sum(self._space(n) for n in lengths)
        if left > total:
            raise DataError(
                f"chain cannot make {left} distinct examples: these options allow {total} expressions.",
                where="chain, option 'count'",
                fix=f"set count to at most {total}, or raise max_operands or modulus, or allow more operators",
            )
        counts = {}
        for position, length in enumerate(lengths):  # the space grows with the length, so the last one has room
            counts[length] = min(self._space(length), left // (len(lengths) - position))
            left -= counts[length]
        return counts

    def _expression(self, operands: int, index: int) -> Expression:
        """The expression with this number in a counting of all expressions of that length."""
        numbers, operators = [], []
        for _ in range(operands):
            index, number = divmod(index, self.options.modulus)
            numbers.append(number)
        for _ in range(operands - 1):
            index, operator = divmod(index, len(self.options.operators))
            operators.append(self.options.operators[operator])
        return Expression(tuple(numbers), "".join(operators))

    def _example(self, expression: Expression, direct: bool) -> Example:
        answer = f"{ANSWER_MARK}{self.rule.value(expression)}"
        rng = random.Random(f"chain repeats/{self.options.seed}/{expression.text}")
        lines = [f"{line.text}\n" for line in self.rule.lines(expression)]
        scratchpad = "".join(line * (1 + (rng.random() < self.options.repeat_share)) for line in lines)
        return Example(
            id=f"chain-{expression.text}",
            prompt=(Message("user", f"{expression.text}="),),
            gold=answer.removeprefix(ANSWER_MARK),
            solution=answer if direct else scratchpad + answer,
            meta={
                "task": "chain",
                "expression": expression.text,
                "modulus": self.rule.modulus,
                "precedence": self.rule.precedence,
                "operands": len(expression.numbers),
                "direct": direct,
            },
        )


def _distinct(rng: random.Random, count: int, space: int) -> list[int]:
    """`count` different numbers below `space`."""
    if count * 2 > space:
        return rng.sample(range(space), count)
    chosen: dict[int, None] = {}  # rng.sample cannot take a space beyond 63 bits
    while len(chosen) < count:
        chosen[rng.randrange(space)] = None
    return list(chosen)
