r"""What costs a grader seconds, gigabytes or its process costs ours neither.

In this process the bound is CPU time, generous because a test machine may be slow and busy; through a `Runner` it is
wall time, and the workers must live on (the other call contexts: test_math_contexts.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from tests.verifiers.math_pairs import VERIFIER, box
from verifiers.errors import BadGold
from verifiers.math import slow
from verifiers.math.bench.cases import Case
from verifiers.math.bench.hostile import hostile_cases, hostile_categories
from verifiers.runner import Runner
from verifiers.verdict import Status, VerifyRequest

CPU_S = 2.0
WALL_MS = 2_000.0
MEMORY_MB = 1_024
JUDGED = (Status.CORRECT, Status.WRONG, Status.NO_ANSWER)

# Each was found by reading the code or by `benchmarks.fuzz_math`, and once took longer than the limit, up to hours.
FOUND = {
    "a sum of factorials": ("1", box("+".join(["3000!"] * 2_500))),
    "a product of factorials": ("0.333", box("*".join(["3000!"] * 2_500))),
    "a sum of binomials": ("x", box("+".join([r"\binom{3000}{1500}"] * 1_000))),
    "a decimal gold and a factorial of a hundred million": ("0.333", box("(10^{8}+0.5)!")),
    "a decimal gold and a power of a billion": ("0.333", box(r"2^{10^9}-3^{10^8}")),
    "a decimal gold and a hyperbolic cosine of a billion": ("0.333", box(r"\cosh(10^9)")),
    "a root of a huge degree": ("1", box(r"\sqrt[2^{10^9}]{-2}")),
    "a set of sixty long sums": (
        r"\{1,2\}",
        box(r"\{" + ",".join("+".join(rf"\sin {k + j}" for j in range(38)) for k in range(60)) + r"\}"),
    ),
    "a long sum with five plus-minus signs": ("1,2", box(r"\pm ".join(["x"] * 5) + "+" + "+".join(["x"] * 4_000))),
    "two hundred inequalities joined by and": (
        "1",
        box(r" \text{ and } ".join(f"|x-{k}|>0.1" for k in range(195))),
    ),
    "an equation of 1500 sines": ("y=2x+1", box("y=" + "+".join(rf"\sin {k}x" for k in range(1_500)))),
    "a chain of 5000 equal signs": (r"5\text{ cm}", box("=".join(["1"] * 5_000))),
    "a chain of 1700 true equations": ("1", box("=".join(f"{k}/{k}" for k in range(1, 1_700)))),
    "apostrophes": ("5", box("'" * 19_000)),
    "spaces behind the box": ("5", r"\boxed{5}" + " " * 100_000 + "x"),
    "line breaks before a display": ("5", "So\n" + "\n" * 5_900 + r"\[5\]"),
    "digits in a text": ("5", box(r"\text{" + "1" * 19_000 + "a}")),
    "commas without values": ("5", "The answer is " + "," * 150 + "x"),
    "a box that says 'or all'": ("5", box("or all")),
    "a lone surrogate as a name": ("1", box("1500\\mathbb{\udc95R}")),
    "an interval with a complex end": ("5", box("[-2i,1]")),
    "a number with a huge exponent": ("1", box("1e5000")),
    "fonts in one another": ("1", box(r"\mathbf{" * 2_000 + "1" + "}" * 2_000)),
    "factorials of factorials": ("1", box("3" + "!" * 500)),
    "signs after a product": ("1", box("1*" + "-" * 9_000 + "1")),
    "fractions without brackets": ("1", box("/".join(["3"] * 6_000))),
    "a thousand plus-minus signs": ("1", box(r"\pm ".join(["1"] * 3_000))),
}


@pytest.fixture(autouse=True, scope="module")
def _sympy_stays_in_the_workers() -> Iterator[None]:
    """It has no limit of its own: only the pool may ask it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slow, "worth_asking", lambda gold, answer: False)
        yield


def cpu_seconds(gold: str, response: str) -> float:
    started = time.process_time()
    verdict = VERIFIER.verify(VerifyRequest(response, gold))
    seconds = time.process_time() - started
    assert verdict.status in JUDGED, verdict.evidence
    return seconds


@pytest.mark.parametrize(("gold", "response"), [pytest.param(*found, id=what) for what, found in FOUND.items()])
def test_what_was_once_too_slow_or_raised_is_judged_in_time(gold: str, response: str) -> None:
    assert cpu_seconds(gold, response) < CPU_S


@pytest.mark.parametrize("category", hostile_categories())
def test_a_hostile_input_is_judged_in_this_process_in_time(category: str) -> None:
    for case in hostile_cases(category):
        assert cpu_seconds(case.gold, case.response) < CPU_S, case.why


@pytest.mark.parametrize("gold", [r"\{1,2\}", "x>0", "0.333"])
def test_what_kind_of_gold_it_is_makes_no_hostile_answer_slow(gold: str) -> None:
    """The rule that decides depends on the gold; each must be bounded."""
    late = {case.why: seconds for case in hostile_cases() if (seconds := cpu_seconds(gold, case.response)) > CPU_S}
    assert not late


def test_a_hostile_text_as_gold_is_judged_in_time_or_refused() -> None:
    late = []
    for case in hostile_cases():
        started = time.process_time()
        with suppress(BadGold):
            VERIFIER.verify(VerifyRequest(r"\boxed{1}", case.response))
        if time.process_time() - started > CPU_S:
            late.append(case.why)
    assert not late


def test_all_hostile_inputs_leave_the_workers_alive_and_small() -> None:
    cases = [*hostile_cases(), *(_found(what, *found) for what, found in FOUND.items())]
    with Runner("math", {}) as runner:
        runner.warm()
        before = _workers()
        verdicts = runner.verify([VerifyRequest(case.response, case.gold, example_id=case.id) for case in cases])
        after = _workers()
        memory_mb = max(worker.memory_info().rss for worker in after) / 2**20
        (last,) = runner.verify([VerifyRequest(r"\boxed{42}", "42")])
    assert before == after
    assert memory_mb < MEMORY_MB
    assert last.status is Status.CORRECT
    late = {c.why: v.milliseconds for c, v in zip(cases, verdicts, strict=True) if v.milliseconds > WALL_MS}
    assert not late
    assert not [v.evidence for v in verdicts if v.status not in JUDGED]


def _found(what: str, gold: str, response: str) -> Case:
    return Case(id=what, gold=gold, response=response, label=None, category="found", source="found", why=what)


def _workers() -> set[psutil.Process]:
    return {child for child in psutil.Process().children() if "verifiers.worker" in " ".join(child.cmdline())}


def test_what_is_remembered_of_long_answers_stays_small() -> None:
    """Sixteen thousand remembered trees of two thousand characters were a gigabyte."""
    process = psutil.Process()
    long = "+".join(["x"] * 900)
    VERIFIER.verify(VerifyRequest(box(long), "1,2"))
    before = process.memory_info().rss
    for number in range(100):
        VERIFIER.verify(VerifyRequest(box(f"{number}+{long}"), "1,2"))
    assert process.memory_info().rss - before < 4 * 2**20
