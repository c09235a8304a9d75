"""What `fuzz_math` runs a million times: one input, the math verifier in this process, and the oracles.

Started by `benchmarks.fuzz_math` as a process of its own, because libFuzzer ends the process it runs in. An input is
four bytes and a text: which target, which gold (two bytes), how often the text's middle part is repeated; the text's
parts are separated by a NUL. Findings and the slowest inputs are written to --out as they come; coverage is counted in
`verifiers.math` and `verifiers.text`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["verifiers.math", "verifiers.text"]):
    from verifiers.math import slow
    from verifiers.math.compare import Profile, compare, has_direction
    from verifiers.math.shapes import is_undefined
    from verifiers.math.verifier import MathVerifier, read

from benchmarks.fuzzing_target import Oracle, main
from verifiers.errors import BadGold
from verifiers.math.bench.cases import SHIPPED_CASES, load_cases
from verifiers.math.syntax import show, walk
from verifiers.verdict import Status, Verdict, VerifyRequest

MAX_CHARS = 100_000
BUDGET_S = 1.0
HEADER_BYTES = 4
TARGETS: tuple[str, ...] = ("boxed", "response", "compare")
_AGAIN_EVERY = 4
_KEPT_SLOW = 40
_KEPT_SYMPY = 2_000


def golds() -> list[str]:
    """Every gold of the shipped cases that is short, in their order."""
    return list(dict.fromkeys(case.gold for case in load_cases(SHIPPED_CASES) if 0 < len(case.gold) < 300))


class MathOracle(Oracle):
    """Runs one input and writes down what must not happen; each kind of finding once."""

    def __init__(self, out: Path):
        super().__init__(out, TARGETS)
        self.golds = golds()
        self.verifier = MathVerifier(MathVerifier.Options())
        self.forms = {gold: read(gold).form for gold in self.golds}
        self.slowest: list[dict[str, Any]] = []
        self.sympy_pairs: dict[tuple[str, str], None] = {}
        slow.warm = lambda: None  # sympy is no part of the budget: what it would be asked is kept for the pool
        slow.equal = self._would_ask_sympy

    def _would_ask_sympy(self, gold: str, answer: str) -> None:
        if len(self.sympy_pairs) < _KEPT_SYMPY:
            self.sympy_pairs[gold, answer] = None

    def __call__(self, data: bytes) -> None:
        target, gold, text = self.decoded(data)
        self.executions[target] += 1
        judge = partial(getattr(self, f"_{target}"), gold, text)
        self.guarded(judge, lambda kind: self.finding(kind, target, gold, text))
        self.report_when_due()

    def decoded(self, data: bytes) -> tuple[str, str, str]:
        header, body = data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0"), data[HEADER_BYTES:]
        parts = body.decode("utf-8", "surrogateescape").split("\0", 2)
        if len(parts) == 3:
            room = MAX_CHARS // max(1, len(parts[1]))
            text = parts[0] + parts[1] * min(1 << header[3] % 17, room) + parts[2]
        else:
            text = "".join(parts)
        gold = self.golds[int.from_bytes(header[1:3], "big") % len(self.golds)]
        return TARGETS[header[0] % len(TARGETS)], gold, text[:MAX_CHARS]

    # ---- targets ----------------------------------------------------------------------------------------------------

    def _boxed(self, gold: str, text: str) -> None:
        self._verify(gold, f"So the answer is $\\boxed{{{text}}}$.", text)

    def _response(self, gold: str, text: str) -> None:
        self._verify(gold, text, text)

    def _verify(self, gold: str, response: str, text: str) -> None:
        request = VerifyRequest(response, gold)
        verdict = self._timed("verify", gold, text, lambda: self.verifier.verify(request))
        if sum(self.executions.values()) % _AGAIN_EVERY == 0:
            again = MathVerifier(MathVerifier.Options()).verify(request)  # without what the first has in its caches
            if verdict != again:
                self.finding("not deterministic", "verify", gold, text)
        if not _is_sound(verdict):
            self.finding("not a sound verdict", "verify", gold, text)

    def _compare(self, gold: str, text: str) -> None:
        """The text as a gold and as an answer."""
        try:
            self._timed("gold", text, "1", lambda: self.verifier.verify(VerifyRequest("\\boxed{1}", text)))
        except BadGold:
            return
        form, other = read(text).form, self.forms[gold]
        if form is None:
            return
        show(form)
        itself = self._timed("compare", text, text, lambda: compare(form, form, Profile()))
        if not itself.equal and not any(map(is_undefined, walk(form))):
            self.finding(f"not equal to itself: {itself.rule[:60]}", "compare", text, text)
        if other is not None and not (has_direction(form) or has_direction(other)):
            there, back = compare(other, form, Profile()), compare(form, other, Profile())
            if there.equal != back.equal:
                rules = f"{there.rule[:50]} / {back.rule[:50]}"
                self.finding(f"not symmetric: {rules}", "compare", gold, text)

    # ---- what is kept -----------------------------------------------------------------------------------------------

    def _timed(self, what: str, gold: str, text: str, run: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = run()
        seconds = time.process_time() - started
        if len(self.slowest) < _KEPT_SLOW or seconds > self.slowest[-1]["seconds"]:
            row = {"seconds": round(seconds, 4), "what": what, "gold": gold, "text": text}
            self.slowest = sorted([*self.slowest, row], key=lambda r: -r["seconds"])[:_KEPT_SLOW]
        return result

    def finding(self, kind: str, target: str, gold: str, text: str) -> None:
        row = self.findings.setdefault(kind, {"target": target, "gold": gold, "text": text, "times": 0})
        row["times"] += 1
        if len(gold) + len(text) < len(row["gold"]) + len(row["text"]):
            row["gold"], row["text"] = gold, text

    def state(self) -> dict[str, Any]:
        return {"slowest": self.slowest, "sympy_pairs": list(self.sympy_pairs)}


def _is_sound(verdict: Any) -> bool:
    return (
        isinstance(verdict, Verdict)
        and verdict.status in (Status.CORRECT, Status.WRONG, Status.NO_ANSWER)
        and verdict.score == float(verdict.status is Status.CORRECT)
    )


if __name__ == "__main__":
    main(sys.argv[1:], str(__doc__).splitlines()[0], MathOracle)
