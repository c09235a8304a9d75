"""Kind `format`: each rule alone, and no credit for what is missing."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import ConfigError, Runner, Status, VerifyRequest
from verifiers.format import _SAMPLES

GOOD = "<think>a</think>\n<answer>b</answer>\n"


def judge(response, **options):
    with Runner("format", options) as runner:
        return runner.verify([VerifyRequest(response, None)])[0]


def broken(response, **options):
    return {name for name, score in judge(response, **options).parts.items() if not score}


def test_a_response_that_keeps_the_contract_has_every_part():
    verdict = judge(GOOD)
    assert (verdict.score, verdict.status) == (1.0, Status.CORRECT)
    assert dict(verdict.parts) == dict.fromkeys(["tag:think", "tag:answer", "order", "non_empty", "outside"], 1.0)


@pytest.mark.parametrize(
    ("response", "rules"),
    [
        ("<think> </think><answer>b</answer>", {"non_empty"}),
        ("<think>a</think> so <answer>b</answer>", {"outside"}),
        (GOOD + "bye", {"outside"}),
        ("<answer>b</answer><think>a</think>", {"order", "non_empty", "outside"}),
        ("<think>a<answer>b</think></answer>", {"order", "non_empty", "outside"}),
        ("<think>a<answer>b</answer></think>", {"order", "non_empty", "outside"}),
        ("</think>a<think><answer>b</answer>", {"order", "non_empty", "outside"}),
        (GOOD + "<answer>c</answer>", {"tag:answer", "order", "non_empty", "outside"}),
        ("<think>a</think><answer>b", {"tag:answer", "order", "non_empty", "outside"}),
        ("b", {"tag:think", "tag:answer", "order", "non_empty", "outside"}),
        ("<Think>a</Think><answer>b</answer>", {"tag:think", "order", "non_empty", "outside"}),
    ],
)
def test_each_broken_rule_is_named(response, rules):
    assert broken(response) == rules
    assert (judge(response).score, judge(response).status) == (0.0, Status.WRONG)
    assert broken(response, nothing_outside=False) == rules - {"outside"}


def test_the_share_counts_the_rules_kept():
    assert judge("<think>a</think><answer></answer>", score="share").score == pytest.approx(4 / 5)
    assert judge(GOOD, score="share").score == 1.0


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_response_keeps_no_rule(blank):
    verdict = judge(blank, score="share", scripts=["latin"], max_chars=100, boxed=True)
    assert (verdict.score, verdict.status) == (0.0, Status.NO_ANSWER)
    assert not any(verdict.parts.values())


def test_answers_are_counted_in_tags_and_in_boxes():
    two = "<think>a</think><answer>b</answer><answer>c</answer>"
    assert judge(two, answers=2).score == 1.0
    assert broken(GOOD, answers=2) == {"tag:answer", "order", "non_empty", "outside"}
    assert judge(r"so \boxed{1} and \boxed{2}", tags=[], boxed=True, answers=2).score == 1.0
    for response in (r"\boxed{1}", r"\boxed{1}\boxed{2}\boxed{3}", r"\boxed{1}\boxed{}", r"\boxed{1}\boxed{2"):
        assert broken(response, tags=[], boxed=True, answers=2) == {"boxed"}


def test_each_answer_is_boxed_once():
    assert judge(r"<think>\boxed{3}</think><answer>\boxed{4}</answer>", boxed=True).score == 1.0
    for answer in ("4", r"\boxed{}", r"\boxed{1}\boxed{2}", r"\boxed{1"):
        assert broken(f"<think>a</think><answer>{answer}</answer>", boxed=True) == {"boxed"}
    assert broken(r"<think>\boxed{1}</think> so", tags=[], boxed=True) == {"boxed"}


def test_a_prompt_may_open_the_first_tag():
    assert judge("a</think><answer>b</answer>", prompt_opens=True).score == 1.0
    assert "tag:think" in broken(GOOD, prompt_opens=True)


@pytest.mark.parametrize("script", sorted(_SAMPLES))
def test_scripts_are_told_apart(script):
    for other, sample in _SAMPLES.items():
        expected = other == script
        assert (broken(sample, tags=[], scripts=[script]) == set()) is expected, (script, other)


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        (
            "设 x 为 $\\alpha + Bob$ 的值, \\(\\text{therefore}\\) \\[ABC DEF\\] \\frac",
            True,
        ),  # mathematics does not count
        ("所以 ```python\nprint(long_name)\n``` 如此", True),
        ("设为 therefore", False),
        ("it costs $5 therefore\n\n所以", False),  # an unclosed dollar hides nothing
        ("42", True),
        ("<think>因为</think>", True),  # tags are not Latin text
        ("所以所以所以所以所以所以所以所以所以 ok", True),  # 18 of 20 letters
        ("所以所以所以所以所以所以所以所以所 ok", False),  # 17 of 19
    ],
)
def test_the_share_is_of_letters_outside_mathematics_and_code(response, kept):
    assert (broken(response, tags=[], scripts=["han"]) == set()) is kept


def test_length_is_in_characters():
    assert broken("é" * 5, tags=[], max_chars=5) == set()
    assert broken("é" * 6, tags=[], max_chars=5) == {"length"}


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"tags": ["<think>"]}, "without brackets"),
        ({"tags": ["a", "a"]}, "once"),
        ({"tags": []}, "no rule"),
        ({"tags": [], "max_chars": 9, "prompt_opens": True}, "prompt_opens"),
        ({"tags": [], "max_chars": 9, "answers": 2}, "counted"),
        ({"max_chars": 5}, "no room"),
        ({"scripts": ["chinese"]}, "scripts"),
        ({"min_script_share": 0.0}, "min_script_share"),
    ],
)
def test_a_contract_that_cannot_be_kept_is_refused(options, fragment):
    with pytest.raises(ConfigError, match=fragment):
        Runner("format", options)


@given(
    tags=st.lists(st.sampled_from(["think", "answer", "plan"]), unique=True),
    nothing_outside=st.booleans(), prompt_opens=st.booleans(), boxed=st.booleans(), answers=st.integers(1, 4),
    scripts=st.lists(st.sampled_from(sorted(_SAMPLES)), max_size=2), score=st.sampled_from(["all", "share"]),
)  # fmt: skip
def test_the_perfect_response_passes_every_contract_that_is_accepted(**options):
    try:
        runner = Runner("format", options)
    except ConfigError:
        return
    assert runner.verify([VerifyRequest(runner.gold_response("x", {}), "x")])[0].score == 1.0


FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", r"\boxed{", "}", "$", "\\(", "因", "x", " ", "\ud800"]
)


@given(st.lists(FRAGMENTS | st.text(max_size=3), max_size=25).map("".join))
def test_no_response_is_a_fault_and_all_means_all(response):
    options = {"boxed": True, "scripts": ["latin"], "max_chars": 200}
    verdict = judge(response, **options)
    share = judge(response, **options, score="share")
    assert verdict.score == float(share.score == 1.0) == float(all(verdict.parts.values()))


@pytest.mark.parametrize("unit", ["<think>", "\\(", "$", "$$ ", "```", "a", "<answer></answer>", "\n\n", r"\boxed{"])
def test_a_hundred_kilobytes_take_less_than_a_second(unit):
    started = time.perf_counter()
    assert judge(unit * (100_000 // len(unit)), boxed=True, scripts=["latin"]).score is not None
    assert time.perf_counter() - started < 1
