"""What the sandbox leaves behind, survives and refuses."""

import ctypes
import json
import os
import platform
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from verifiers import Status, VerifierError, VerifyRequest
from verifiers.code import selftest, walls
from verifiers.code.box import Ended, Limits, Outcome
from verifiers.code.sandbox import Sandbox
from verifiers.code.session import Session
from verifiers.code.verifier import CodeVerifier
from verifiers.code.walls import Tier

ECHO = {"type": "stdin_stdout", "inputs": ["7"], "outputs": ["7"]}


def runs(sandbox):
    return Session(sandbox, sandbox.limits)


def processes_of(parent):
    """All descendants of a process, as {pid: command}."""
    parents, commands = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            commands[int(path.name)] = path.joinpath("cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    found, grown = {parent}, True
    while grown:
        new = {pid for pid, its_parent in parents.items() if its_parent in found} - found
        found, grown = found | new, bool(new)
    return {pid: commands[pid] for pid in found - {parent}}


def sandbox_processes():
    return {p for p, command in processes_of(os.getpid()).items() if "launcher.py" in command or "zygote.py" in command}


def sandbox_folders():
    return set(Path(tempfile.gettempdir()).glob("assay-sandbox-*"))


def until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_closing_leaves_no_process_no_file_and_no_descriptor(tier):
    before = sandbox_processes(), sandbox_folders(), len(os.listdir("/proc/self/fd"))
    sandbox = Sandbox(isolation=tier, workers=2, packages=())
    program = "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x' * 9999)\nprint(input())"
    threads = [threading.Thread(target=runs(sandbox).run_stdin, args=(program, "7\n")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs(sandbox).run_judge("def f(x): return x", {"given": "", "setup": "", "tests": ["f(1)"], "candidate_names": []})
    assert len(sandbox_processes()) > len(before[0])
    sandbox.close()
    assert (sandbox_processes(), sandbox_folders(), len(os.listdir("/proc/self/fd"))) == before
    with pytest.raises(RuntimeError, match="closed"):
        runs(sandbox).run_stdin(program, "7\n")


def test_many_runs_leave_memory_and_descriptors_as_they_were(sandbox):
    def resident_mb():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    def run():
        for _ in range(50):
            assert runs(sandbox).run_stdin("print(input() * 20000)", "7\n").ended is Ended.FINISHED

    run()
    before, descriptors = resident_mb(), len(os.listdir("/proc/self/fd"))
    run()
    assert resident_mb() - before < 20
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_deep_and_crowded_folder_is_gone_after_the_run(sandbox):
    program = """
import os
for i in range(1500):
    os.mkdir('d'); os.chdir('d')
for i in range(300):
    open('f%d' % i, 'w').close()
os.chmod
print('made')
"""
    outcome = Session(sandbox, Limits(timeout_s=10)).run_stdin(program, "")
    assert outcome.ended in (Ended.FINISHED, Ended.OUTPUT_LIMIT)
    assert runs(sandbox).run_stdin("import os\nprint(sorted(os.listdir('.')))", "").output == b"['.stdin']\n"


def test_a_trainer_killed_in_mid_run_leaves_nothing(tier):
    code = (
        "import sys; from verifiers.code.sandbox import Sandbox\n"
        f"s = Sandbox(isolation={tier!r}, workers=1, packages=())\n"
        "print(s._folder, flush=True)\n"
        "from verifiers.code.session import Session\n"
        "Session(s, s.limits).run_stdin('while True: pass', '')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert trainer.stdout is not None
    folder = Path(trainer.stdout.readline().strip())
    until(lambda: len(processes_of(trainer.pid)) >= 3)
    time.sleep(0.3)
    family = set(processes_of(trainer.pid))
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    until(lambda: not any(is_running(pid) for pid in family))
    until(lambda: not folder.exists())


def test_a_zygote_killed_in_mid_run_costs_one_retry(tier):
    with_retry = Sandbox(isolation=tier, workers=1, packages=())
    outcomes = []
    program = "import time\ntime.sleep(1)\nprint(input())"
    thread = threading.Thread(target=lambda: outcomes.append(runs(with_retry).run_stdin(program, "7\n")))
    thread.start()
    launcher = with_retry._launcher._process.pid

    def zygote_and_run():
        commands = processes_of(launcher)
        return sorted(pid for pid, command in commands.items() if "/zygote.py" in command and "--uid" not in command)

    until(lambda: len(zygote_and_run()) == 2)
    os.kill(zygote_and_run()[0], signal.SIGKILL)
    thread.join()
    assert (outcomes[0].ended, outcomes[0].output) == (Ended.FINISHED, b"7\n")
    assert (with_retry.counters["retries"], with_retry.counters["faults"]) == (1, 0)
    with_retry.close()


def test_a_launcher_that_dies_is_replaced(tier):
    sandbox = Sandbox(isolation=tier, workers=1, packages=())
    runs(sandbox).run_stdin("print(1)", "")
    family = {sandbox._launcher._process.pid, *processes_of(sandbox._launcher._process.pid)}
    sandbox._launcher._process.kill()
    assert runs(sandbox).run_stdin("print(1)", "").output == b"1\n"
    assert sandbox.counters["retries"] == 1
    until(lambda: not any(is_running(pid) for pid in family))
    sandbox.close()


def test_a_forked_child_starts_processes_of_its_own(sandbox):
    assert runs(sandbox).run_stdin("print(1)", "").output == b"1\n"
    pid = os.fork()
    if pid == 0:
        right = runs(sandbox).run_stdin("print(2)", "").output == b"2\n"
        sandbox.close()
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert runs(sandbox).run_stdin("print(3)", "").output == b"3\n"


def test_zygotes_are_recycled(tier, monkeypatch):
    monkeypatch.setattr("verifiers.code.sandbox.RUNS_PER_ZYGOTE", 2)
    sandbox = Sandbox(isolation=tier, workers=1, packages=())
    started = sandbox.counters["zygotes"]
    for _ in range(5):
        assert runs(sandbox).run_stdin("print(1)", "").output == b"1\n"
    assert sandbox.counters["zygotes"] - started == 3
    assert len(list(sandbox._folder.glob("home-*"))) == 1
    sandbox.close()


def test_packages_are_there_also_for_a_program_that_hides_that_it_uses_them(tier):
    sandbox = Sandbox(isolation=tier, workers=1)
    for program in ("import numpy\nprint(numpy.arange(3).sum())", "print(__import__('num' + 'py').arange(3).sum())"):
        assert runs(sandbox).run_stdin(program, "") == Outcome(Ended.FINISHED, b"3\n")
    sandbox.close()


def test_a_zygote_has_loaded_packages_only_for_programs_that_mention_them(tier):
    sandbox = Sandbox(isolation=tier, workers=1)
    loaded = "import sys\nprint('num' + 'py' in sys.modules)"
    assert runs(sandbox).run_stdin(loaded, "").output == b"False\n"
    assert runs(sandbox).run_stdin(loaded + "  # numpy", "").output == b"True\n"
    sandbox.close()


def test_a_fault_is_a_verdict_without_a_score(tier, monkeypatch):
    verifier = CodeVerifier(CodeVerifier.Options(isolation=tier, packages=[]), workers=1)
    monkeypatch.setattr(walls, "HOME_FILES", -1)  # no such tmpfs can be made
    monkeypatch.setattr(walls, "describe", lambda *a: {**describe(*a), "home_bytes": "many"})
    (verdict,) = verifier.verify_many([VerifyRequest("print(input())", ECHO)])
    assert (verdict.status, verdict.score) == (Status.VERIFIER_FAULT, None)
    assert verifier.sandbox.counters["faults"] == 1
    verifier.close()


describe = walls.describe


# --- the self-test and the tiers


@pytest.mark.parametrize("missing", ["seccomp", "landlock"])
def test_the_self_test_finds_a_missing_wall(tier, missing, monkeypatch):
    if (tier, missing) == ("namespaces", "landlock"):
        pytest.skip("Landlock is the second wall there")
    nothing = {"seccomp": "", "landlock": False}[missing]
    monkeypatch.setattr(walls, "describe", lambda *a: {**describe(*a), missing: nothing})
    with pytest.raises(VerifierError) as caught:
        Sandbox(isolation=tier, workers=1, packages=())
    assert "a program that attacks it" in str(caught.value)


def test_without_any_wall_most_attacks_of_the_self_test_succeed(monkeypatch):
    monkeypatch.setattr(walls, "describe", lambda *a: {**describe(*a), "seccomp": ""})
    sandbox = Sandbox(isolation="unsafe", workers=1, packages=())
    attacks = selftest.ATTACK.replace("os.execv(", "bool(").replace('("/bin/true", ["true"])', '("x")')
    monkeypatch.setattr(selftest, "ATTACK", attacks)
    words = selftest.attack(sandbox.start_box(Tier.UNSAFE), sandbox.limits, harmless=False)
    sandbox.close()
    for attack in ("read a file", "write a file", "/etc/passwd", "list a folder", "TCP", "abstract", "start a process",
                   "signal another"):  # fmt: skip
        assert attack in str(words)


def test_unsafe_is_loud(caplog):
    with caplog.at_level("WARNING"):
        verifier = CodeVerifier(CodeVerifier.Options(isolation="unsafe", packages=[]), workers=1)
    assert "your files, keys and network" in caplog.text
    (verdict,) = verifier.verify_many([VerifyRequest("print(input())", ECHO)])
    verifier.close()
    assert verdict.score == 1.0
    assert "NO ISOLATION" in verdict.evidence


def deny(*calls):
    """A seccomp filter that fails these calls (number, errno) for this process and what it starts: a container."""
    program = [struct.pack("<HBBI", 0x20, 0, 0, 0)]
    for number, error in calls:
        program += [struct.pack("<HBBI", 0x15, 0, 1, number), struct.pack("<HBBI", 0x06, 0, 0, 0x00050000 | error)]
    bpf = b"".join([*program, struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)])
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(bpf, len(bpf))
    filter_program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(bpf) // 8, ctypes.addressof(buffer)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, filter_program, 0, 0) == 0


UNSHARE, MOUNT, CLONE, LANDLOCK, EPERM, ENOSYS = 272, 165, 56, 444, 1, 38


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the calls are those of x86_64")
@pytest.mark.parametrize(
    ("denied", "expected"),
    [
        ([(UNSHARE, EPERM), (MOUNT, EPERM)], {"tier": "landlock"}),
        ([(MOUNT, EPERM), (LANDLOCK, ENOSYS)], {"refused": True}),
        ([(MOUNT, EPERM), (LANDLOCK, ENOSYS), (0, 0)], {"tier": "unsafe"}),
    ],
    ids=["no mounts", "no mounts and no Landlock", "and the user insists"],
)
def test_in_a_container_the_next_tier_is_taken_or_it_refuses(tier, denied, expected):
    program = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from test_processes import deny
from verifiers.code.sandbox import Sandbox
from verifiers.code.session import Session
from verifiers.errors import VerifierError
denied = json.loads(sys.argv[2])
isolation = "unsafe" if [0, 0] in denied else "auto"
deny(*[call for call in denied if call != [0, 0]])
try:
    sandbox = Sandbox(isolation=isolation, workers=1, packages=())
    assert Session(sandbox, sandbox.limits).run_stdin("print(1)", "").output == b"1\\n"
    print(json.dumps({"tier": sandbox.tier}))
    sandbox.close()
except VerifierError as error:
    print(json.dumps({"refused": str(error)}))
"""
    path = json.dumps([str(Path(__file__).parent), *sys.path])
    done = subprocess.run([sys.executable, "-c", program, path, json.dumps(denied)], capture_output=True, text=True)
    result = json.loads(done.stdout or "null")
    if "refused" in expected:
        for fragment in ("namespaces: ", "landlock: the kernel has no Landlock", "isolation=unsafe", "what to do"):
            assert fragment in result["refused"], done.stderr
    else:
        assert result == expected, done.stderr


def test_other_systems_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(VerifierError) as caught:
        Sandbox()
    assert "needs Linux" in str(caught.value)
    assert "virtual machine or container" in str(caught.value)
