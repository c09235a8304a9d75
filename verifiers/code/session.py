"""What can be run in a `Sandbox`: a whole program, calls of a function, tests that cannot be split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from verifiers.code.box import Ended, Limits, Outcome, Run, SandboxFault
from verifiers.code.replies import BadReply, read_step
from verifiers.code.sandbox import Lane, Sandbox
from verifiers.code.walls import Tier

_ASK = b'{"ask": '
Steps = list[tuple[str, str]]


class DeadlinePassed(Exception):
    """There is no time for this run, or it was cut short: nothing is known about the program."""


@dataclass(frozen=True, slots=True)
class Session:
    """Runs under these limits and until this time of `time.monotonic`.

    Every run raises `SandboxFault` if the sandbox failed twice, `DeadlinePassed`, and RuntimeError once the sandbox is
    closed.
    """

    sandbox: Sandbox
    limits: Limits
    deadline: float = math.inf

    @property
    def tier(self) -> Tier:
        return self.sandbox.tier

    def run_stdin(self, program: str, stdin: str) -> Outcome:
        """A fresh run of a whole program."""
        data = stdin.encode("utf-8", "surrogateescape")

        def job(lane: Lane, limits: Limits) -> Outcome:
            with Run(lane.box(program), {"kind": "stdin"}, limits, source=program, stdin=data) as run:
                return _finish(run)

        return self._run(job)

    def run_calls(self, program: str, frames: Sequence[str], *, role: str = "program") -> Outcome:
        """One run that makes the calls, frames of `inside.plain` with [operation, arguments, keywords]; its output has
        one line a call. role: "judge" for a reference solution, whose zygote no program of a model shares."""

        def job(lane: Lane, limits: Limits) -> Outcome:
            header = {"kind": "calls", "keep_objects": False}
            with Run(lane.box(program, role), header, limits, source=program) as run:
                run.send("".join(frame + "\n" for frame in frames).encode())
                run.close_input()
                return _finish(run)

        return self._run(job)

    def run_judge(self, program: str, header: dict[str, Any]) -> tuple[Steps, Outcome]:
        """Tests that cannot be split, in a run of their own (header: see `inside.judge`), against the program in
        another. One (outcome, words) a step that was reached; and how the run ended that ended before its time, if one
        did. The tests' own run has twice the limits, so that a program that is slow runs into its own. If it ends early
        all the same, what the program answered is to blame: the tests hold with a right one."""
        steps: Steps = []

        def job(lane: Lane, limits: Limits) -> Outcome:
            found, outcome = _relay(lane, program, header, limits)
            steps[:] = found
            return outcome

        outcome = self._run(job)
        return steps, outcome

    def _run(self, job: Callable[[Lane, Limits], Outcome]) -> Outcome:
        def bounded(lane: Lane) -> Outcome:
            left_s = self.deadline - time.monotonic()
            if left_s <= 0:
                raise DeadlinePassed
            return job(lane, replace(self.limits, max_wall_s=left_s))

        outcome = self.sandbox.with_lane(bounded)
        if outcome.ended is Ended.TIMEOUT and time.monotonic() >= self.deadline:
            raise DeadlinePassed
        return outcome


def _finish(run: Run) -> Outcome:
    outcome = run.finish()
    if outcome.ended is Ended.FAULT:
        raise SandboxFault(outcome.note)
    return outcome


def _relay(lane: Lane, program: str, header: dict[str, Any], limits: Limits) -> tuple[Steps, Outcome]:
    """Carry questions from the judge's run to the program's and answers back. Neither ever sees the other."""
    kept = {"kind": "calls", "keep_objects": True}
    judge_box = lane.box("\n".join([header["given"], header["setup"], *header["tests"]]), "judge")
    with (
        Run(judge_box, {"kind": "judge", **header}, replace(limits, timeout_s=2 * limits.timeout_s)) as judge,
        Run(lane.box(program), kept, limits, source=program) as candidate,
    ):
        steps, gone = _carry(judge, candidate, 1 + len(header["tests"]))
        judge.kill()
        if not gone:
            candidate.kill()
        judged, outcome = _finish(judge), _finish(candidate)
    return steps, outcome if gone else judged


def _carry(judge: Run, candidate: Run, count: int) -> tuple[Steps, bool]:
    """The steps that were judged, and whether the candidate ended before."""
    steps: Steps = []
    while len(steps) < count and (line := judge.read_line()) is not None:
        if line.startswith(_ASK):
            candidate.send(line.removeprefix(_ASK).removesuffix(b"}") + b"\n")
            answer = candidate.read_line()
            if answer is None:
                return steps, True
            judge.send(answer + b"\n")
        else:
            try:
                kind, words = read_step(line)
            except BadReply as error:
                raise SandboxFault(f"the tests' run answers nonsense: {error}") from error
            steps.append((kind, words))
            if len(steps) == 1 and kind != "passed":  # the tests' setup
                break
    return steps, False
