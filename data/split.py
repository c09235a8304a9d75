"""Train and eval parts of one dataset, disjoint by content whatever the order, the seed or the size of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeVar

from verifiers.errors import ConfigError, DataError

MAX_PAIRS_SHOWN = 5

Part = Literal["all", "train", "eval"]


class Asking(Protocol):
    """Anything with a prompt: examples are kept apart by what they ask."""

    @property
    def id(self) -> str: ...

    def content_key(self) -> str: ...


A = TypeVar("A", bound=Asking)


def part(examples: Sequence[A], part: Part, eval_percent: int) -> list[A]:
    """The examples of one part, in order. An example is in eval if its content key falls in the first `eval_percent` of
    100 hash buckets, so equal questions are always on the same side and about that share is in eval.

    Raises `ConfigError` for a percentage outside 0 .. 100, `DataError` when the part is empty.
    """
    if not 0 <= eval_percent <= 100:
        raise ConfigError(f"eval_percent is {eval_percent}.", where="eval_percent", fix="set it to 0 .. 100")
    if part == "all":
        return list(examples)
    chosen = [e for e in examples if is_in_part(e, part, eval_percent)]
    if not chosen:
        raise DataError(
            f"The {part} part of {len(examples)} examples is empty.",
            where=f"part {part}, eval_percent {eval_percent}",
            fix="use more examples, or another eval_percent",
        )
    return chosen


def is_in_part(example: Asking, part: Part, eval_percent: int) -> bool:
    """Whether `part` of the examples would hold this one."""
    return part == "all" or (_bucket(example) < eval_percent) == (part == "eval")


def check_disjoint(train: Sequence[Asking], evals: Mapping[str, Sequence[Asking]]) -> None:
    """Raise `DataError` if an eval set (by name) asks a question that `train` also asks."""
    train_id = {e.content_key(): e.id for e in train}
    pairs = [
        f"{e.id} ({name}) = {train_id[e.content_key()]} (train)"
        for name, examples in evals.items()
        for e in examples
        if e.content_key() in train_id
    ]
    if pairs:
        shown = "; ".join(pairs[:MAX_PAIRS_SHOWN]) + (" ..." if len(pairs) > MAX_PAIRS_SHOWN else "")
        raise DataError(
            f"{len(pairs)} evaluation examples ask the same as a training example.",
            where=shown,
            why="accuracy on questions seen in training does not measure what the model learned",
            fix="take both from one source with part=train and part=eval, or remove these examples from one side",
        )


def _bucket(example: Asking) -> int:
    return int(example.content_key(), 16) % 100
