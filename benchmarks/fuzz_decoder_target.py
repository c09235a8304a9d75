"""What `fuzz_decoder` runs a million times: one hostile message, the parent's decoders in this process, the oracles.

Started by `benchmarks.fuzz_decoder` as a process of its own, because libFuzzer ends the process it runs in. An input is
two bytes and a message: which target, how often the message's middle part is repeated; the message's parts are
separated by a NUL. Or, if the second byte is odd and the target reads values, each further byte stands for a piece of
the wire format, so that what is mutated stays well formed. Findings are written to --out as they come; coverage is
counted in the modules named below.
"""

from __future__ import annotations

import math
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["verifiers.code.inside.plain", "verifiers.code.replies"]):
    from verifiers.code import replies
    from verifiers.code.inside import plain

with atheris.instrument_imports(include=["verifiers.code.asserts", "verifiers.code.compare", "verifiers.code.grade"]):
    from verifiers.code import compare, grade

from benchmarks.fuzzing_target import Oracle, main
from verifiers.code import box
from verifiers.code.asserts import split

MAX_BYTES = 4 << 20  # what a run may write, by default
USUAL_BYTES, LARGE_EVERY = 1 << 15, 500  # only each 500th message may be longer, else there would be few of them
HEADER_BYTES = 2
TARGETS: tuple[str, ...] = ("value", "replies", "stdout", "end", "greeting", "started", "step")
# The caps that `inside.plain` and `compare` document, and a constant for the frames that a deep exception keeps.
BYTES_PER_VALUE, BYTES_PER_BYTE, OUTPUT_BYTES_PER_BYTE, CONSTANT_BYTES = 160, 12, 40, 1_000_000
BUDGET_S = 5.0
EXPECTED: tuple[Any, ...] = (
    None, True, 0, -1, 7, 1 << 64, 10**400, 0.5, 1e300, "", "ab", [], [1, [2.0, "x"]], (1, 2), {}, {"a": [1]},
    {1: 2, (1, 2): "x"}, {1, 2}, b"ab", 1j,
)  # fmt: skip
OUTPUTS = ("", "1\n2\n3", "0.5 1e300 nan", "1e999 x", "a b\r\nc")
ASSERTS = [split(text) for text in (
    "assert f(1) == 4", "assert f(1) == [1, 2.5, 'x']", "assert abs(f(1) - 2.5) < 1e-6",
    "assert sorted(f(1)) == [1, 2]", "assert len(f(1)) == len(set(f(2)))",
    "assert f(1)[0] + f(2) * 3 > 2 ** f(3)", "assert not f(1) and f(2) in f(3)",
)]  # fmt: skip
_ATOMS = ("0", "1", "-1", "4", "1.5", "-0.0", "NaN", "Infinity", "9223372036854775808", "null", "true", "false", '""',
          '"a"', '"x"', '"\\ud800"', '{"i": "0x10000000000000000"}', '{"i": "-f"}', '{"f": "nan"}', '{"f": "inf"}',
          '{"b": "6162"}', '{"c": [1.0, NaN]}', '{"b": 1}', '{"i": 1}', '{"o": 0}', '{"y": "int"}', "[]",
          "{}")  # fmt: skip
_OPENERS = (("[", "]"), ('{"t": [', "]}"), ('{"s": [', "]}"), ('{"z": [', "]}"), ('{"d": [', "]}"), ('{"d": [[', "]]}"),
            ('{"c": [', "]}"))  # fmt: skip
_CALLS = 20
_KEPT_LARGEST = 10
_EXACT = frozenset({type(None), bool, int, float, str, bytes, complex, list, tuple, set, frozenset, dict})


