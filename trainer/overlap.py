"""Overlap: the next step's rollouts are generated and judged while this one is learnt (one-step-off).

    step        t                     t + 1
    engine      rollouts of t + 1     rollouts of t + 2        from the weights before the update of t, of t + 1
    learner     update t              update t + 1

So every step but the first learns from samples of the weights one update back; `objective.mismatch` corrects for it.
The engine runs in a process of its own, `collect` in a thread that mostly waits for it.

A checkpoint says where the rollouts in flight began: the sampler's place before them and the weights they came from. A
resumed run makes the very same ones again.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from trainer.collect import Rollouts, collect

if TYPE_CHECKING:
    from trainer.loop import LoopState
    from trainer.session import Session


class RolloutsAhead:
    """The rollouts of each step in turn, one step of them in flight."""

    def __init__(self, session: Session):
        self._session = session
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="assay-rollouts")
        self._pending: Future[Rollouts] | None = None

    def take(self, state: LoopState) -> Rollouts:
        """The rollouts of step `state.step`."""
        if self._pending is None:  # the first step, or a resumed one
            state.position = state.sampler.state_dict()
            return collect(self._session, state)
        pending, self._pending = self._pending, None
        return pending.result()

    def begin(self, state: LoopState) -> None:
        """Begin those of the next step from the present weights; `state` remembers where they began."""
        state.position = state.sampler.state_dict()
        self._session.sync(state.step)
        if state.step + 1 < self._session.config.train.steps:
            self._pending = self._thread.submit(collect, self._session, replace(state, step=state.step + 1))

    def wait(self) -> None:
        """Until the engine is free; the rollouts stay to be taken. What went wrong in them is raised when they are."""
        if self._pending is not None:
            self._pending.exception()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
