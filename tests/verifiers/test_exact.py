"""Kind `exact`: where the answer stands, which numbers are equal, and what hostile text costs."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import BadGold, Runner, Status, VerifyRequest
from verifiers.exact import ExactVerifier, parse_number
from verifiers.verdict import ALWAYS_SCORED

PATTERN = {"answer_pattern": r"(?i)answer:\s*(\w+)", "answer_template": "Answer: {}"}


def judge(response, gold, **options):
    return ExactVerifier(ExactVerifier.Options(**options)).verify(VerifyRequest(response, gold))


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("42", "42", True),
        ("42", "42.", True),
        ("42", "42.0", True),
        ("42", "+42", True),
        ("42", "042", True),
        ("42", "$42", True),
        ("42", r"\$42", True),
        ("42", "$42$", True),
        ("42", "$42.$", True),
        ("42", "43", False),
        ("-42", "-$42", True),
        ("-42", "$-42", True),
        ("42", "-42", False),
        ("0", "-0", True),
        ("1234567", "1,234,567", True),
        ("1234567", "1,234567", False),
        ("1234", "1,23,4", False),
        ("1.5", "1,5", False),
        ("0.5", ".5", True),
        ("0.5", "1/2", True),
        ("1/2", "2/4", True),
        ("1/3", "0.33", False),
        ("1/3", "0.3333333333333333", False),
        ("0.1", "0.1000000000000000055511151231257827", False),
        ("3", "2.9999999999999999999999", False),
        ("1e3", "1000", True),
        ("1.5e-3", "0.0015", True),
        ("1E+2", "100", True),
        ("5%", "5.0%", True),
        ("5%", r"5\%", True),
        ("5%", "5 %", True),
        ("5", "5%", False),
        ("5%", "0.05", False),
        ("1/2", "1/0", False),
    ],
)
def test_numbers_are_equal_by_exact_value(left, right, equal):
    number = parse_number(left)
    assert number is not None
    assert (parse_number(right) == number) is equal


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "-", "$", "%", "3 or 4", "3, 4", "3+5=8", "42 apples", "x", "1 1/2", "--5", "-$-5", "1/2/3", "1.2.3",
     "1,23", "1.5/2", "0x10", "1_000", "٤٢", "½", "−5", "inf", "nan", "1e", "e5", "1e1001", "1e-999999", "1" * 1001,
     "1e999999999", "$$", "$ $"],
)  # fmt: skip
def test_what_is_not_a_number_or_too_long_is_not_read_as_one(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("response", "gold", "options", "status"),
    [
        # 1. a pattern: its last match, nothing else
        ("answer: 1, no, Answer: 2", "2", PATTERN, "correct"),
        ("answer: 2, no, Answer: 1", "2", PATTERN, "wrong"),
        (r"\boxed{2}", "2", PATTERN, "no_answer"),
        # 2. a marker: the rest of the line after its last occurrence, nothing else
        ("so\n#### 42", "42", {"marker": "####"}, "correct"),
        ("#### 41\n#### 42 \nbye 7", "42", {"marker": "####"}, "correct"),
        ("#### 42\n#### 41", "42", {"marker": "####"}, "wrong"),
        ("#### 3 or 4", "4", {"marker": "####"}, "wrong"),
        ("#### 3, 4", "4", {"marker": "####"}, "wrong"),
        ("#### 4 apples", "4", {"marker": "####"}, "wrong"),
        ("#### unknown", "4", {"marker": "####"}, "wrong"),
        ("####\n42", "42", {"marker": "####"}, "no_answer"),
        ("the answer is 42", "42", {"marker": "####"}, "no_answer"),
        (r"\boxed{42}", "42", {"marker": "####"}, "no_answer"),
        ("the answer is $1,042.00.", 1042, {"marker": "the answer is"}, "correct"),
        # 3. the last box
        (r"1 \boxed{41} no \boxed{42} 3", "42", {}, "correct"),
        (r"\boxed{42} no \boxed{41}", "42", {}, "wrong"),
        (r"\boxed{41} or \boxed{42}", "42", {}, "wrong"),
        (r"\boxed{42", "42", {}, "no_answer"),
        (r"\boxed{}, so 42", "42", {}, "no_answer"),
        # 3. no box: the last number for a number, the whole response for a string
        ("3 + 39 = 42.", "42", {}, "correct"),
        ("It is 42, not 41.", "42", {}, "wrong"),
        ("50 - 8=42", "42", {}, "correct"),
        ("10-5", "5", {}, "correct"),
        ("it is -5", "-5", {}, "correct"),
        ("it is -5", "5", {}, "wrong"),
        ("(-5)", "-5", {}, "correct"),
        ("it costs $5", "5", {}, "correct"),
        ("it grows by 5%", "5", {}, "wrong"),
        ("it grows by 5%", "5%", {}, "correct"),
        ("about 1,234,567 people", "1234567", {}, "correct"),
        ("on 1/2/3", "3", {}, "wrong"),
        ("version 1.2.3", "3", {}, "wrong"),
        ("a = 1/3", "1/3", {}, "correct"),
        ("a = .5", "0.5", {}, "correct"),
        ("2.5e3", "2500", {}, "correct"),
        ("no idea", "42", {}, "no_answer"),
        ("", "42", {}, "no_answer"),
        ("7" * 20_000, "7", {}, "wrong"),
        ("Paris", "Paris", {}, "correct"),
        ("It is Paris", "Paris", {}, "wrong"),
        # thinking does not count
        ("<think>\\boxed{42}</think> \\boxed{41}", "42", {}, "wrong"),
        ("<think>\\boxed{42}</think>", "42", {}, "no_answer"),
        ("<think> maybe \\boxed{42}", "42", {}, "no_answer"),
        ("thinking #### 41 </think> #### 42", "42", {"marker": "####"}, "correct"),
        # strings
        (r"\boxed{ New   York }", "New York", {}, "correct"),
        (r"\boxed{new york}", "New York", {}, "wrong"),
        (r"\boxed{new york}", "New York", {"case_sensitive": False}, "correct"),
        (r"\boxed{Paris.}", "Paris", {}, "wrong"),
        # numeric: never, always, by the gold
        (r"\boxed{42.0}", "42", {"numeric": False}, "wrong"),
        (r"\boxed{42}", "42", {"numeric": False}, "correct"),
        (r"\boxed{42.0}", 42, {"numeric": True}, "correct"),
        (r"\boxed{0.1}", 0.1, {}, "correct"),
        (r"\boxed{0.1000000000000000055511151231257827}", 0.1, {}, "wrong"),
    ],
)
def test_where_the_answer_stands(response, gold, options, status):
    verdict = judge(response, gold, **options)
    assert verdict.status == status
    assert verdict.score == float(status == "correct")


@pytest.mark.parametrize(
    ("gold", "options"),
    [
        (None, {}), (True, {}), ([1], {}), ("", {}), ("  ", {}), (float("nan"), {}), (float("inf"), {}), (10**1000, {}),
        ("Paris", {"numeric": True}), ("1e99999", {"numeric": True}),
    ],
)  # fmt: skip
def test_a_gold_that_cannot_be_read_is_our_fault(gold, options):
    with pytest.raises(BadGold):
        judge("42", gold, **options)
    with Runner("exact", options) as runner:
        (verdict,) = runner.verify([VerifyRequest("42", gold)])
        assert (verdict.score, verdict.status) == (None, Status.BAD_GOLD)
        with pytest.raises(BadGold):
            runner.gold_response(gold, {})


@pytest.mark.parametrize("options", [{}, {"marker": "####"}, PATTERN, {"numeric": False}, {"case_sensitive": False}])
@pytest.mark.parametrize("gold", [42, "42", "Paris"])
def test_gold_response_is_correct_under_the_same_options(gold, options):
    verifier = ExactVerifier(ExactVerifier.Options(**options))
    assert verifier.verify(VerifyRequest(verifier.gold_response(gold, {}), gold)).status == "correct"


@pytest.mark.parametrize("options", [{}, {"marker": "A:"}])
@pytest.mark.parametrize("gold", [-3, 0.25, "-1,234.50", "7%", "$5", "2/3", "New  York", "f(x) = {x}", "１"])
def test_gold_response_is_correct_for_every_form_of_gold(gold, options):
    verifier = ExactVerifier(ExactVerifier.Options(**options))
    assert verifier.verify(VerifyRequest(verifier.gold_response(gold, {}), gold)).status == "correct"


def test_equal_answers_have_the_same_canonical_form_for_majority_votes():
    answers = [judge(f"\\boxed{{{form}}}", "7").answer for form in ("1,000.50", "$1000.5", "2001/2", "+1000.500")]
    assert set(answers) == {"2001/2"}
    assert judge(r"\boxed{5%}", "7").answer == "5%"
    assert judge(r"\boxed{a  b}", "7").answer == "a b"
    assert judge("no number", "7").answer is None


@given(st.integers(min_value=-(10**30), max_value=10**30))
def test_an_integer_is_itself_with_and_without_separators_and_never_its_neighbour(n):
    for form in (f"{n}", f"{n:,}", f"{n}.0", f"${n}$", f"{n}e0"):
        assert judge(f"\\boxed{{{form}}}", n).status == "correct"
        assert judge(f"The answer is {form}.", n).status == "correct"
        assert judge(f"\\boxed{{{form}}}", n + 1).status == "wrong"


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=6), st.integers(min_value=1, max_value=10**12))
def test_a_decimal_is_the_fraction_it_denotes_and_not_its_float_neighbour(decimal, step):
    exact = Fraction(decimal)
    assert judge(f"#{decimal:f}", f"{exact}", marker="#").status == "correct"
    assert judge(f"#{decimal:f}", f"{decimal:E}", marker="#").status == "correct"
    nudged = f"{decimal:f}{step:012d}1"
    assert judge(f"#{nudged}", f"{decimal:f}", marker="#").status == "wrong"


@given(st.fractions(), st.fractions())
def test_fractions_are_equal_exactly_if_their_values_are(a, b):
    assert judge(f"#{a}", f"{b}", marker="#").score == float(a == b)
    assert judge(f"#{a.numerator * 7}/{a.denominator * 7}", f"{a}", marker="#").status == "correct"


@given(
    st.text() | st.text(alphabet="0123456789.,/%$-+eE \\{}#boxed<think>") | st.text(alphabet="\\boxed{} and5"),
    st.sampled_from(["42", "Paris", 0.5]),
    st.sampled_from([{}, {"marker": "#"}, PATTERN, {"case_sensitive": False}]),
)
def test_no_text_makes_it_raise(response, gold, options):
    assert judge(response, gold, **options).status in ALWAYS_SCORED
    parse_number(response)


@pytest.mark.parametrize(
    "piece",
    ["9", "1e999999999 ", "9,", "9.", "9/", "1,234", "$", "-", "%", " ", "\\", "{", "}", r"\boxed{", r"\boxed{1} and ",
     r"\boxed{1}", r"\boxed{{", "<think>", "</think>", "<think></think>", "#", "# 1\n", "\\$", "e9", ".9", "and", "(",
     "Ａ", "\U0001f600"],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"marker": "#"}])
def test_hostile_text_is_judged_quickly(piece, options):
    response = piece * (100_000 // len(piece))
    started = time.process_time()
    for text in (response, response + "}", "\\boxed{" + response, "#" + response):
        assert judge(text, "7", **options).score == 0.0
    assert (time.process_time() - started) / 4 < 0.5  # 0.05 s on an idle machine
