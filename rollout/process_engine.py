"""`ProcessEngine`: any engine in a process of its own, so that it generates while this one trains.

The child gets prompts and weights through a pipe (tensors through shared memory) and sends back each group as it ends.
One call at a time; the caller's thread waits for it, others go on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from rollout.engine import ENGINES, Engine, OnGroup, Prompt, SamplingParams
from rollout.trajectory import Trajectory
from verifiers.errors import AssayError, RunError


class ProcessEngine:
    """kind, arguments: of the engine that is built in the child. threads: of the child's torch; None: its default."""

    def __init__(self, kind: str, arguments: Sequence[Any], options: Mapping[str, Any], threads: int | None):
        context = mp.get_context("spawn")
        self._pipe, childs = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(childs, kind, tuple(arguments), dict(options), threads),
            name="assay-engine",
            daemon=True,
        )
        self._process.start()
        childs.close()
        self._lock = threading.Lock()

    def generate(
        self,
        prompts: Sequence[Prompt],
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: int,
        on_group: OnGroup | None = None,
    ) -> list[Trajectory]:
        """See `rollout.engine.Engine`; `on_group` is called in the thread that asked, while the child goes on."""
        return self._ask("generate", (list(prompts), samples_per_prompt, sampling, seed), on_group)

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """The child reads the tensors before this returns, so they may change afterwards."""
        self._ask("load_weights", ({name: tensor.detach() for name, tensor in weights.items()}, version))

    def sleep(self) -> None:
        self._ask("sleep", ())

    def close(self) -> None:
        """Also in the middle of a `generate`, which then fails in its thread."""
        if self._process.is_alive() and self._lock.acquire(blocking=False):
            self._lock.release()
            with suppress(RunError):  # it died in between
                self._ask("close", ())
            self._process.join(timeout=10)
        self._process.kill()
        self._process.join()

    def _ask(self, method: str, arguments: tuple[Any, ...], on_group: OnGroup | None = None) -> Any:
        with self._lock:
            try:
                self._pipe.send((method, arguments, on_group is not None))
                while True:
                    what, content = self._pipe.recv()
                    if what == "group":
                        assert on_group is not None
                        on_group(content)
                    elif what == "error":
                        raise content
                    else:
                        return content
            except (EOFError, OSError) as error:
                self._process.join(timeout=5)
                raise RunError(
                    f"The engine's process ended (exit code {self._process.exitcode}).",
                    where=f"engine, {method}",
                    why="nothing can be sampled without it",
                    fix="its own message is above; -9 is often the system's memory limit. The same command resumes",
                ) from error


def _serve(
    pipe: Connection, kind: str, arguments: tuple[Any, ...], options: dict[str, Any], threads: int | None
) -> None:
    """The child: build the engine, answer until the pipe closes. Ctrl-C and SIGTERM are the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if threads is not None:
        torch.set_num_threads(threads)
    parent = os.getppid()
    engine: Engine | None = None
    while True:
        while not pipe.poll(1.0):
            if os.getppid() != parent:  # a killed parent closes no pipe that a sibling holds open
                return
        try:
            method, values, wants_groups = pipe.recv()
        except EOFError:
            return
        try:
            if engine is None:
                engine = ENGINES.get(kind, key="rollout.engine")(*arguments, **options)
            if wants_groups:
                values = (*values, lambda group: pipe.send(("group", group)))
            result = getattr(engine, method)(*values)
            pipe.send(("done", result))
        except AssayError as error:
            pipe.send(("error", _plain(error)))
        if method == "close":
            return


def _plain(error: AssayError) -> RunError:
    """One that can be pickled, with the same text."""
    return RunError(str(error))
