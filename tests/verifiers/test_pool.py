"""Isolation: a hang, a bomb or a crash costs its own case only, wherever the runner is called from."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from verifiers import BadGold, Runner, Status, VerifierError, VerifyRequest

KIND = "hostile_kinds:Commanded"


def ask(runner, *responses):
    return runner.verify([VerifyRequest(response, gold="") for response in responses])


def make(kind=KIND, **limits):
    return Runner(kind, {}, **({"timeout_s": 0.7, "memory_mb": 128, "workers": 2} | limits))


def hang_between_two_good_ones(runner):
    """The scenario that must hold everywhere: returns what is compared."""
    return [(v.score, v.status, v.evidence[:8]) for v in ask(runner, "echo a", "spin", "echo b")]


HANG_JUDGED = [(0.5, "correct", "a"), (None, "timeout", "our veri"), (0.5, "correct", "b")]


@pytest.fixture(scope="module")
def runner():
    with make() as shared:
        yield shared


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_dead(pid, limit_s=5.0):
    deadline = time.monotonic() + limit_s
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


@pytest.mark.parametrize(
    ("response", "status", "fragment"),
    [
        ("spin", Status.TIMEOUT, "our verifier ran too long"),
        ("big_integer", Status.TIMEOUT, "our verifier ran too long"),
        ("sleep 60", Status.TIMEOUT, "our verifier ran too long"),
        ("allocate 100000", Status.MEMORY, "memory"),
        ("is_killed", Status.MEMORY, "killed from outside"),
        ("exits 3", Status.VERIFIER_FAULT, "exited with code 3"),
        ("segfaults", Status.VERIFIER_FAULT, "SIGSEGV"),
        ("raises hell", Status.VERIFIER_FAULT, "LookupError: hell"),
    ],
)
def test_a_fault_costs_only_its_own_case_and_has_no_score(runner, response, status, fragment):
    started = time.monotonic()
    before, fault, after = ask(runner, "echo before", response, "echo after")
    assert (before.evidence, after.evidence) == ("before", "after")
    assert (fault.score, fault.status) == (None, status)
    assert fragment in fault.evidence
    assert time.monotonic() - started < 5.0


def test_memory_below_the_cap_is_allowed(runner):
    assert ask(runner, "allocate 64")[0].evidence == str(64 * 2**20)


def test_what_a_library_prints_does_not_reach_the_protocol(runner):
    assert [v.status for v in ask(runner, "prints noise", "prints noise", "echo x")] == ["correct"] * 3


def test_a_chatty_library_does_not_fill_the_disk():
    with make(workers=1) as one:
        assert ask(one, "scolds 0", "scolded_bytes")[1].evidence == "7"
        assert ask(one, "scolds 2", "scolded_bytes")[1].evidence == "0"
        assert ask(one, "scolds 0", "exits 1")[1].evidence.endswith("the end")


def test_order_is_kept_with_mixed_delays(runner):
    delays = [0.2, 0.0, 0.15, 0.0, 0.1, 0.0, 0.05, 0.0]
    assert [v.answer for v in ask(runner, *(f"sleep {delay}" for delay in delays))] == [str(d) for d in delays]


def test_waiting_for_a_free_worker_does_not_count_as_running(runner):
    assert {v.status for v in ask(runner, *["sleep 0.3"] * 8)} == {"correct"}


def test_starting_a_worker_does_not_count_as_running():
    with make("hostile_kinds:SlowToStart", timeout_s=0.5, workers=1) as slow:
        assert [v.status for v in ask(slow, "echo a", "exits 1", "echo b")] == ["correct", "verifier_fault", "correct"]


def test_a_worker_is_reused_and_replaced_after_a_fault():
    with make(workers=1) as one:
        first, again, _, other = (v.evidence for v in ask(one, "pid", "pid", "spin", "pid"))
    assert first == again != other


def test_a_worker_that_died_while_idle_costs_no_case():
    with make(workers=1) as one:
        pid = int(ask(one, "pid")[0].evidence)
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        assert ask(one, "echo x")[0].evidence == "x"


@pytest.mark.parametrize("fault", ["spin", "exits 3", "segfaults", "allocate 100000", "is_killed"])
def test_a_fault_amid_calls_handed_over_together_costs_exactly_one(fault):
    with make(workers=1) as one:
        ask(one, *["echo warm"] * 200)  # so that many cheap calls are handed over at once
        texts = [f"echo {i}" for i in range(300)]
        texts[100:100] = [fault, "echo between", fault]
        verdicts = ask(one, *texts)
    assert [i for i, v in enumerate(verdicts) if v.score is None] == [100, 102]
    assert [v.evidence for v in verdicts if v.score] == [t[5:] for t in texts if t != fault]


def test_a_call_may_take_its_whole_limit_wherever_it_stands_among_calls_handed_over_together():
    with make(workers=1) as one:
        ask(one, *["echo warm"] * 200)
        assert {v.status for v in ask(one, *["sleep 0.3"] * 5, *["echo x"] * 20)} == {"correct"}


def test_a_worker_that_ran_out_of_memory_judges_nothing_after_it():
    with make(workers=1) as one:
        ask(one, *["echo warm"] * 200)
        before, _, *after = ask(one, "pid", "memory_error", *["pid"] * 20)
        assert before.evidence not in {v.evidence for v in after}


def test_cheap_calls_do_not_wait_behind_a_long_one_while_a_worker_is_free(runner):
    runner.warm()
    ask(runner, *["echo warm"] * 300)
    responses = ["sleep 0.5", *["echo x"] * 40]
    order = [i for i, _ in runner.stream([VerifyRequest(r, "") for r in responses])]
    assert sorted(order) == list(range(41))
    assert order.index(0) >= 20


def test_a_small_batch_uses_every_worker(runner):
    runner.warm()
    started = time.monotonic()
    ask(runner, "sleep 0.5", "sleep 0.5")
    assert time.monotonic() - started < 0.9


def test_a_stream_gives_each_verdict_as_it_ends(runner):
    runner.warm()
    requests = [VerifyRequest(response, "") for response in ("sleep 0.4", "echo a", "spin", "echo b")]
    seen = [(i, str(v.status)) for i, v in runner.stream(requests)]
    assert sorted(seen) == [(0, "correct"), (1, "correct"), (2, "timeout"), (3, "correct")]
    assert seen[-1] == (2, "timeout")
    assert seen[0][0] == 1


def test_a_stream_that_is_closed_withdraws_what_was_not_begun():
    with make(workers=1) as one:
        one.warm()
        stream = one.stream([VerifyRequest(r, "") for r in ["echo a", *["sleep 0.5"] * 20]])
        assert next(stream)[0] == 0
        stream.close()
        started = time.monotonic()
        assert [ask(one, "echo b")[0].evidence for _ in range(6)] == ["b"] * 6  # callers would take turns
        assert time.monotonic() - started < 2.0


def test_a_large_batch_does_not_starve_another_caller(runner):
    runner.warm()
    done = threading.Event()

    def large():
        ask(runner, *["sleep 0.004"] * 600)
        done.set()

    thread = threading.Thread(target=large)
    thread.start()
    time.sleep(0.1)
    for _ in range(3):
        started = time.monotonic()
        assert ask(runner, "echo x")[0].evidence == "x"
        assert time.monotonic() - started < 0.4
    assert not done.is_set()
    thread.join()


def test_a_warm_pool_has_all_its_workers():
    with make("hostile_kinds:SlowToStart", timeout_s=5.0) as slow:  # a worker takes 0.8 s to start
        slow.warm()
        started = time.monotonic()
        ask(slow, "sleep 0.4", "sleep 0.4")
        assert time.monotonic() - started < 0.7


def test_the_event_loop_goes_on_while_verdicts_are_awaited(runner):
    async def main():
        beats = 0

        async def beat():
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        heart = asyncio.create_task(beat())
        requests = [VerifyRequest(r, "") for r in ("sleep 0.4", "echo a", "spin")]
        both = await asyncio.gather(runner.averify(requests), runner.averify(requests[:2]))
        heart.cancel()
        return [[str(v.status) for v in verdicts] for verdicts in both], beats

    statuses, beats = asyncio.run(main())
    assert statuses == [["correct", "correct", "timeout"], ["correct", "correct"]]
    assert beats > 20


def test_a_cancelled_task_withdraws_its_calls():
    async def main(one):
        requests = [VerifyRequest("sleep 0.5", "")] * 20
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.averify(requests), 0.2)
        started = time.monotonic()
        for _ in range(6):
            await one.averify([VerifyRequest("echo b", "")])
        return time.monotonic() - started

    with make(workers=1) as one:
        one.warm()
        assert asyncio.run(main(one)) < 2.0


def test_an_answer_larger_than_a_pipe_holds_passes_while_requests_wait(runner):
    requests = [VerifyRequest("echo " + "x" * 300_000, {"π": "π" * 100_000}) for _ in range(40)]
    assert {v.evidence[:3] for v in runner.verify(requests)} == {"xxx"}


def test_large_requests_and_any_unicode_pass_through(runner):
    text = "é\ud800\x00" + "x" * 1_500
    huge = VerifyRequest("echo " + text, gold={"numbers": [1, None], "π": "π" * 2_000_000}, meta={"a": [1.5]})
    assert runner.verify([huge])[0].evidence == text


def test_a_gold_that_is_not_plain_json_is_a_bad_gold_of_its_own_case(runner):
    good, bad = VerifyRequest("echo x", gold=1), VerifyRequest("echo x", gold={1, 2})
    assert [v.status for v in runner.verify([good, bad, good])] == ["correct", "bad_gold", "correct"]
    with pytest.raises(BadGold, match="JSON"):
        runner.gold_response({1, 2}, {})


def test_a_gold_response_that_hangs_is_an_error_not_a_hang(runner):
    with pytest.raises(VerifierError, match=r"within 0\.7 s"):
        runner.gold_response("hang", {})


def test_a_hang_is_killed_in_the_main_thread(runner):
    assert threading.current_thread() is threading.main_thread()
    assert hang_between_two_good_ones(runner) == HANG_JUDGED


def test_a_hang_is_killed_in_other_threads_at_once(runner):
    results = {}

    def work(name):
        results[name] = hang_between_two_good_ones(runner)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == dict.fromkeys(range(3), HANG_JUDGED)


def test_a_hang_is_killed_in_an_asyncio_task(runner):
    async def main():
        requests = [VerifyRequest(response, "") for response in ("echo a", "spin", "echo b")]
        return await asyncio.gather(*(runner.averify(requests) for _ in range(2)))

    for verdicts in asyncio.run(main()):
        assert [(v.score, v.status, v.evidence[:8]) for v in verdicts] == HANG_JUDGED


def test_a_hang_is_killed_in_a_thread_of_asyncio(runner):
    async def main():
        return await asyncio.gather(*(asyncio.to_thread(hang_between_two_good_ones, runner) for _ in range(2)))

    assert asyncio.run(main()) == [HANG_JUDGED, HANG_JUDGED]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_hang_is_killed_in_a_forked_child_and_the_parents_worker_is_left_alone():
    with make(workers=1) as one:
        (parents_worker,) = (v.evidence for v in ask(one, "pid"))
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                (childs_worker,) = (v.evidence for v in ask(one, "pid"))
                code = 0 if hang_between_two_good_ones(one) == HANG_JUDGED else 2
                os.write(write_end, childs_worker.encode())
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert os.read(read_end, 100).decode() != parents_worker
        assert ask(one, "pid")[0].evidence == parents_worker
        os.close(read_end)
        os.close(write_end)


def test_a_hang_is_killed_in_a_ray_task():
    ray = pytest.importorskip("ray")
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(folders)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    try:

        def task():
            import test_pool  # not what pickles well: the function of this very module

            with test_pool.make() as inside:
                return test_pool.hang_between_two_good_ones(inside)

        futures = [ray.remote(task).remote() for _ in range(2)]
        assert ray.get(futures, timeout=60) == [HANG_JUDGED, HANG_JUDGED]
    finally:
        ray.shutdown()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_close_leaves_no_process_and_no_open_file():
    before = len(os.listdir("/proc/self/fd"))
    with make() as one:
        pids = {int(v.evidence) for v in ask(one, *["pid"] * 6, "spin", "exits 1", "pid") if v.score}
        assert any(is_alive(pid) for pid in pids)
    assert not any(is_alive(pid) for pid in pids)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(RuntimeError, match="closed"):
        ask(one, "pid")


def test_close_does_not_wait_for_a_hang_in_another_thread():
    one = make(timeout_s=30.0, workers=1)
    ended = threading.Event()

    def work():
        with pytest.raises(RuntimeError, match="closed"):
            ask(one, "spin", "spin")
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.6)
    started = time.monotonic()
    one.close()
    assert ended.wait(5)
    assert time.monotonic() - started < 5.0
    thread.join()


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), 9)", "os._exit(0)", "del runner; time.sleep(1)"])
def test_workers_end_with_their_parent_however_it_ends(end):
    program = (
        f"import os, sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from verifiers import Runner, VerifyRequest\n"
        f"runner = Runner({KIND!r}, {{}})\n"
        "sys.stdout.write(runner.verify([VerifyRequest('pid', '')])[0].evidence); sys.stdout.flush()\n"
        f"{end}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    assert done.stderr == ""
    assert wait_until_dead(int(done.stdout))


def test_a_worker_that_cannot_start_is_an_error_with_its_last_words():
    with make("hostile_kinds:CannotStart") as broken, pytest.raises(VerifierError) as caught:
        ask(broken, "echo a", "echo b", "echo c")
    assert "No module named 'a_missing_library'" in str(caught.value)
    assert "exited with code 1" in str(caught.value)
    assert "where: verifier" in str(caught.value)
