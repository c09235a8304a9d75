"""Verdicts of the kind `code`: statuses, partial credit, extraction, the forms of tests."""

import time

import pytest

from verifiers import ConfigError, Status, VerifierError, VerifyRequest
from verifiers.code.compare import same_output, same_value
from verifiers.code.verifier import CodeVerifier
from verifiers.errors import NoReference
from verifiers.options import parse_options

SQUARES = {"type": "stdin_stdout", "inputs": ["3\n", "7\n", "12\n"], "outputs": ["9\n", "49\n", "144\n"]}
F = {"type": "functional", "fn_name": "f", "inputs": [[1], [2], [3], [4]], "outputs": [1, 4, 9, 16]}
ASSERTS = {"type": "assert", "asserts": ["assert f(1) == 1", "assert f(2) == 4"]}


def verdict_of(verifier, program, gold):
    (verdict,) = verifier.verify_many([VerifyRequest(program, gold)])
    return verdict


def with_options(verifier, **changes):
    """The same sandbox under other options."""
    other = object.__new__(CodeVerifier)
    other.__dict__.update(verifier.__dict__, options=verifier.options.model_copy(update=changes))
    return other


@pytest.mark.parametrize(
    ("program", "gold", "status", "fragment"),
    [
        ("print(int(input())**2)", SQUARES, "correct", "3 of 3"),
        ("print(9)", SQUARES, "wrong", "test 2: wrong: expected '49"),
        ("print(9); raise KeyError('k')", SQUARES, "error_in_program", "KeyError"),
        ("print(9); raise SystemExit(3)", SQUARES, "error_in_program", "SystemExit"),
        ("def (", SQUARES, "error_in_program", "SyntaxError"),
        ("import ctypes; ctypes.string_at(0)", SQUARES, "error_in_program", "SIGSEGV"),
        ("while True: pass", SQUARES, "timeout", "SIGKILL"),
        ("x = bytearray(3 << 30)", SQUARES, "memory", "MemoryError"),
        ("while True: print('x' * 10000)", SQUARES, "output_limit", "output_limit"),
        ("", SQUARES, "no_answer", "empty"),
        ("def f(x): return x * x", F, "correct", "4 of 4"),
        ("def f(x): return x", F, "wrong", "test 2: wrong: expected 4, got 2"),
        ("def f(x): return {1} if x > 1 else 1", F, "wrong", "got {1}"),
        ("def f(x): return object()", F, "wrong", "not plain data"),
        ("def f(x): return [bytearray(3 << 30)]", F, "memory", "MemoryError"),
        ("def f(x): return x / 0", F, "error_in_program", "ZeroDivisionError"),
        ("def g(x): return x", F, "error_in_program", "does not define 'f'"),
        ("def f(x):\n  while x > 2: pass\n  return x * x", F, "timeout", "test 3: timeout"),
        ("class Solution:\n  def f(self, x): return x * x", F, "correct", "4 of 4"),
        ("def f(x): return x * x", ASSERTS, "correct", "2 of 2"),
        ("def f(x): return x", ASSERTS, "wrong", "test 2: wrong"),
        ("def f(x): raise ValueError('no')", ASSERTS, "error_in_program", "ValueError: no"),
        ("import os\nos._exit(0)", ASSERTS, "wrong", "no result"),
    ],
)
def test_status_and_evidence(verifier, program, gold, status, fragment):
    verdict = verdict_of(verifier, program, gold)
    assert (verdict.status, verdict.score) == (Status(status), float(status == "correct")), verdict
    assert fragment in verdict.evidence


