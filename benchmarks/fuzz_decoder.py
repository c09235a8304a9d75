"""Coverage-guided fuzzing of what the trusted parent reads from the sandbox: what comes out, and in what memory?

    pip install atheris
    python -m benchmarks.fuzz_decoder --seconds 3600 --seed 0 --out DIR

libFuzzer (through Atheris) mutates messages that real runs sent, with a dictionary of the wire format's tokens, and
keeps what reaches new branches of the decoders and of the comparison. Targets: one plain value; the whole output of a
set of calls, decoded, compared and shown; standard output, compared; the messages of zygote, launcher and of tests that
run apart. What counts as a finding: any exception but `BadFrame` or `BadReply`; a value of another than the exact
built-in types; a value that another round changes; more memory than documented (tracemalloc's peak in each single
execution); more than 5 s of CPU for a message of up to 4 MiB.

One process on one core; not part of `python -m benchmarks`, which measures and does not search.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.fuzz_math import STATUS, as_code, quoted, thinned
from benchmarks.report import RESULTS, Report, progress, table
from verifiers.code import box
from verifiers.code.box import Limits
from verifiers.code.inside import plain
from verifiers.code.sandbox import Sandbox
from verifiers.code.session import Session
from verifiers.errors import RunError

MEMORY_MB = 2_048
HANG_S = 60
MAX_BYTES = 20_000  # of one input; its middle part may be repeated up to 4 MiB
TARGETS = ("value", "replies", "stdout", "end", "greeting", "started", "step")  # as in `fuzz_decoder_target`
TOKENS = (
    *(f'{{"{key}": ' for key in "iftszbcdoyvex"), *(f'"{key}"' for key in "iftszbcdoyvex"), "{}", "[]", "[[",
    "]]", "}]", "null", "true", "false", "NaN", "Infinity", "-Infinity", '"nan"', '"inf"', '"-inf"', "1e999", "-0.0",
    "5e-324", "9223372036854775808", "0x", "-0x1", '"0x1_0"', "\\ud800", "\\u0000", "\\n", '"', ",", ":", " ", "\n",
    "\0", '"ready"', '"note"', '"stopped"', '"killed"', '"wall"', '"files"', '"status"', '"cpu_s"', '"missing"',
    '"landlock"', '"pid"', '"error"', '"done"', '"passed"', '"wrong"', '"unsupported"', "\u2028", "\x1c", "\ufeff",
    "-9", "MemoryError", "\r\n",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, 1, -(1 << 63), 1 << 63, 10**400, 0.5, float("nan"), float("-inf"), -0.0, "", "ab", "\ud800", "😀é€",
    b"", b"ab", 1j, complex("nan"), [], [1, [2.0, ["x"]]], (), (1, (2,)), {}, {"a": [1], (1, 2): {3}},
    {1, 2.5, "x", (1,)}, frozenset({b"a", None}), [4], [1, 2.5, "x"],
)  # fmt: skip
LARGE = (  # prefix, repeated, suffix: what takes most memory, time or depth
    (b"[", b"[],", b"[]]"), (b"[", b"[0],", b"0]"), (b"[", b'{"s":[]},', b"0]"), (b"[", b'{"z":[0]},', b"0]"),
    (b"[", b'{"d":[[1,2]]},', b"0]"), (b"[", b'{"":0},', b"0]"), (b"[", b"1.5,", b"0]"),
    (b"[", b'"\xe2\x82\xac",', b"0]"), (b"", b"[", b""), (b"", b'{"t":[', b""), (b'"', b"a", b'"'),
    (b'"\xf0\x9f\x98\x80', b"\\n", b'"'),
    (b'{"i":"', b"f", b'"}'), (b'{"b":"', b"aa", b'"}'), (b"", b"1", b""), (b"", b"ab\n", b""),
    (b"", b"\xc4\x81\n", b""), (b"", b"1.5 ", b""), (b"", b'{"v": 1}\n', b""),
    (b"", b'{"v": [[],[],[],[],[],[]]}\n', b""), (b"{", b'"a":1,', b'"b":1}'),
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """0 if nothing was found, else 1."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report("fuzz_decoder", options)
    report.header["command"] = report.header["command"].replace("-m benchmarks", "-m benchmarks.fuzz_decoder", 1)
    started = time.monotonic()
    exit_code = _fuzz(options)
    body = _body(options, exit_code, time.monotonic() - started)
    report.write(body, _tables(body))
    return 1 if body["findings"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_decoder", description=str(__doc__).split(":")[0])
    parser.add_argument("--seconds", type=int, default=3_600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for corpus, log and what was found")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for fuzz_decoder.json and .md")
    parser.set_defaults(threads=1)
    return parser


# The run -------------------------------------------------------------------------------------------------------------


def _fuzz(options: argparse.Namespace) -> int:
    """libFuzzer's exit code: 0 unless it had to stop for a hang, for memory or for a crash of the interpreter."""
    seeds, corpus = options.out / "seeds", options.out / "corpus"
    for folder in (seeds, corpus):
        folder.mkdir(exist_ok=True)
    for number, seed in enumerate(_seeds()):
        (seeds / f"{number:05d}").write_bytes(seed)
    dictionary = options.out / "wire.dict"
    dictionary.write_text("".join(f'"{quoted(token)}"\n' for token in TOKENS), encoding="ascii")
    command = [
        sys.executable, "-m", "benchmarks.fuzz_decoder_target", "--out", str(options.out),
        f"-max_total_time={options.seconds}", f"-seed={options.seed + 1}", f"-dict={dictionary}", "-len_control=20",
        f"-max_len={MAX_BYTES}", f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MB}", "-print_final_stats=1",
        f"-artifact_prefix={options.out}/", str(corpus), str(seeds),
    ]  # fmt: skip
    progress(f"fuzzing for {options.seconds} s; log: {options.out / 'libfuzzer.log'}")
    with (options.out / "libfuzzer.log").open("w") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode


