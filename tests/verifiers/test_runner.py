"""`Runner`: options, in-process judging, and what a fault becomes."""

import subprocess
import sys

import pytest

from verifiers import BadGold, ConfigError, Runner, Status, VerifyRequest
from verifiers.code.verifier import CodeVerifier


def ask(runner, *responses):
    return runner.verify([VerifyRequest(response, gold="") for response in responses])


@pytest.mark.parametrize(
    ("kind", "options", "fragments"),
    [
        ("exakt", {}, ["exakt", "verifier.kind", "did you mean 'exact'"]),
        ("exact", {"maker": "#"}, ["verifier.maker", "did you mean 'marker'"]),
        ("exact", {"case_sensitive": "yes"}, ["verifier.case_sensitive", "'yes'"]),
        ("exact", {"answer_pattern": "(a)(b)", "answer_template": "{}"}, ["verifier.answer_pattern", "one group"]),
        ("exact", {"answer_pattern": "(a", "answer_template": "{}"}, ["verifier.answer_pattern", "not a regular"]),
        ("exact", {"answer_pattern": "(a)"}, ["verifier", "answer_template"]),
        ("exact", {"answer_pattern": "(a)", "answer_template": "no"}, ["verifier", "'{}'"]),
        ("exact", {"marker": "#", "answer_pattern": "(a)", "answer_template": "{}"}, ["verifier", "keep one"]),
        ("exact", {"marker": " "}, ["verifier.marker", "visible"]),
        ("countdown", {"use_all": 1}, ["verifier.use_all"]),
        ("math", {"unboxed": "maybe"}, ["verifier.unboxed", "reject"]),
        ("math", {"max_answer_chars": 0}, ["verifier.max_answer_chars"]),
        ("no_such_module:Kind", {}, ["no_such_module", "verifier.kind"]),
        ("collections:Counter", {}, ["not a verifier", "Options"]),
    ],
)
def test_a_wrong_option_is_named_with_its_key(kind, options, fragments):
    with pytest.raises(ConfigError) as caught:
        Runner(kind, options)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_options_reach_a_users_own_kind_in_process_and_isolated():
    for kind in ("hostile_kinds:InProcess", "hostile_kinds:Commanded"):
        with Runner(kind, {"greeting": "héllo"}) as runner:
            (verdict,) = ask(runner, "sleep 0")
            assert (verdict.score, verdict.status, verdict.evidence, verdict.answer) == (1.0, "correct", "héllo", "0")
            assert verdict.milliseconds > 0


@pytest.fixture(scope="module", params=["hostile_kinds:InProcess", "hostile_kinds:Commanded"])
def either(request):
    """The same verifier, in process and isolated."""
    with Runner(request.param, {}) as runner:
        yield runner


@pytest.mark.parametrize(
    ("response", "status", "fragment"),
    [
        ("raises oh", Status.VERIFIER_FAULT, "LookupError: oh (in raises, "),
        ("no_such_method", Status.VERIFIER_FAULT, "AttributeError"),
        ("not_a_verdict", Status.VERIFIER_FAULT, "bool, not a Verdict"),
        ("memory_error", Status.MEMORY, "memory"),
        ("bad_gold unreadable", Status.BAD_GOLD, "unreadable"),
    ],
)
def test_what_a_verifier_raises_never_becomes_a_score(either, response, status, fragment):
    fault, after = ask(either, response, "echo fine")
    assert (fault.score, fault.status) == (None, status)
    assert fragment in fault.evidence
    assert (after.score, after.evidence) == (0.5, "fine")


def test_long_evidence_is_clipped(either):
    (verdict,) = ask(either, "echo " + "x" * 10_000)
    assert len(verdict.evidence) == 2_000


def test_gold_response_is_the_same_in_process_and_isolated(either):
    assert either.gold_response("4\n2", {}) == "echo 4\n2"
    with pytest.raises(BadGold, match="no gold"):
        either.gold_response(None, {})


@pytest.mark.parametrize("kind", ["hostile_kinds:InProcessExplained", "hostile_kinds:Explained"])
def test_an_explanation_has_the_verifiers_own_rows_in_their_order(kind):
    with Runner(kind, {}, timeout_s=0.5) as runner:
        rows = runner.explain(VerifyRequest("why", ""))
        assert list(rows.items()) == [("second", "z"), ("first", "why")]
        assert "LookupError: oh" in runner.explain(VerifyRequest("raises", ""))["fault"]


def test_an_explanation_that_hangs_is_cut_off():
    with Runner("hostile_kinds:Explained", {}, timeout_s=0.3, workers=1) as runner:
        assert runner.explain(VerifyRequest("hang", "")) == {"fault": "no verdict within 0.3 s"}
        assert runner.explain(VerifyRequest("ok", ""))["first"] == "ok"


def test_a_kind_without_explanations_shows_its_verdict(either):
    assert either.explain(VerifyRequest("echo me", "")) == {"answer": "None", "evidence": "me", "status": "correct"}
    assert "LookupError: oh" in either.explain(VerifyRequest("raises oh", ""))["evidence"]


def test_the_parts_of_a_verdict_come_through(either):
    (verdict,) = ask(either, "graded 0.25")
    assert verdict.parts == {"half": 0.25, "unknown": None}


def test_submitted_requests_are_judged_in_order_when_asked_for(either):
    first = either.submit([VerifyRequest(f"echo {i}", "") for i in range(20)])
    second = either.submit([VerifyRequest("echo last", ""), VerifyRequest("echo bad", {1})])
    assert [v.evidence for v in first()] == [str(i) for i in range(20)]
    assert second()[0].evidence == "last"


def test_a_stream_numbers_every_request_also_those_that_cannot_be_sent(either):
    requests = [VerifyRequest("echo a", ""), VerifyRequest("echo b", ""), VerifyRequest("raises c", "")]
    assert {i: str(v.status) for i, v in either.stream(requests)} == {0: "correct", 1: "correct", 2: "verifier_fault"}


def test_no_requests_give_no_verdicts_and_start_no_worker():
    with Runner("hostile_kinds:CannotStart", {}) as runner:
        assert runner.verify([]) == []


@pytest.mark.parametrize("code", ["import verifiers", "from verifiers import VERIFIERS; VERIFIERS.names()"])
def test_importing_verifiers_and_every_kind_imports_nothing_heavy(code):
    heavy = "{'torch', 'transformers', 'sympy', 'math_verify', 'numpy'}"
    program = f"import sys; {code}; sys.exit(', '.join({heavy} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("given", "limits"), [({}, (5.0, 1024)), ({"timeout_s": 1.0, "memory_mb": 256}, (1.0, 256))])
def test_a_kind_has_its_own_default_limits(given, limits, monkeypatch):
    seen = []
    monkeypatch.setattr(CodeVerifier, "__init__", lambda self, options, **kwargs: seen.append(kwargs))
    Runner("code", {}, **given)
    Runner("combine", {"parts": {"code": {"kind": "code"}, "format": {"kind": "format"}}}, **given)
    assert [(kwargs["timeout_s"], kwargs["memory_mb"]) for kwargs in seen] == [limits, limits]