@pytest.mark.parametrize(
    ("credit", "first_k", "scores"),
    [("all_or_nothing", 10, (0.0, 0.0, 0.0)), ("share", 10, (0.5, 0.5, 0.0)), ("first_k", 3, (2 / 3, 1 / 3, 0.0))],
)
def test_partial_credit(verifier, credit, first_k, scores):
    judged = with_options(verifier, credit=credit, first_k=first_k)
    gold = {"type": "stdin_stdout", "inputs": ["1", "2", "3", "4"], "outputs": ["1", "4", "9", "16"]}
    programs = [f"n=int(input()); print(n*n if n in {ok} else 0)" for ok in ((1, 2), (1, 4), ())]
    assert tuple(verdict_of(judged, program, gold).score for program in programs) == scores
    functions = [f"def f(x): return x*x if x in {ok} else 0" for ok in ((1, 2), (1, 4), ())]
    assert tuple(verdict_of(judged, program, F).score for program in functions) == scores


def test_a_test_that_runs_into_a_limit_ends_the_set(verifier):
    judged = with_options(verifier, credit="share")
    verdict = verdict_of(judged, "n = int(input())\nwhile n == 7: pass\nprint(n * n)", SQUARES)
    assert (verdict.score, verdict.status) == (1 / 3, Status.TIMEOUT)


def test_tests_of_one_set_run_in_order_in_one_process_and_stdin_tests_in_fresh_ones(verifier):
    count = {"type": "functional", "fn_name": "f", "inputs": [[], [], []], "outputs": [1, 2, 3]}
    assert verdict_of(verifier, "n = [0]\ndef f():\n  n[0] += 1\n  return n[0]", count).score == 1.0
    left = {"type": "stdin_stdout", "inputs": ["", ""], "outputs": ["False", "False"]}
    assert verdict_of(verifier, "import os\nprint(os.path.exists('x'))\nopen('x', 'w')", left).score == 1.0


@pytest.mark.parametrize(
    ("asserts", "program", "passes"),
    [
        # what is split
        (["assert abs(f(2) - 4.0) < 1e-6", "assert f(3) in (9, 10) and f(1)"], "def f(x): return x * x", True),
        (["assert f([3, 1], reverse=True) == [3, 1]"], "f = sorted", True),
        (["assert set(f(2)) == {0, 1}"], "def f(n): return list(range(n))", True),
        (["assert f(1)"], "def f(x): return 0", False),
        # what comes back as an object, and is looked at beside the program
        (["assert list(f(3)) == [0, 1, 2]"], "def f(n):\n  yield from range(n)", True),
        (["assert f(3) == [0, 1, 2]"], "def f(n):\n  yield from range(n)", False),
        (["assert f(1) == f(1)"], "class E:\n  def __eq__(s, o): return True\ndef f(x): return E()", False),
        # what cannot be split
        (["a = [3, 1]\nf(a)\nassert a == [1, 3]"], "def f(a): a.sort()", True),
        (["a = [3, 1]\nf(a)\nassert a == [1, 3]"], "def f(a): return sorted(a)", False),
        (["assert f(P(3)).x == 4"], "class P:\n  def __init__(s, x): s.x = x\ndef f(p):\n  p.x += 1\n  return p", True),
        (["assert f((1, 'a'), int) == [1]"], "def f(t, kind): return [v for v in t if isinstance(v, kind)]", True),
        (["assert [f(i) for i in range(5)] == [0, 1, 4, 9, 16]"], "def f(x): return x * x", True),
        (["try:\n  f(-1)\n  assert False\nexcept ValueError: pass"], "def f(x): raise ValueError", True),
        (["try:\n  f(-1)\n  assert False\nexcept ValueError: pass"], "def f(x): raise KeyError", False),
        (["try:\n  f(-1)\nexcept ValueError: pass\nelse: assert False"], "def f(x): raise AssertionError", False),
        (["assert all(map(lambda x: f(x) == 1, [1, 2]))"], "def f(x): raise StopIteration", False),
        (["import math\nassert math.isclose(f(2), math.sqrt(2))"], "def f(x): return x ** 0.5", True),
        (["assert f(1) == 1; f(2)"], "import os\ndef f(x): os._exit(0)", False),
    ],
)
def test_asserts(verifier, asserts, program, passes):
    verdict = verdict_of(verifier, program, {"type": "assert", "asserts": asserts})
    assert verdict.score == float(passes), verdict


