"""Overlap: the next step's rollouts are generated and judged while this one is learnt (one-step-off).

    step        t                     t + 1
    engine      rollouts of t + 1     rollouts of t + 2        from the weights before the update of t, of t + 1
    learner     update t              update t + 1

So every step but the first learns from samples of the weights one update back; `objective.mismatch` corrects for it.
The engine runs in a process of its own, `collect` in a thread that mostly waits for it. With several ranks each
has such a thread and an engine, and the threads exchange what they found apart from what the training exchanges.

A checkpoint says where the rollouts in flight began: the sampler's place before them and the weights they came from. A
resumed run makes the very same ones again.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from rollout.world import exchange_over
from trainer.collect import Rollouts, collect

if TYPE_CHECKING:
    from trainer.loop import LoopState
    from trainer.session import Session


class RolloutsAhead:
    """The rollouts of each step in turn, one step of them in flight."""

    def __init__(self, session: Session):
        self._session = session
        apart: dict[str, Any] = {}
        if session.world.size > 1:
            timeout = timedelta(seconds=session.config.hardware.distributed.exchange_timeout_s)
            group = dist.new_group(backend="gloo", timeout=timeout)
            apart = {"initializer": exchange_over, "initargs": (group,)}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="assay-rollouts", **apart)
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
        """Until the engine is free; the rollouts stay to be taken. What went wrong in them is raised when they are;
        with several ranks at once, since the threads of the others wait for this one's."""
        if self._pending is None:
            return
        if self._session.world.size > 1:
            self._pending.result()
        self._pending.exception()

    def let_end(self) -> None:
        """Before the engine is closed: the other ranks' threads need what this one has yet to say. In one process
        nobody waits."""
        if self._pending is not None and self._session.world.size > 1:
            wait_for([self._pending])

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