class DecoderOracle(Oracle):
    """Runs one input and writes down what must not happen; each kind of finding once."""

    def __init__(self, out: Path):
        super().__init__(out, TARGETS)
        self.decoded = dict.fromkeys(TARGETS, 0)
        self.largest: list[dict[str, Any]] = []
        self.slowest_s = 0.0
        tracemalloc.start()

    def __call__(self, data: bytes) -> None:
        large = sum(self.executions.values()) % LARGE_EVERY == 0
        target, message = message_of(data, MAX_BYTES if large else USUAL_BYTES)
        self.executions[target] += 1
        started = time.process_time()
        decode = partial(getattr(self, f"_{target}"), message)
        self.guarded(decode, lambda kind: self.finding(kind, target, message))
        seconds = time.process_time() - started
        self.slowest_s = max(self.slowest_s, seconds)
        if seconds > BUDGET_S:
            self.finding(f"slow, {seconds:.0f} s", target, message)
        self.report_when_due()

    # ---- targets ----------------------------------------------------------------------------------------------------

    def _value(self, message: bytes) -> None:
        """One value: of exact types, and the same after another round."""
        value = self._measured("value", message, lambda: plain.decode(message), plain.BadFrame)
        if value is None:
            return
        if not _is_exact(value[0]):
            self.finding("not a built-in type", "value", message)
        if _nodes(message) > plain.MAX_NODES // 4 or len(message) > MAX_BYTES // 4:
            return  # written again it may be over the caps
        try:
            again = plain.encode(value[0])
        except plain.Unsupported as error:
            if "nested" not in str(error):
                self.finding("decoded, but cannot be sent", "value", message)
            return
        if _canonical(plain.decode(again.encode())) != _canonical(value[0]):
            self.finding("another value after a round", "value", message)

    def _replies(self, message: bytes) -> None:
        """A whole output, as a set of calls leaves it, through everything that the parent does with it."""

        def read() -> list[Any]:
            decoder = plain.Decoder()
            return [grade._reply(decoder, line) for line in message.split(b"\n", _CALLS)[:_CALLS] if line]

        measured = self._measured("replies", message, read, ())
        if measured is None:
            return
        values = [value for value in measured[0] if not isinstance(value, grade.TestResult)]
        for value in values:
            if not _is_exact(value):
                self.finding("not a built-in type", "replies", message)
            for expected in EXPECTED:
                if type(compare.same_value(value, expected, 1e-6)) is not bool:
                    self.finding("a comparison that is neither", "replies", message)
            grade._show(value)
        for test in ASSERTS:
            if test is not None and len(values) >= len(test.calls):
                test.holds(values)

    def _stdout(self, message: bytes) -> None:
        def read() -> list[bool]:
            text = message.decode("utf-8", "replace")
            return [compare.same_output(text, expected, 1e-6) for expected in OUTPUTS]

        self._measured("stdout", message, read, ())
        grade._show(message.decode("utf-8", "replace"))

    def _end(self, message: bytes) -> None:
        self._reply("end", message, replies.read_end)

    def _greeting(self, message: bytes) -> None:
        self._reply("greeting", message, replies.read_greeting)

    def _started(self, message: bytes) -> None:
        self._reply("started", message, replies.read_started)

    def _step(self, message: bytes) -> None:
        self._reply("step", message, replies.read_step)

    def _reply(self, target: str, message: bytes, read: Callable[[bytes], Any]) -> None:
        result = self._measured(target, message, lambda: read(message), replies.BadReply)
        if result is None:
            return
        value = result[0]
        if isinstance(value, replies.End):
            box._words(value)
            value = [value.ready, value.note, value.stopped, value.status, value.cpu_s]
        if not _is_exact(value):
            self.finding("not a built-in type", target, message)

    # ---- what is kept -----------------------------------------------------------------------------------------------

    def _measured(self, target: str, message: bytes, read: Callable[[], Any], documented: Any) -> tuple[Any] | None:
        """(what it returned,) or None if it raised what it may; how much memory it took meanwhile is checked."""
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        result = None
        try:
            result = (read(),)
            self.decoded[target] += 1
        except documented:
            pass
        taken = tracemalloc.get_traced_memory()[1] - before
        allowed = allowed_bytes(target, message)
        if taken > allowed:
            self.finding(f"takes more than allowed: {target}", target, message)
        if len(self.largest) < _KEPT_LARGEST or taken > self.largest[-1]["bytes"]:
            row = {"bytes": taken, "allowed": allowed, "message_bytes": len(message), "target": target,
                   "message": _shown(message)}  # fmt: skip
            self.largest = sorted([*self.largest, row], key=lambda r: -r["bytes"])[:_KEPT_LARGEST]
        return result

    def finding(self, kind: str, target: str, message: bytes) -> None:
        row = self.findings.setdefault(kind, {"target": target, "hex": message[:2_000].hex(), "bytes": len(message),
                                              "message": _shown(message), "times": 0})  # fmt: skip
        row["times"] += 1
        if len(message) < row["bytes"]:
            row.update(hex=message[:2_000].hex(), bytes=len(message), message=_shown(message))

    def state(self) -> dict[str, Any]:
        return {"decoded": self.decoded, "largest": self.largest, "slowest_s": round(self.slowest_s, 3)}


