"""Every hostile input ends with a typed verdict in time, whatever calls the verifier: the main thread, another thread,
an asyncio task, a forked child, a Ray task."""

import asyncio
import json
import os
import threading

import pytest

from verifiers.math.bench.hostile import hostile_cases
from verifiers.runner import Runner
from verifiers.verdict import Status, Verdict, VerifyRequest

LIMIT_MS = 2_000
CANARY = VerifyRequest("So \\boxed{42}.", gold="42")


def requests() -> list[VerifyRequest]:
    """The inputs, an ordinary answer after each."""
    return [r for case in hostile_cases() for r in (VerifyRequest(case.response, case.gold, {}, case.id), CANARY)]


def assert_survived(verdicts: list[Verdict]) -> None:
    assert [v.status for v in verdicts[1::2]] == [Status.CORRECT] * len(hostile_cases())
    slowest = max(verdicts, key=lambda v: v.milliseconds)
    assert slowest.milliseconds < LIMIT_MS, slowest.evidence
    faults = [v.evidence for v in verdicts if v.status is Status.VERIFIER_FAULT]
    assert not faults


def judged() -> list[Verdict]:
    with Runner("math", {}) as runner:
        return runner.verify(requests())


def test_in_the_main_thread():
    assert_survived(judged())


def test_in_another_thread():
    found: list[Verdict] = []
    thread = threading.Thread(target=lambda: found.extend(judged()))
    thread.start()
    thread.join(timeout=120)
    assert_survived(found)


def test_in_an_asyncio_task():
    async def main() -> list[Verdict]:
        with Runner("math", {}) as runner:
            return await runner.averify(requests())

    assert_survived(asyncio.run(main()))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_child():
    with Runner("math", {}) as runner:
        assert runner.verify([CANARY])[0].score == 1.0  # the parent's workers exist before the fork
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with os.fdopen(writing, "w") as pipe:
                    rows = [[v.score, v.status, v.evidence, v.milliseconds] for v in runner.verify(requests())]
                    json.dump(rows, pipe)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            rows = json.load(pipe)
        assert os.waitpid(child, 0)[1] == 0
        assert_survived([Verdict(score, Status(status), evidence, ms) for score, status, evidence, ms in rows])
        assert runner.verify([CANARY])[0].score == 1.0


def test_in_a_ray_task():
    ray = pytest.importorskip("ray")
    asked = requests()

    def task() -> list[Verdict]:  # nested: a Ray worker cannot import this file
        from verifiers.runner import Runner

        with Runner("math", {}) as runner:
            return runner.verify(asked)

    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": root}})
    try:
        assert_survived(ray.get(ray.remote(task).remote(), timeout=120))
    finally:
        ray.shutdown()
