"""Kind `math`: how math-verify is called, and what it is known to get wrong."""

import time

import pytest

from verifiers import BadGold, Runner, Status, VerifyRequest


@pytest.fixture(scope="module")
def runner():
    with Runner("math", {}, workers=1, timeout_s=10.0) as shared:
        yield shared


def judge(runner, response, gold):
    (verdict,) = runner.verify([VerifyRequest(response, gold)])
    return verdict


def box(answer):
    return f"so the answer is $\\boxed{{{answer}}}$."


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (r"\frac{1}{2}", "1/2", True),
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{1}{2}", r"\dfrac12", True),
        (r"\frac{1}{2}", r"\frac{2}{4}", True),
        (r"\frac{1}{2}", r"\frac{1}{3}", False),
        (r"\frac{1}{3}", "0.33", False),
        ("0.5", r"\frac{1}{2}", True),
        (42, "42", True),
        (0.25, r"\frac14", True),
        ("1,000", "1000", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        (r"2\sqrt{2}", r"\sqrt{6}", False),
        ("x^2-1", "(x-1)(x+1)", True),
        ("x^2-1", "(x-1)^2", False),
        ("x+1", "y+1", False),
        ("5", "x=5", True),
        ("x=5", "5", True),
        ("x=5", "y=5", False),
        ("[0,1)", "[0,1)", True),
        ("[0,1)", "[0,1]", False),
        (r"(-\infty,3]", r"(-\infty,3)", False),
        (r"(-\infty,0)\cup(1,\infty)", r"(1,\infty)\cup(-\infty,0)", True),
        ("x<3", r"(-\infty,3)", True),
        ("1,2", "2,1", True),
        ("1,2", "1", False),
        ("1,2", "1,2,3", False),
        ("(1,2)", "(2,1)", False),
        (r"\{1,2\}", r"\{2,1\}", True),
        (r"10\text{ cm}", "10", True),
        ("10", r"10\text{ cm}", True),
        (r"\$10", "10", True),
        (r"90^\circ", "90", True),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", True),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", False),
        (r"\text{east}", r"\text{east}", True),
        (r"\text{east}", r"\text{west}", False),
    ],
)
def test_equality_in_a_box(runner, gold, answer, right):
    verdict = judge(runner, box(answer), gold)
    assert verdict.status == ("correct" if right else "wrong"), verdict.evidence
    assert verdict.score == float(right)


KNOWN_WRONG = {
    "tiny numbers are compared to six absolute decimals": ("0.0000001", "0.0000002", False),
    "base subscripts are dropped": ("100", "100_2", False),
    "text after the first value is dropped": (r"4:30 \text{ p.m.}", r"4:30 \text{ a.m.}", False),
    "a false chain counts as its right side": ("8", "7 = 8", False),
    "a percent is not its value": (r"50\%", "0.5", True),
    "an inequality is not its interval": (r"(-\infty,3]", r"x\le 3", True),
    "a rounded gold wants its own digits": ("0.333", r"\frac13", True),
    "Unicode mathematics is not read": (r"\frac{1}{2}", "½", True),
    "formatting macros are not removed": ("42", r"\underline{42}", True),
}


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        pytest.param(*case, id=reason, marks=pytest.mark.xfail(strict=True, reason=f"math-verify 0.9.0: {reason}"))
        for reason, case in KNOWN_WRONG.items()
    ],
)
def test_documented_limits(runner, gold, answer, right):
    assert judge(runner, box(answer), gold).score == float(right)


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (r"<think>\boxed{7}</think> \boxed{5}", "correct"),
        (r"<think>\boxed{5}</think> \boxed{7}", "wrong"),
        (r"<think>\boxed{5}</think>", "no_answer"),
        (r"<think>\boxed{5}", "no_answer"),
        (r"opened by the prompt \boxed{7}</think> \boxed{5}", "correct"),
        (r"I first had \boxed{7}. The answer is \boxed{5}.", "correct"),
        (r"\boxed{5} or \boxed{6}", "wrong"),
        (r"\boxed{5", "no_answer"),
        (r"\boxed{}", "no_answer"),
        ("The answer is 5.", "no_answer"),
        ("", "no_answer"),
        (r"\boxed{" + "5+" * 1_000 + "5}", "no_answer"),  # longer than max_answer_chars
    ],
)
def test_only_the_last_box_outside_thinking_counts(runner, response, status):
    assert judge(runner, response, "5").status == status


def test_boxes_joined_by_and_are_a_list(runner):
    assert judge(runner, r"$\boxed{1}$ and $\boxed{2}$", "1,2").status == "correct"
    assert judge(runner, r"$\boxed{(98, 2)} \quad \text{and} \quad \boxed{(99, 503)}$", "(98,2),(99,503)").score == 1.0


def test_unboxed_answers_count_only_if_the_option_says_so():
    with Runner("math", {"unboxed": "anchored", "max_answer_chars": 100}, workers=1, timeout_s=10.0) as anchored:
        assert judge(anchored, "Therefore the final answer is $\\frac{1}{2}$.", "0.5").status == "correct"
        assert judge(anchored, "we get 3, then 5", "5").status == "no_answer"
        assert judge(anchored, "The answer is $5$." + " " * 100, "5").status == "no_answer"
    with Runner("math", {"unboxed": "anywhere"}, workers=1, timeout_s=10.0) as anywhere:
        assert judge(anywhere, "we get 3, then 5", "5").status == "correct"


@pytest.mark.parametrize("gold", ["", " ", "$$", r"\boxed{}", None, True, [1], {"a": 1}])
def test_a_gold_that_cannot_be_read_is_our_fault_and_never_a_reward(runner, gold):
    for response in (box("5"), box(""), "", str(gold)):
        verdict = judge(runner, response, gold)
        assert (verdict.score, verdict.status) == (None, Status.BAD_GOLD)
    with pytest.raises(BadGold):
        runner.gold_response(gold, {})


@pytest.mark.parametrize("gold", [5, -0.5, "$5$", r"\boxed{5}", r"x \in [0, 1)", r"12.5\%", r"\text{Paris}", "a, b"])
def test_gold_response_is_correct_for_its_gold(runner, gold):
    assert judge(runner, runner.gold_response(gold, {}), gold).status == "correct"


def test_evidence_and_canonical_answer_show_both_parsed_forms(runner):
    verdict = judge(runner, box(r"\frac{2}{4}"), r"\frac{1}{3}")
    assert verdict.evidence == "answer '1/2', gold '1/3'"
    assert verdict.answer == judge(runner, box("1/2"), "7").answer == "1/2"


def test_a_bomb_is_a_timeout_without_a_score_and_the_next_answer_is_judged():
    with Runner("math", {}, workers=1, timeout_s=2.0) as short:
        started = time.monotonic()
        bomb, after = short.verify([VerifyRequest(box("9" * 9 + "!"), "5"), VerifyRequest(box("5"), "5")])
    assert (bomb.score, bomb.status) == (None, Status.TIMEOUT)
    assert after.status == "correct"
    assert time.monotonic() - started < 20.0