@pytest.mark.parametrize(
    ("gold", "fragment"),
    [
        ({"asserts": ["assert f(lambda x: x) == 1"]}, "function, which cannot be sent"),
        ({"asserts": ["assert f("]}, "SyntaxError"),
        ({"asserts": ["assert f(1) == 1"], "setup": "import no_such_module"}, "no_such_module"),
        ({"asserts": ["import no_such_module\nassert f(1) == 1"]}, "no_such_module"),
    ],
)
def test_tests_that_are_at_fault_themselves_cost_no_reward(verifier, gold, fragment):
    verdict = verdict_of(verifier, "def f(x): return x", {"type": "assert", **gold})
    assert (verdict.status, verdict.score) == (Status.BAD_GOLD, None)
    assert fragment in verdict.evidence


@pytest.mark.parametrize(
    ("program", "test", "status"),
    [
        ("import time\ndef f(x): time.sleep(60)", "y = f(1)\nassert y == 1", Status.TIMEOUT),
        ("def f(x): return 0", "while f(1) != 1: pass", Status.TIMEOUT),
        ("def f(x): return 10 ** 9", "y = [0] * f(1)\nassert len(y) == 3", Status.WRONG),
        ("def f(x):\n  while True: yield 1", "assert list(f(1)) == [1]", Status.TIMEOUT),
        ("def f(x):\n  while True: yield bytearray(1 << 28)", "assert list(f(1)) == [1]", Status.MEMORY),
        ("import os\nwhile True: os.write(61, b'x' * 9999)", "y = f(1)\nassert y == 1", Status.OUTPUT_LIMIT),
    ],
)
def test_a_program_that_stops_the_tests_own_run_is_not_excused(verifier, program, test, status):
    verdict = verdict_of(verifier, program, {"type": "assert", "asserts": [test]})
    # On a loaded machine time may run out before memory does.
    allowed = {status, Status.TIMEOUT} if status is Status.MEMORY else {status}
    assert verdict.status in allowed, verdict
    assert verdict.score == 0.0


SEARCH = r"""
import gc, os, re, sys
def f(x):
    seen = [repr(o) for o in gc.get_objects() if type(o) in (str, list, tuple, dict, set)]
    frame = sys._getframe()
    while frame:
        seen += [repr(v) for v in frame.f_locals.values() if v is not seen]
        frame = frame.f_back
    seen += list(os.environ.values()) + sys.argv
    for fd in range(3, 64):
        try:
            os.set_blocking(fd, False)
            seen.append(repr(os.read(fd, 1 << 20)))
        except OSError:
            pass
    found = [m for s in seen for m in re.findall("SEC[R]ET-[0-9a-f]{16}", s)]
    return found[0] if found else "none"
"""


def test_expected_values_are_not_where_the_program_is(verifier):
    """It searches all objects of its interpreter, its frames, environment and open files while it is called."""
    secret = "SECRET-5f2c9d81aa07e634"
    functional = {"type": "functional", "fn_name": "f", "inputs": [[1], [2]], "outputs": [secret, secret]}
    split = {"type": "assert", "asserts": [f"assert f(1) == '{secret}'"]}
    apart = {"type": "assert", "asserts": [f"x = f(1)\nassert x == '{secret}', x"]}
    for gold in (functional, split, apart):
        verdict = verdict_of(verifier, SEARCH, gold)
        assert verdict.status is Status.WRONG
        assert "none" in verdict.evidence
    assert verdict_of(verifier, f"y = '{secret}'\n" + SEARCH, functional).score == 1.0  # the search does find


