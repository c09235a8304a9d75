"""Solutions of a generator's problems, right and corrupted, with the truth of every line from its step oracle.

Two corruptions, for two questions. `digit` puts another digit into one line: unlikely text, which the likelihood of any
language model finds, so a scorer that beats no likelihood control has shown nothing. `systematic` (of `chain`) computes
with a wrong table (each draw has one, the same for all problems): a confident error that is carried on to the end.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from data.chain import ANSWER_MARK, Expression, Rule
from data.example import Example
from data.sources import load_examples, step_oracle
from data.steps import CheckSteps, StepLabel
from prm.bench.items import Item, read_rows, validate
from verifiers.errors import ConfigError, DataError

DRAWS = 20  # of a corruption before a problem counts as having no other
CORRUPTIONS = ("digit", "systematic")


@dataclass(frozen=True, slots=True)
class Corruption:
    """per_example: corrupted solutions beside each right one. error_rate: of `systematic`, the share of entries of the
    table that are wrong."""

    kind: str = "digit"
    per_example: int = 3
    error_rate: float = 0.2
    seed: int = 0


def corrupted_items(source: str, options: Mapping[str, Any], corruption: Corruption) -> list[Item]:
    """The demonstration of every example, and corrupted ones that differ from it and from each other (fewer where no
    more can be found). Raises `ConfigError`, `DataError`."""
    check_steps = _oracle(source)
    items = []
    for example in load_examples(source, options, key="--option"):
        if example.solution is None:
            raise DataError("The example has no demonstration to corrupt.", where=f"example {example.id}")
        texts = [example.solution, *_variants(example, example.solution, corruption)]
        for number, text in enumerate(texts):
            items.append(_item(f"{example.id}/{number}", source, example, check_steps(example, text)))
    return items


class _ResponseRow(BaseModel):
    model_config = ConfigDict(strict=True)

    example_id: str
    response: str


def response_items(source: str, options: Mapping[str, Any], path: str) -> tuple[list[Item], int]:
    """(responses of a file, number of empty ones left out). Rows are those of a run's ``trajectories/``: `example_id`
    and `response` count. `options` must give the same examples. Raises `ConfigError`, `DataError`."""
    check_steps = _oracle(source)
    examples = {example.id: example for example in load_examples(source, options, key="--option")}
    items, empty = [], 0
    for raw in read_rows(path):
        row = validate(_ResponseRow, raw, path)
        if row.example_id not in examples:
            raise DataError(
                f"No example of '{source}' has the id '{row.example_id}'.",
                where=f"{path}, {raw.place}",
                fix="give the options of the run's data source with --option KEY=VALUE",
            )
        example = examples[row.example_id]
        labels = check_steps(example, row.response)
        if labels:
            items.append(_item(f"{example.id}/{raw.place}", source, example, labels))
        empty += not labels
    return items, empty


def _oracle(source: str) -> CheckSteps:
    check_steps = step_oracle(source, key="--generator")
    if check_steps is None:
        raise ConfigError(
            f"The data source '{source}' has no step oracle.", where="--generator", fix="valid: chain, countdown"
        )
    return check_steps


def _item(id_: str, source: str, example: Example, labels: list[StepLabel]) -> Item:
    last = labels[-1]
    return Item(
        id=id_,
        kind="generator",
        split=source,
        group=example.id,
        problem=example.question,
        steps=tuple(label.text.removesuffix("\n") for label in labels),
        truth=tuple(label.correct for label in labels),
        outcome=last.text.startswith(ANSWER_MARK) and last.on_track,
    )


def _variants(example: Example, solution: str, corruption: Corruption) -> list[str]:
    rng = random.Random(f"{corruption.seed}/{example.id}")
    found: dict[str, None] = {}
    for draw in range(DRAWS * corruption.per_example):
        if len(found) == corruption.per_example:
            break
        if corruption.kind == "digit":
            text = other_digit(solution, rng)
        else:
            text = miscomputed(example, corruption.error_rate, seed=f"{corruption.seed}/{draw}")
        if text != solution:
            found[text] = None
    return list(found)


def other_digit(solution: str, rng: random.Random) -> str:
    """`solution` with one digit replaced by another; a line is drawn first, so that short lines are hit as often. The
    lines after it are left as they were."""
    lines = solution.split("\n")
    numbers = [i for i, line in enumerate(lines) if any(c in "0123456789" for c in line)]
    if not numbers:
        return solution
    number = rng.choice(numbers)
    line = lines[number]
    at = rng.choice([i for i, c in enumerate(line) if c in "0123456789"])
    lines[number] = line[:at] + rng.choice([d for d in "0123456789" if d != line[at]]) + line[at + 1 :]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _WrongTable(Rule):
    """A rule with wrong entries: the same operands always give the same wrong number."""

    error_rate: float = 0.0
    seed: str = ""

    def do(self, expression: Expression, position: int) -> Expression:
        done = Rule.do(self, expression, position)
        left, right = expression.numbers[position : position + 2]
        entry = random.Random(f"{self.seed}/{left}{expression.operators[position]}{right}")
        if entry.random() >= self.error_rate:
            return done
        wrong = (done.numbers[position] + entry.randrange(1, self.modulus)) % self.modulus
        return Expression((*done.numbers[:position], wrong, *done.numbers[position + 1 :]), done.operators)


def miscomputed(example: Example, error_rate: float, *, seed: str) -> str:
    """The demonstration of a `chain` example by somebody who has learnt a wrong table; right where no wrong entry is
    met. Raises `ConfigError` for an example of another source."""
    expression = Expression.parse(str(example.meta.get("expression")))
    if example.meta.get("task") != "chain" or expression is None:
        raise ConfigError("Only 'chain' has systematic errors.", where="--corruption", fix="use --corruption digit")
    table = _WrongTable(example.meta["modulus"], example.meta["precedence"], error_rate, seed)
    lines = [line.text for line in table.lines(expression)]
    return "\n".join([*lines, f"{ANSWER_MARK}{lines[-1]}"])