def message_of(data: bytes, max_bytes: int) -> tuple[str, bytes]:
    """(target, message)."""
    header, body = data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0"), data[HEADER_BYTES:]
    target = TARGETS[header[0] % len(TARGETS)]
    if header[1] % 2 and target in ("value", "replies"):
        return target, _built(target, body)[:max_bytes]
    parts = body.split(b"\0", 2)
    if len(parts) == 3:
        room = max_bytes // max(1, len(parts[1]))
        message = parts[0] + parts[1] * min(1 << header[1] // 2 % 23, room) + parts[2]
    else:
        message = b"".join(parts)
    return target, message[:max_bytes]


def _built(target: str, codes: bytes) -> bytes:
    """Well-formed JSON: an atom, an opening, an end of what is open, or an end of the line for each byte."""
    lines, pieces, open_ends = [], [], []
    for code in codes:
        choice = code % 48
        if choice == 47:
            lines.append("".join(pieces + open_ends[::-1]))
            pieces, open_ends = [], []
        elif choice >= 40:
            if open_ends:
                pieces.append(open_ends.pop())
        else:
            if pieces and pieces[-1][-1] != "[":
                pieces.append(",")
            if choice < len(_ATOMS):
                pieces.append(_ATOMS[choice])
            else:
                opening, end = _OPENERS[choice % len(_OPENERS)]
                pieces.append(opening)
                open_ends.append(end)
    lines.append("".join(pieces + open_ends[::-1]))
    return "\n".join(f'{{"v": {line}}}' if target == "replies" else line for line in lines).encode()


def allowed_bytes(target: str, message: bytes) -> int:
    if target == "stdout":
        return len(message) * OUTPUT_BYTES_PER_BYTE + CONSTANT_BYTES
    return min(_nodes(message), plain.MAX_NODES) * BYTES_PER_VALUE + len(message) * BYTES_PER_BYTE + CONSTANT_BYTES


def _nodes(message: bytes) -> int:
    return 1 + sum(message.count(mark) for mark in (b",", b"[", b"{", b":"))


def _is_exact(value: Any) -> bool:
    kind = type(value)
    if kind not in _EXACT:
        return False
    if kind is dict:
        return all(_is_exact(key) and _is_exact(item) for key, item in value.items())
    return all(map(_is_exact, value)) if kind in (list, tuple, set, frozenset) else True


def _canonical(value: Any) -> Any:
    """Equal for values that are the same, NaN and minus zero included."""
    kind = type(value).__name__
    if isinstance(value, float):
        return kind, "nan" if math.isnan(value) else value.hex()
    if isinstance(value, complex):
        return kind, _canonical(value.real), _canonical(value.imag)
    if isinstance(value, int):
        return kind, hex(value)
    if isinstance(value, list | tuple):
        return kind, [_canonical(item) for item in value]
    if isinstance(value, set | frozenset):
        return kind, sorted(map(_canonical, value), key=repr)
    if isinstance(value, dict):
        return kind, [(_canonical(key), _canonical(item)) for key, item in value.items()]
    return kind, value


def _shown(message: bytes) -> str:
    return ascii(message[:120]) + ("..." if len(message) > 120 else "")


if __name__ == "__main__":
    main(sys.argv[1:], str(__doc__).splitlines()[0], DecoderOracle)