@pytest.mark.parametrize(
    ("actual", "expected", "same"),
    [
        ("1 2\n", "1  2", True),
        ("1\r\n2", "1\n2\n", True),
        ("1\n\n", "1", True),
        ("1\n\n2", "1\n2", False),
        ("12", "1 2", False),
        ("1.0000001", "1.0", True),
        ("10", "10.0", True),
        ("10.0", "10", False),
        ("nan", "1.0", False),
        ("inf", "1e300", False),
        ("1e9", "1000000000.0", True),
        ("0x10", "16.0", False),
        ("1" * 500, "1.0", False),
        ("YES", "Yes", False),
        ("1\n2", "1\n2\n3", False),
        ("", "", True),
    ],
)
def test_output_comparison(actual, expected, same):
    assert same_output(actual, expected, 1e-6) is same


@pytest.mark.parametrize(
    ("actual", "expected", "same"),
    [
        ((1, 2), [1, 2], True),
        (True, 1, False),
        (1, True, False),
        (1.0, 1, True),
        (1, 1.0, True),
        (1.0000001, 1, True),
        (float("nan"), float("nan"), False),
        (float("inf"), 1e300, False),
        (10**400, 1e300, False),
        ({"a": 1}, {"a": 1}, True),
        ({1: 1}, {"1": 1}, False),
        ({1}, [1], False),
        ("1", 1, False),
        (None, 0, False),
        ([[1.0], []], [[1], []], True),
    ],
)
def test_value_comparison(actual, expected, same):
    assert same_value(actual, expected, 1e-6) is same


def test_verdicts_stream_as_they_come_and_wait_in_order(verifier):
    slow, quick = "import time\ntime.sleep(0.7)\nprint(int(input())**2)", "print(int(input())**2)"
    requests = [VerifyRequest(program, SQUARES) for program in (slow, quick, "print(0)")]
    wait = verifier.submit(requests)
    assert [index for index, _ in verifier.stream(requests)][-1] == 0
    assert [verdict.score for verdict in wait()] == [1.0, 1.0, 0.0]


def test_gold_response_is_the_reference_in_a_fence(verifier):
    judged = with_options(verifier, program="fenced")
    response = judged.gold_response(F, {"solution": "def f(x): return x * x"})
    assert verdict_of(judged, response, F).score == 1.0
    with pytest.raises(NoReference, match="no reference solution"):
        judged.gold_response(F, {})


def test_wrong_options_are_named():
    for options, fragment in (({"credit": "half"}, "verifier.credit"), ({"timeout": 1}, "verifier.timeout")):
        with pytest.raises(ConfigError, match=fragment):
            parse_options(CodeVerifier.Options, options, key="verifier")
    with pytest.raises(VerifierError, match="no_such_package"):
        CodeVerifier(CodeVerifier.Options(packages=["no_such_package"]))


SLEEPER = "import time\ntime.sleep(float(input()))\nprint(7)"


def test_a_batch_ends_at_its_deadline_and_what_is_left_has_no_score(tier):
    options = CodeVerifier.Options(isolation=tier, packages=[], batch_timeout_s=2.0)
    verifier = CodeVerifier(options, timeout_s=5.0, workers=2)
    fast, slow = ({"type": "stdin_stdout", "inputs": [s], "outputs": ["7"]} for s in ("0", "9"))
    started = time.monotonic()
    verdicts = verifier.verify_many([VerifyRequest(SLEEPER, gold) for gold in (fast, slow, slow, slow, fast)])
    assert time.monotonic() - started < 4.0
    assert [(v.status, v.score) for v in verdicts] == [(Status.CORRECT, 1.0)] + [(Status.TIMEOUT, None)] * 4
    assert "time for the batch" in verdicts[1].evidence
    assert verifier.verify_many([VerifyRequest(SLEEPER, fast)])[0].score == 1.0  # the next batch has its own
    verifier.close()


def test_the_evidence_names_the_tier(verifier, tier):
    assert verdict_of(verifier, "print(int(input()) ** 2)", SQUARES).evidence.startswith(f"tier {tier}; the whole text")
