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

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.fuzzing import Campaign, as_code, by_target, found_rows, growth, run, run_rows
from benchmarks.report import table
from verifiers.code import box
from verifiers.code.box import Limits
from verifiers.code.inside import plain
from verifiers.code.sandbox import Sandbox
from verifiers.code.session import Session

MEMORY_MB = 2_048
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
    return run(Campaign("fuzz_decoder", str(__doc__).split(":")[0], _seeds, TOKENS, MAX_BYTES, MEMORY_MB), arguments,
               _complete, _tables)  # fmt: skip


# The run -------------------------------------------------------------------------------------------------------------


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


def _complete(facts: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    return {**facts, "decoded_by_target": state["decoded"], "slowest_s": state["slowest_s"],
            "largest": state["largest"]}  # fmt: skip


# Tables --------------------------------------------------------------------------------------------------------------


def _tables(body: Mapping[str, Any]) -> str:
    rows = [
        *run_rows(body),
        ["executions without a refusal", by_target(body["decoded_by_target"])],
        ["most memory of one execution", f"{body['largest'][0]['bytes'] / 2**20:.1f} MiB"],
        ["slowest execution, while coverage was counted", f"{body['slowest_s']} s"],
    ]
    largest = [
        [f"{r['bytes'] / 2**20:.1f}", f"{r['allowed'] / 2**20:.1f}", f"{r['message_bytes'] / 2**20:.2f}", r["target"],
         as_code(r["message"])]
        for r in body["largest"]
    ]  # fmt: skip
    found = found_rows(body)
    return "\n".join(
        [
            table(["the run", ""], rows),
            growth(body),
            "## The messages that took most memory\n",
            table(["MiB taken", "MiB allowed", "MiB long", "target", "message"], largest),
            "## Findings\n",
            table(["what", "input"], found) if found else "None.\n",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
