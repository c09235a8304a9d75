"""`small_programs`: write a short Python function from a list of steps. Hidden tests are run; no text is compared.

    prompt      a plus b, times 3, mod 5:
    right       def f(a,b):return (a+b)*3%5
    naive       def f(a,b):return a+b*3%5       the words one by one, without parentheses

Steps are done from left to right. `over` is Python's floor division; `over` and `mod` take positive constants only, so
no program here raises. Any function that returns the same values is right: more parentheses, several lines, a shorter
form.

The gold is the object that the verifier `code` reads: type functional, `fn_name` f, `inputs`, `outputs`, and a right
`solution`. Inputs are drawn for each task and are not in the prompt. They tell the task from every version of it with
one step left out, and from its naive reading where that has other text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import Field, model_validator

from data.example import Example, Message
from data.sources import DATA_SOURCES
from verifiers.errors import DataError
from verifiers.options import Options as BaseOptions

FUNCTION = "f"
MAX_FAILED_DRAWS = 5_000  # in a row, before the space counts as used up
_MAX_CONSTANT = 9
_NAMES = "abcd"
_OPERATORS = {"plus": "+", "minus": "-", "times": "*", "over": "//", "mod": "%"}
_LOOSE = ("plus", "minus")


@dataclass(frozen=True, slots=True)
class Step:
    """word: plus, minus, times, over or mod. operand: an argument's name, or digits."""

    word: str
    operand: str

    def number(self, arguments: dict[str, int]) -> int:
        return arguments[self.operand] if self.operand in arguments else int(self.operand)


@dataclass(frozen=True, slots=True)
class Task:
    """Begins with the argument `start`, then does the steps in order."""

    start: str
    steps: tuple[Step, ...]

    @property
    def text(self) -> str:
        words = [f"{step.word} {step.operand}" for step in self.steps]
        return f"{self.start} {', '.join(words)}"

    def value(self, arguments: dict[str, int]) -> int:
        """What the function returns for these arguments, by name."""
        result = arguments[self.start]
        for step in self.steps:
            result = _apply(step.word, result, step.number(arguments))
        return result

    def naive_value(self, arguments: dict[str, int]) -> int:
        """What it would return if its steps were written one by one: products first."""
        total, sign, term = 0, 1, arguments[self.start]
        for step in self.steps:
            operand = step.number(arguments)
            if step.word in _LOOSE:
                total, sign, term = total + sign * term, 1 if step.word == "plus" else -1, operand
            else:
                term = _apply(step.word, term, operand)
        return total + sign * term

    def expression(self, *, naive: bool = False) -> str:
        """Python for it, with the parentheses that it needs; naive: with none."""
        text, loose = self.start, False  # loose: its last operation binds less than a product
        for step in self.steps:
            if loose and step.word not in _LOOSE and not naive:
                text = f"({text})"
            text += _OPERATORS[step.word] + step.operand
            loose = step.word in _LOOSE
        return text

    @property
    def needs_parentheses(self) -> bool:
        return self.expression() != self.expression(naive=True)

    def shortened(self) -> Iterator[Task]:
        """The task with one step left out, for each step."""
        return (Task(self.start, self.steps[:i] + self.steps[i + 1 :]) for i in range(len(self.steps)))


def _apply(word: str, left: int, right: int) -> int:
    match word:
        case "plus":
            return left + right
        case "minus":
            return left - right
        case "times":
            return left * right
        case "over":
            return left // right
        case _:
            return left % right