def _seeds() -> Iterator[bytes]:
    """What the processes of a real sandbox sent, encoded values, and messages that are large when repeated."""
    for name, message in dict.fromkeys(_recorded()):
        yield bytes([TARGETS.index(name), 0]) + message
    for value in VALUES:
        frame = plain.encode(value).encode()
        yield b"\0\0" + frame
        yield b"\1\0" + b'{"v": ' + frame + b"}\n" + b'{"v": ' + frame + b"}"
    for code in range(48):
        yield bytes([0, 1, code, 1])
        yield bytes([1, 1, 28, code, 1, code, 40, 47, 29, 1, code])
    for parts in LARGE:
        for target in ("value", "replies", "stdout", "end", "step"):
            for exponent in (3, 7, 22):
                yield bytes([TARGETS.index(target), 2 * exponent]) + b"\0".join(parts)
        before, repeated, after = parts
        yield b"\1\54" + b"\0".join([b'{"v": ' + before, repeated, after + b"}"])


def _recorded() -> list[tuple[str, bytes]]:
    """Every message that a few runs send."""
    found: list[tuple[str, bytes]] = []
    names = {"read_end": "end", "read_greeting": "greeting", "read_started": "started"}
    originals = {name: getattr(box.replies, name) for name in names}

    def recording(name: str) -> Any:
        def read(message: bytes) -> Any:
            found.append((names[name], message))
            return originals[name](message)

        return read

    for name in names:
        setattr(box.replies, name, recording(name))
    try:
        _run_programs(found)
    finally:
        for name, original in originals.items():
            setattr(box.replies, name, original)
    return [*found, ("started", b'{"error": "no such file"}'), ("step", b'{"done": ["passed", ""]}'),
            ("step", b'{"done": ["error", "ValueError: x"]}')]  # fmt: skip


