"""Verdicts that were once wrong, found by reading answers with fresh eyes and by changing real golds."""

import pytest

from verifiers.errors import BadGold
from verifiers.math import MathVerifier
from verifiers.verdict import VerifyRequest

VERIFIER = MathVerifier(MathVerifier.Options())
BOXED = [
    ("33\\frac{1}{3}\\%", "\\frac{1}{3}", 1.0),
    ("12\\frac12^\\circ", "12.5", 1.0),
    ("[-4,0)\\cup(0,4]", "-4\\le x\\le 4, x\\ne 0", 1.0),
    ("25\\%", "\\text{25\\%}", 1.0),
    ("5\\%", "5\\text{\\%}", 1.0),
    ("5", "5\\text{\\%}", 0.0),
    ("25", "\\text{25\\%}", 0.0),
    ("x\\equiv 3\\pmod 7", "x \\equiv 3 \\pmod{7}", 1.0),
    ("x\\equiv 3\\pmod 7", "x \\equiv 4 \\pmod{7}", 0.0),
    ("(0,1)\\cup(1,\\infty)", "x>0, x\\neq 1", 1.0),
    ("(1,\\infty)", "x>1, x\\in\\mathbb{R}", 1.0),
    ("\\overline{z}", "\\bar z", 1.0),
    ("[a,b]", "a\\le x\\le b", 1.0),
    ("(-\\infty,a)", "x<a", 1.0),
    ("(-\\infty,a)", "x\\le a", 0.0),
    ("4", "\\text{The answer is } 4", 1.0),
    ("(1,2,3)", "c=1,b=2,a=3", 0.0),
    ("(1,2,3)", "c=3,b=2,a=1", 1.0),
    ("36^\\circ", "36\\text{ radians}", 0.0),
    ("180^\\circ", "\\pi\\text{ radians}", 1.0),
    ("\\text{ellipse}", "\\text{an ellipse}", 1.0),
    ("\\frac13", "0.333...", 1.0),
    (r"(1,1)", r"[1,1)", 0.0),
    (r"(15,-11)", r"[15,-11)", 0.0),
    (r"05:00", r"25:00", 0.0),
    (r"x+y+z=0", r"y+y+z=0", 0.0),
    (r"9\text{ a.m.}", r"9\text{ p.m.}", 0.0),
    (r"440\text{ cm}^2", r"440\text{ cm}^3", 0.0),
    (r"440\text{ cm}^2", r"440\text{ square cm}", 1.0),
    (r"40\text{ min}", r"40", 1.0),
    (r"\text{odd}", r"{\text{odd}}", 1.0),
    (r"100,200", r"100, 200", 1.0),
    (r"10,000", r"10", 0.0),
    (r"\frac{\pi}{\sin\pi}", r"\frac{\pi}{\sin\pi}+1", 0.0),
    (r"\tan\frac{\pi}{2}", r"5+\tan\frac{\pi}{2}", 0.0),
    (r"\cot\pi", r"\cot\pi-7", 0.0),
    (r"e^{100}+\pi", r"\pi+e^{100}", 1.0),
    (r"\sqrt{2}^{301}", r"2^{150}\sqrt{2}", 1.0),
    (r"e^{100}", r"e^{100}+1", 0.0),
    (r"0.4", r"\frac{91}{216}", 0.0),
]


@pytest.mark.parametrize(("gold", "answer", "score"), BOXED)
def test_a_boxed_answer_once_misjudged(gold, answer, score):
    verdict = VERIFIER.verify(VerifyRequest(f"So \\boxed{{{answer}}}.", gold))
    assert verdict.score == score, verdict.evidence


def test_explain_comes_to_the_verdict_of_verify_for_a_choice_in_a_sentence():
    request = VerifyRequest("So the correct option is (B) 42.", "B")
    assert VERIFIER.verify(request).score == 1.0
    assert VERIFIER.explain(request)["decided by"] == "the same choice"


def test_a_malformed_gold_is_a_bad_gold_and_no_zero_for_the_model():
    gold = r"6}&\text{added 1"
    with pytest.raises(BadGold, match="cannot be read"):
        VERIFIER.verify(VerifyRequest(r"So \boxed{6}.", gold))
    with pytest.raises(BadGold, match="cannot be read"):  # so the check before training finds it
        VERIFIER.gold_response(gold, {})
