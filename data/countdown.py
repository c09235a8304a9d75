"""`countdown`: reach a target from given numbers, each used at most once; many answers are right.

    prompt      3 7 25 make 46:
    solution    3*7=21       two of the numbers at hand become one
                25+21=46     ... until one is left
                #25+3*7      the answer, one expression, after the last '#'

Numbers stand in rising order, so the same problem always has the same text. Numbers at hand are integers (a step may
give a negative one); a division step must come out even. `gold` is
``{"numbers": [3, 7, 25], "target": 46, "solution": "25+3*7"}``; the solution is one of many, and uses every number.

With ``use_all: true`` an answer must use every number; give the verifier `countdown` the same option.

The step oracle (`check_steps`) searches all ways to go on, over exact fractions and the operations + - * /, so it knows
whether a legal step has lost the target.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from pydantic import Field, field_validator, model_validator

from data.example import Example, Message
from data.sources import DATA_SOURCES
from data.steps import StepLabel, label_lines
from verifiers.countdown import CountdownVerifier
from verifiers.errors import DataError
from verifiers.options import Options as BaseOptions
from verifiers.verdict import Status, VerifyRequest

ANSWER_MARK = "#"
MAX_FAILED_DRAWS = 5_000  # in a row, before the space counts as used up
_STEP = re.compile(r"(-?[0-9]{1,18})([+*/-])(-?[0-9]{1,18})=(-?[0-9]{1,18})")
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2}


def check_steps(example: Example, response: str) -> list[StepLabel]:
    """Label every line of `response` to a `countdown` example; the answer line is the last step. Total on model text.

    A step follows if it combines two numbers at hand and is rightly computed; it is on track if the target can still be
    reached from the numbers left. A line that starts with '#' is an answer, correct if the verifier `countdown` says
    so; nothing may come after it. After a step that does not follow, the numbers at hand are unknown and no later step
    follows.
    """
    return label_lines(response, _Judge(example))


def paraphrase(example: Example) -> Example | None:
    """The same problem with the numbers in falling order; None where they are all equal."""
    numbers, target = example.gold["numbers"], example.gold["target"]
    falling = " ".join(map(str, sorted(numbers, reverse=True)))
    if len(set(numbers)) == 1:
        return None
    return replace(example, prompt=(Message("user", f"{falling} make {target}:"),), solution=None)


class _Judge:
    def __init__(self, example: Example):
        if example.meta.get("task") != "countdown":
            raise DataError("Only examples made by the data source 'countdown' have its step oracle.", where=example.id)
        self.gold, self.use_all = example.gold, example.meta["use_all"]
        self.verifier = CountdownVerifier(CountdownVerifier.Options(use_all=self.use_all))
        self.at_hand: Counter[int] | None = Counter(self.gold["numbers"])  # None: unknown, after a step that is wrong
        self.answered = False

    def __call__(self, line: str) -> tuple[bool, bool]:
        if line.startswith(ANSWER_MARK):
            return self._answer(line)
        at_hand, self.at_hand = self.at_hand, None
        step = _STEP.fullmatch(line)
        if step is None or at_hand is None or self.answered:
            return False, False
        left, operator, right, result = int(step[1]), step[2], int(step[3]), int(step[4])
        used = Counter([left, right])
        if not used <= at_hand or _combine(left, operator, right) != result:
            return False, False
        self.at_hand = at_hand - used + Counter([result])
        numbers = tuple(sorted(map(Fraction, self.at_hand.elements())))
        return True, _can_reach(numbers, Fraction(self.gold["target"]), self.use_all)

    def _answer(self, line: str) -> tuple[bool, bool]:
        first, self.answered = not self.answered, True
        right = self.verifier.verify(VerifyRequest(line, self.gold)).status is Status.CORRECT
        return first and right, right


def _combine(left: Fraction | int, operator: str, right: Fraction | int) -> Fraction | None:
    if operator == "/":
        return Fraction(left) / right if right else None
    return Fraction({"+": left + right, "-": left - right, "*": left * right}[operator])


@lru_cache(maxsize=100_000)
def _can_reach(numbers: tuple[Fraction, ...], target: Fraction, use_all: bool) -> bool:
    """Can `numbers` (sorted; all of them or some) be combined, two at a time, into `target`?"""
    if target in numbers and (len(numbers) == 1 or not use_all):
        return True
    for i, low in enumerate(numbers):
        for j in range(i + 1, len(numbers)):
            high = numbers[j]
            rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            results = {low + high, low - high, high - low, low * high}
            results |= {low / high} if high else set()
            results |= {high / low} if low else set()
            if any(_can_reach(tuple(sorted((*rest, result))), target, use_all) for result in results):
                return True
    return False


class _Term(NamedTuple):
    """A number at hand while a problem is made: its value, the expression behind it, the rank of its last operation."""

    value: int
    text: str
    rank: int = 3


class _Problem(NamedTuple):
    numbers: list[int]
    target: int
    steps: list[str]
    expression: str


@DATA_SOURCES.register("countdown")
class Countdown:
    """Generates distinct solvable problems with gold, demonstration and step oracle. See the module docstring."""

    class Options(BaseOptions):
        """count: examples to make. max_value: largest given number (the smallest is 1). max_target: largest target and
        intermediate result of the demonstration. operators: those the demonstrations use, a subset of ``+-*/`` as one
        text (a model may use all four). use_all: see the module. seed: another seed, other problems."""

        count: int = Field(ge=1)
        seed: int = 0
        min_numbers: int = Field(default=3, ge=2)
        max_numbers: int = Field(default=4, le=5)  # the oracle searches all ways to go on
        max_value: int = Field(default=20, ge=2, le=10**6)
        max_target: int = Field(default=99, ge=2, le=10**9)
        operators: str = "+-*"
        use_all: bool = False

        @field_validator("operators")
        @classmethod
        def _known_operators(cls, operators: str) -> str:
            if not operators or not set(operators) <= set("+-*/") or len(set(operators)) < len(operators):
                raise ValueError("must be some of the characters + - * /, each at most once")
            return operators

        @model_validator(mode="after")
        def _number_range(self) -> Countdown.Options:
            if self.min_numbers > self.max_numbers:
                raise ValueError(f"min_numbers ({self.min_numbers}) exceeds max_numbers ({self.max_numbers})")
            return self

    check_steps = staticmethod(check_steps)
    paraphrase = staticmethod(paraphrase)

    def __init__(self, options: Options):
        self.options = options

    def load(self) -> list[Example]:
        """`count` examples with distinct numbers and target. Raises `DataError` when no new ones turn up."""
        rng = random.Random(f"countdown/{self.options.seed}")
        examples: dict[str, Example] = {}
        failed_draws = 0
        while len(examples) < self.options.count:
            problem = self._draw(rng)
            example = None if problem is None else self._example(problem)
            if example is not None and example.id not in examples:
                examples[example.id] = example
                failed_draws = 0
                continue
            failed_draws += 1
            if failed_draws == MAX_FAILED_DRAWS:
                raise DataError(
                    f"countdown cannot make {self.options.count} distinct examples: after {len(examples)}, "
                    f"{MAX_FAILED_DRAWS} draws gave nothing new.",
                    where="countdown, option 'count'",
                    fix=f"set count to at most {len(examples)}, or raise max_value, max_target or max_numbers",
                )
        return list(examples.values())

    def _draw(self, rng: random.Random) -> _Problem | None:
        """Combine random numbers at random; None when a result leaves 1 .. max_target, or nothing is to do."""
        options = self.options
        numbers = [
            rng.randint(1, options.max_value) for _ in range(rng.randint(options.min_numbers, options.max_numbers))
        ]
        terms, steps = [_Term(n, str(n)) for n in numbers], []
        while len(terms) > 1:
            rng.shuffle(terms)
            right, left, operator = terms.pop(), terms.pop(), rng.choice(options.operators)
            result = _combine(left.value, operator, right.value)
            if result is None or result.denominator != 1 or not 1 <= result <= options.max_target:
                return None
            steps.append(f"{left.value}{operator}{right.value}={result}")
            terms.append(_Term(int(result), _joined(left, operator, right), _RANK[operator]))
        if terms[0].value in numbers:
            return None
        return _Problem(sorted(numbers), terms[0].value, steps, terms[0].text)

    def _example(self, problem: _Problem) -> Example:
        numbers = " ".join(map(str, problem.numbers))
        return Example(
            id=f"countdown-{numbers.replace(' ', ',')}-{problem.target}",
            prompt=(Message("user", f"{numbers} make {problem.target}:"),),
            gold={"numbers": problem.numbers, "target": problem.target, "solution": problem.expression},
            solution="".join(f"{step}\n" for step in problem.steps) + ANSWER_MARK + problem.expression,
            meta={"task": "countdown", "use_all": self.options.use_all},
        )


def _joined(left: _Term, operator: str, right: _Term) -> str:
    """The expression of a step, with parentheses only where they are needed."""
    rank = _RANK[operator]
    left_text = f"({left.text})" if left.rank < rank else left.text
    loose_right = right.rank < rank or (right.rank == rank and operator in "-/")
    return f"{left_text}{operator}({right.text})" if loose_right else f"{left_text}{operator}{right.text}"