def _run_programs(found: list[tuple[str, bytes]]) -> None:
    sandbox = Sandbox(workers=1)
    try:
        session = Session(sandbox, Limits(timeout_s=1, memory_mb=256, output_kb=64))
        values = "None, 1, 1 << 70, 1.5, float('inf'), 'é', b'x', (1, [2]), {1: {2}}, frozenset('a'), 2j, object()"
        calls = [plain.encode(["call:f", [i], {}]) for i in range(13)]
        found.append(("replies", session.run_calls(f"def f(i): return [{values}][i]", calls).output))
        for program in ("print(1, 2.5)\nprint('x')", "1 / 0", "while True: pass", "x = 'a' * 10**9",
                        "print('a' * 10**6)", "import os; os.abort()",
                        "raise SystemExit(3)", "import time; time.sleep(9)"):  # fmt: skip
            found.append(("stdout", session.run_stdin(program, "").output[:2_000]))
    finally:
        sandbox.close()


# What came out -------------------------------------------------------------------------------------------------------


def _body(options: argparse.Namespace, exit_code: int, wall_s: float) -> dict[str, Any]:
    state_file = options.out / "state.json"
    log = (options.out / "libfuzzer.log").read_text(encoding="utf-8", errors="replace")
    if not state_file.exists():
        raise RunError("The fuzzer did not start.", where=str(options.out / "libfuzzer.log"), fix=log[-500:])
    state = json.loads(state_file.read_text(encoding="utf-8"))
    statuses = STATUS.findall(log)
    last = statuses[-1]
    findings = dict(state["findings"])
    if exit_code != 0:
        findings[f"libFuzzer stopped with {exit_code}"] = {"log": log[-2_000:]}
    return {
        "settings": {"seconds": options.seconds, "seed": options.seed, "max_bytes": MAX_BYTES, "memory_mb": MEMORY_MB},
        "wall_s": round(wall_s, 1),
        "executions": int(last[0]),
        "executions_by_target": state["executions"],
        "decoded_by_target": state["decoded"],
        "executions_per_s": round(int(last[0]) / wall_s, 1),
        "coverage": {"edges": int(last[2]), "features": int(last[3])},
        "growth": [{"executions": int(s[0]), "edges": int(s[2])} for s in thinned(statuses)],
        "corpus": {"inputs": int(last[4]), "size": last[5]},
        "peak_rss_mb": max(int(s[7]) for s in statuses),
        "slowest_s": state["slowest_s"],
        "largest": state["largest"],
        "findings": findings,
    }


# Tables --------------------------------------------------------------------------------------------------------------


def _tables(body: Mapping[str, Any]) -> str:
    coverage = body["coverage"]
    by_target = ", ".join(f"{name} {count}" for name, count in body["executions_by_target"].items())
    decoded = ", ".join(f"{name} {count}" for name, count in body["decoded_by_target"].items())
    rows = [
        ["wall time", f"{body['wall_s']:.0f} s"],
        ["executions", f"{body['executions']} ({by_target})"],
        ["of these without a refusal", decoded],
        ["executions a second", f"{body['executions_per_s']}"],
        ["branches covered", f"{coverage['edges']} edges, {coverage['features']} features (libFuzzer's cov and ft)"],
        ["corpus", f"{body['corpus']['inputs']} inputs, {body['corpus']['size']}"],
        ["most memory of one execution", f"{body['largest'][0]['bytes'] / 2**20:.1f} MiB"],
        ["slowest execution, while coverage was counted", f"{body['slowest_s']} s"],
        ["peak memory of the process, with the fuzzer's own", f"{body['peak_rss_mb']} MB"],
        ["findings", str(len(body["findings"]))],
    ]
    largest = [
        [f"{r['bytes'] / 2**20:.1f}", f"{r['allowed'] / 2**20:.1f}", f"{r['message_bytes'] / 2**20:.2f}", r["target"],
         as_code(r["message"])]
        for r in body["largest"]
    ]  # fmt: skip
    found = [[name, as_code(json.dumps(finding)[:200])] for name, finding in body["findings"].items()]
    return "\n".join(
        [
            table(["the run", ""], rows),
            "Edges by executions: " + ", ".join(f"{g['edges']} at {g['executions']}" for g in body["growth"]) + ".\n",
            "## The messages that took most memory\n",
            table(["MiB taken", "MiB allowed", "MiB long", "target", "message"], largest),
            "## Findings\n",
            table(["what", "input"], found) if found else "None.\n",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
