"""`Sampler`: which examples come next. Seeded, resumable to the exact example, the same for any number of workers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from verifiers.errors import DataError

T = TypeVar("T")


class Sampler:
    """Passes over all examples in a fresh order each epoch; what was put back comes first.

    Every worker holds the same sampler, draws the same global batch and takes its own `shard` of it. The state is that
    of the global stream, so a run may resume with another number of workers.
    """

    def __init__(self, num_examples: int, seed: int):
        self.num_examples, self.seed = num_examples, seed
        self._put_back: list[int] = []
        self._start_epoch(0, held_back=[], head=0)

    def next(self, n: int) -> list[int]:
        """The next `n` indices into the dataset, all different. Raises `DataError` if there are fewer than `n`."""
        if n < 1:
            raise ValueError(f"a batch has at least one example, not {n}")
        if n > self.num_examples:
            raise DataError(
                f"A batch of {n} prompts was asked of a dataset of {self.num_examples} examples.",
                why="the same prompt twice in one batch would count twice in the gradient",
                fix=f"set prompts_per_step to at most {self.num_examples}, or use more data",
            )
        batch: list[int] = []
        offered, self._put_back = self._put_back, []
        while True:
            for i in offered:  # one that is in the batch already waits for the next
                (self._put_back if i in batch or len(batch) == n else batch).append(i)
            if len(batch) == n:
                return batch
            offered = self._from_stream(n - len(batch))

    def put_back(self, indices: Sequence[int]) -> None:
        """Give these first in the next batch: prompts that were drawn and not used."""
        self._put_back += indices

    def _from_stream(self, n: int) -> list[int]:
        """The next `n` of the epochs, all different."""
        batch = self._order[self._position : self._position + n]
        self._position += len(batch)
        if len(batch) < n:
            missing = n - len(batch)
            self._start_epoch(self._epoch + 1, held_back=batch, head=missing)
            batch = batch + self._order[:missing]
            self._position = missing
        return batch

    def _start_epoch(self, epoch: int, held_back: list[int], head: int) -> None:
        """Shuffle for `epoch`; the first `head` places go to examples outside `held_back`, the part of the current
        batch that closed the last epoch. Those examples come later in this epoch."""
        order = list(range(self.num_examples))
        # A text seed is hashed with SHA-512, which is the same on every platform and in every process.
        random.Random(f"sampler/{self.seed}/{epoch}").shuffle(order)
        if held_back:
            held = set(held_back)
            first = [i for i in order if i not in held][:head]
            placed = set(first)
            order = first + [i for i in order if i not in placed]
        self._epoch, self._position, self._order = epoch, 0, order
        self._held_back, self._head = held_back, head

    def state_dict(self) -> dict[str, Any]:
        """The exact position, as plain JSON data. Its size does not grow with the dataset, but with what was put
        back."""
        return {
            "num_examples": self.num_examples,
            "seed": self.seed,
            "epoch": self._epoch,
            "position": self._position,
            "held_back": list(self._held_back),
            "head": self._head,
            "put_back": list(self._put_back),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises `DataError` if it was taken over other data or with another seed."""
        for name, own in (("num_examples", self.num_examples), ("seed", self.seed)):
            if state[name] != own:
                raise DataError(
                    f"The checkpoint's sampler has {name}={state[name]}, this run has {name}={own}.",
                    where=f"sampler state, {name}",
                    why="the run would repeat some examples and skip others",
                    fix="resume with the data and seed of the first run, or start a new run",
                )
        self._start_epoch(state["epoch"], held_back=list(state["held_back"]), head=state["head"])
        self._position, self._put_back = state["position"], list(state["put_back"])


def shard(items: Sequence[T], rank: int, world_size: int) -> list[T]:
    """The items of worker `rank`. Joined in rank order the shards are `items`; their lengths differ by at most one."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not among {world_size} workers")
    return list(items[len(items) * rank // world_size : len(items) * (rank + 1) // world_size])