@DATA_SOURCES.register("small_programs")
class SmallPrograms:
    """Generates distinct tasks with hidden tests and a demonstration. See the module docstring."""

    class Options(BaseOptions):
        """count: examples to make. num_arguments: of the function, named a, b, c, d. tests: calls with hidden inputs.
        max_input: inputs are integers of at most this absolute value. naive_share: share of the examples whose
        demonstration has no parentheses, whether it is right or not. seed: another seed, other tasks."""

        count: int = Field(ge=1)
        seed: int = 0
        num_arguments: int = Field(default=2, ge=1, le=len(_NAMES))
        min_steps: int = Field(default=3, ge=1)
        max_steps: int = Field(default=4, le=8)
        tests: int = Field(default=8, ge=2, le=100)
        max_input: int = Field(default=20, ge=5, le=10**6)
        naive_share: float = Field(default=0.0, ge=0.0, le=1.0)

        @model_validator(mode="after")
        def _step_range(self) -> SmallPrograms.Options:
            if self.min_steps > self.max_steps:
                raise ValueError(f"min_steps ({self.min_steps}) exceeds max_steps ({self.max_steps})")
            return self

    def __init__(self, options: Options):
        self.options = options
        self.names = tuple(_NAMES[: options.num_arguments])

    def load(self) -> list[Example]:
        """`count` examples with distinct texts. Raises `DataError` when no new ones turn up."""
        rng = random.Random(f"small_programs/{self.options.seed}")
        count, drawn = self.options.count, dict[Task, list[list[int]]]()
        failed_draws = 0
        while len(drawn) < count:
            task = self._draw(rng)
            inputs = None if task in drawn else self._inputs(task)
            if inputs is not None:
                drawn[task] = inputs
                failed_draws = 0
                continue
            failed_draws += 1
            if failed_draws == MAX_FAILED_DRAWS:
                raise DataError(
                    f"small_programs cannot make {count} distinct examples: after {len(drawn)}, "
                    f"{MAX_FAILED_DRAWS} draws gave nothing new.",
                    where="small_programs, option 'count'",
                    fix=f"set count to at most {len(drawn)}, or raise max_steps, num_arguments or tests",
                )
        naive = set(rng.sample(range(count), round(self.options.naive_share * count)))
        return [self._example(task, inputs, naive=i in naive) for i, (task, inputs) in enumerate(drawn.items())]

    def _draw(self, rng: random.Random) -> Task:
        steps = [self._step(rng) for _ in range(rng.randint(self.options.min_steps, self.options.max_steps))]
        return Task(rng.choice(self.names), tuple(steps))

    def _step(self, rng: random.Random) -> Step:
        word = rng.choice(list(_OPERATORS))
        if word in _LOOSE and rng.random() < 0.5:
            return Step(word, rng.choice(self.names))
        return Step(word, str(rng.randint(2, _MAX_CONSTANT)))

    def _inputs(self, task: Task) -> list[list[int]] | None:
        """Arguments of the hidden calls, the same for the same text; None if they do not tell the task from others."""
        rng, limit = random.Random(f"small_programs/tests/{task.text}"), self.options.max_input
        calls = [[rng.randint(-limit, limit) for _ in self.names] for _ in range(self.options.tests)]
        arguments = [dict(zip(self.names, call, strict=True)) for call in calls]
        values = [task.value(a) for a in arguments]
        if any([other.value(a) for a in arguments] == values for other in task.shortened()):
            return None
        if task.needs_parentheses and [task.naive_value(a) for a in arguments] == values:
            return None
        return calls

    def _example(self, task: Task, inputs: list[list[int]], *, naive: bool) -> Example:
        solution = self._program(task.expression())
        outputs = [task.value(dict(zip(self.names, call, strict=True))) for call in inputs]
        return Example(
            id=f"small_programs-{self.options.num_arguments}-{task.text.replace(',', '').replace(' ', '-')}",
            prompt=(Message("user", f"{task.text}:"),),
            gold={
                "type": "functional",
                "fn_name": FUNCTION,
                "inputs": inputs,
                "outputs": outputs,
                "solution": solution,
            },
            solution=self._program(task.expression(naive=True)) if naive else solution,
            meta={
                "task": "small_programs",
                "steps": len(task.steps),
                "needs_parentheses": task.needs_parentheses,
                "naive": naive,
            },
        )

    def _program(self, expression: str) -> str:
        return f"def {FUNCTION}({','.join(self.names)}):return {expression}"
