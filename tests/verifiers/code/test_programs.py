"""Every program of the corpus behaves as its `expect` says, in both tiers: verdicts and side effects."""

import glob
import json
import os
import resource
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import data
from verifiers import Status, VerifyRequest

ASSETS = Path(data.__file__).parent / "assets" / "sandbox"
FILES = ("programs.jsonl", "attacks.jsonl", "legit.jsonl")
PROGRAMS = [json.loads(line) for name in FILES for line in ASSETS.joinpath(name).read_text().splitlines()]
MEMORY_CANARY = "MEMCANARY-dddd-" + os.urandom(4).hex()  # some programs look for it in memory


@pytest.fixture(scope="module")
def listeners():
    """Services of the host that no program may reach; gives the number of connections they have seen."""
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.socket())
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("127.0.0.1", 47811))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind("\0sbx-canary")
        path = stack.enter_context(socket.socket(socket.AF_UNIX))
        Path("/tmp/sbx-canary.sock").unlink(missing_ok=True)
        path.bind("/tmp/sbx-canary.sock")
        stack.callback(os.unlink, "/tmp/sbx-canary.sock")
        sockets = [tcp, abstract, path]
        for listener in sockets:
            listener.listen()
            listener.setblocking(False)

        def count():
            connections = 0
            for listener in sockets:
                try:
                    listener.accept()[0].close()
                    connections += 1
                except BlockingIOError:
                    continue
            return connections

        yield count


def files_like(pattern):
    """Paths that match `FOLDER/**/NAME` or `FOLDER/NAME`; links are not followed."""
    folder, _, name = pattern.rpartition("/")
    top = folder.removesuffix("/**")
    return [os.path.join(path, name) for path, _, names in os.walk(top) if name in names]


def process_names():
    names = []
    for path in glob.glob("/proc/[0-9]*/comm"):
        try:
            names.append(Path(path).read_text().strip())
        except OSError:
            continue
    return names


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program["id"])
def test_program_behaves_as_expected(verifier, listeners, program):
    expect = program["expect"]
    for path in expect.get("no_file", []):
        Path(path).unlink(missing_ok=True)
    started, peak_kb = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (verdict,) = verifier.verify_many([VerifyRequest(program["code"], program["tests"])])
    seconds = time.monotonic() - started
    assert verdict.score in (0.0, 1.0), verdict
    if expect["verdict"] != "any":
        assert verdict.score == (expect["verdict"] == "pass"), verdict
    if "status" in expect:
        assert verdict.status == Status(expect["status"]), verdict
    assert seconds < expect.get("max_s", 20)
    assert not [path for path in expect.get("no_file", []) if Path(path).exists()]
    assert not [found for pattern in expect.get("no_glob", []) for found in files_like(pattern)]
    assert expect.get("no_proc", "\0") not in process_names()
    assert listeners() == 0
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb) / 1024
    assert grown_mb < min(200, expect.get("max_rss_mb", 200))


def test_the_corpus_is_whole_and_varied():
    categories = {program["category"] for program in PROGRAMS}
    assert categories == {"hack", "host", "resource", "wrong", "legit"}
    assert len({program["id"] for program in PROGRAMS}) == len(PROGRAMS) == 167
