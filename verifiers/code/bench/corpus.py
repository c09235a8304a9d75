"""The corpus: programs that must behave as their `expect` says, in their verdicts and in what they leave behind."""

from __future__ import annotations

import glob
import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from verifiers.code.judging import IS_PROGRAM
from verifiers.code.verifier import CodeVerifier
from verifiers.errors import RunError
from verifiers.verdict import VerifyRequest

# Beside this package in a checkout and in an installed distribution alike. Nothing here may import `data`.
ASSETS = Path(__file__).parents[3] / "data" / "assets" / "sandbox"
FILES = ("programs.jsonl", "attacks.jsonl", "legit.jsonl")
CATEGORIES = {
    "host": "attacks on the host",
    "resource": "attacks on its resources",
    "hack": "ways to be paid without solving the problem",
    "wrong": "wrong programs",
    "legit": "legitimate programs",
}
_PORT = 47811
_NAME = "sbx-canary"
_PATH = "/tmp/sbx-canary.sock"
_MAX_S = 20.0
_MAX_GROWTH_MB = 200.0


def load(name: str) -> list[dict[str, Any]]:
    """The rows of a file of the assets."""
    return [json.loads(line) for line in ASSETS.joinpath(name).read_text(encoding="utf-8").splitlines()]


class Listeners:
    """Services of the host that no program may reach, as a context manager. What some programs try: a loopback port, an
    abstract socket, a socket in /tmp. Entering it raises `RunError` if one of these is taken."""

    def __enter__(self) -> Listeners:
        with ExitStack() as stack:
            tcp = stack.enter_context(socket.socket())
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
            try:
                tcp.bind(("127.0.0.1", _PORT))
                abstract.bind("\0" + _NAME)
            except OSError as error:
                raise RunError(
                    f"The port {_PORT} of this machine, which programs of the corpus attack, is taken: {error}.",
                    fix="wait for the other measurement to end",
                ) from error
            path = stack.enter_context(socket.socket(socket.AF_UNIX))
            with suppress(FileNotFoundError):
                os.unlink(_PATH)
            path.bind(_PATH)
            stack.callback(os.unlink, _PATH)
            self._sockets = (tcp, abstract, path)
            for listener in self._sockets:
                listener.listen()
                listener.setblocking(False)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def reached(self) -> int:
        """The number of them that were connected to since the last call."""
        connections = 0
        for listener in self._sockets:
            with suppress(BlockingIOError):
                listener.accept()[0].close()
                connections += 1
        return connections


def judge(verifier: CodeVerifier, listeners: Listeners, program: dict[str, Any]) -> dict[str, Any]:
    """Run a program of the corpus: {"id", "category", "score", "status", "ms", "problems"}, the last with what is not
    as expected, in words."""
    expect = program["expect"]
    for path in expect.get("no_file", []):
        Path(path).unlink(missing_ok=True)
    started, peak_kb = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (verdict,) = verifier.verify_many([VerifyRequest(program["code"], program["tests"], {IS_PROGRAM: True})])
    seconds = time.monotonic() - started
    problems = []
    if verdict.score not in (0.0, 1.0):
        problems.append(f"not judged: {verdict.status}: {verdict.evidence}")
    elif expect["verdict"] != "any" and verdict.score != (expect["verdict"] == "pass"):
        problems.append(f"{verdict.status} instead of {expect['verdict']}: {verdict.evidence}")
    if verdict.status != expect.get("status", verdict.status):
        problems.append(f"{verdict.status} instead of {expect['status']}")
    problems += _left_behind(expect)
    if listeners.reached():
        problems.append("reached a service of the host")
    if seconds > expect.get("max_s", _MAX_S):
        problems.append(f"took {seconds:.1f} s")
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb) / 1024
    if grown_mb > min(_MAX_GROWTH_MB, expect.get("max_rss_mb", _MAX_GROWTH_MB)):
        problems.append(f"made the parent grow by {grown_mb:.0f} MiB")
    return {"id": program["id"], "category": program["category"], "score": verdict.score,
            "status": str(verdict.status), "ms": round(verdict.milliseconds, 1), "problems": problems}  # fmt: skip


def _left_behind(expect: dict[str, Any]) -> list[str]:
    found = [path for path in expect.get("no_file", []) if Path(path).exists()]
    found += [path for pattern in expect.get("no_glob", []) for path in _files_like(pattern)]
    problems = [f"left {path}" for path in found]
    if "no_proc" in expect and expect["no_proc"] in set(_process_names()):
        problems.append(f"left the process {expect['no_proc']}")
    return problems


def _files_like(pattern: str) -> list[str]:
    """Paths that match `FOLDER/**/NAME` or `FOLDER/NAME`; links are not followed."""
    folder, _, name = pattern.rpartition("/")
    return [os.path.join(path, name) for path, _, names in os.walk(folder.removesuffix("/**")) if name in names]


def _process_names() -> Iterator[str]:
    for path in glob.glob("/proc/[0-9]*/comm"):
        with suppress(OSError):  # it has ended
            yield Path(path).read_text(encoding="utf-8", errors="replace").strip()


@contextmanager
def canaries() -> Iterator[None]:
    """A key in the environment and a secret in memory, which some programs look for; set before a sandbox starts."""
    secret = "MEMCANARY-dddd-" + os.urandom(4).hex()
    os.environ["SANDBOX_CANARY_KEY"] = "sk-canary-" + secret[-8:]
    try:
        yield
    finally:
        del os.environ["SANDBOX_CANARY_KEY"]
