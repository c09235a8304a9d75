"""Filters and the gold check: what is dropped is named, and nothing is dropped unless the recipe says so."""

import pytest

from data import Example, Message, by_pass_rate, by_prompt_tokens, by_repetition, check_golds
from verifiers.errors import BadGold, ConfigError, DataError, NoReference, VerifierError
from verifiers.exact import ExactVerifier
from verifiers.verdict import Status, Verdict, VerifyRequest

EXAMPLES = [Example(name, (Message("user", f"question {name}"),), "1") for name in "abcd"]
IDS = [[1] * 3, [1] * 9, [1] * 5, [1] * 6]


def test_prompts_up_to_the_limit_are_kept_in_order():
    kept, dropped = by_prompt_tokens(EXAMPLES, IDS, 5, "skip")
    assert ([e.id for e in kept], dropped) == (["a", "c"], ["b", "d"])
    assert by_prompt_tokens(EXAMPLES, IDS, 9, "stop") == (EXAMPLES, [])


def test_a_prompt_too_long_stops_with_ids_lengths_and_the_key():
    with pytest.raises(DataError) as caught:
        by_prompt_tokens(EXAMPLES, IDS, 5, "stop")
    message = str(caught.value)
    assert all(part in message for part in ("b (9 tokens), d (6 tokens)", "data.max_prompt_tokens=5", "longest has 9"))


def test_skipping_every_prompt_stops():
    with pytest.raises(DataError, match="4 of 4"):
        by_prompt_tokens(EXAMPLES, IDS, 2, "skip")


def test_the_pass_rate_band_includes_its_ends():
    rates = {"a": 0.0, "b": 0.125, "c": 0.5, "d": 1.0}
    kept, dropped = by_pass_rate(EXAMPLES, rates, 0.125, 0.5)
    assert ([e.id for e in kept], dropped) == (["b", "c"], ["a", "d"])


def test_an_example_without_pass_rate_an_empty_band_and_an_impossible_one_stop():
    rates = dict.fromkeys("abcd", 1.0)
    with pytest.raises(DataError, match=r"1 examples have no measured pass rate.*\n.*d"):
        by_pass_rate(EXAMPLES, dict.fromkeys("abc", 0.5), 0.0, 1.0)
    with pytest.raises(DataError, match=r"range over 1\.00 \.\. 1\.00"):
        by_pass_rate(EXAMPLES, rates, 0.1, 0.9)
    with pytest.raises(ConfigError, match="impossible"):
        by_pass_rate(EXAMPLES, rates, 0.9, 0.1)


def test_bands_to_repeat_include_their_lower_end_only():
    rates = {"a": 0.0, "b": 0.2, "c": 0.8, "d": 1.0}
    repeated = by_repetition(EXAMPLES, rates, [(0.0, 0.2, 3), (0.2, 0.8, 2)])
    assert [e.id for e in repeated] == ["a", "a", "a", "b", "b"]
    with pytest.raises(DataError, match="none that ends there"):
        by_repetition(EXAMPLES, dict.fromkeys("abcd", 0.8), [(0.0, 0.8, 2)])


VERIFIER = ExactVerifier(ExactVerifier.Options(marker="#", numeric=True))


def golds(*values) -> list[Example]:
    return [Example(f"row-{i}", (Message("user", f"q{i}"),), value) for i, value in enumerate(values)]


def verify(requests: list[VerifyRequest]) -> list[Verdict]:
    return [VERIFIER.verify(request) for request in requests]


def test_golds_that_verify_are_kept():
    examples = golds("43", "11.5", "-2")
    assert check_golds(examples, verify, VERIFIER.gold_response, "stop") == (examples, [], [])


def test_an_unreadable_gold_stops_with_its_id_and_the_reason():
    with pytest.raises(DataError) as caught:
        check_golds(golds("43", "forty", "2"), verify, VERIFIER.gold_response, "stop")
    message = str(caught.value)
    assert all(part in message for part in ("1 of 3", "row-1: bad_gold", "forty", "every reward", "on_bad_gold=skip"))
    assert "row-0" not in message


def test_skip_leaves_bad_golds_out_and_reports_their_verdicts():
    kept, bad, _ = check_golds(golds("43", "forty", "2"), verify, VERIFIER.gold_response, "skip")
    assert [e.id for e in kept] == ["row-0", "row-2"]
    assert [(name, verdict.status) for name, verdict in bad] == [("row-1", Status.BAD_GOLD)]


def test_a_gold_that_reads_but_does_not_equal_itself_is_bad_too():
    def always_one(gold, meta) -> str:
        return "#1"

    _, bad, _ = check_golds(golds("1", "2"), verify, always_one, "skip")
    assert [(name, verdict.status) for name, verdict in bad] == [("row-1", Status.WRONG)]


def test_at_most_ten_bad_golds_are_listed_and_skipping_all_stops():
    with pytest.raises(DataError) as caught:
        check_golds(golds(*["x"] * 13), verify, VERIFIER.gold_response, "skip")
    assert str(caught.value).count("bad_gold (") == 10
    assert "and 3 more" in str(caught.value)


def test_a_gold_without_a_reference_is_kept_and_named():
    def some(gold, meta) -> str:
        if gold == "43":
            raise NoReference("none")
        return VERIFIER.gold_response(gold, meta)

    kept, bad, unchecked = check_golds(golds("43", "forty", "2"), verify, some, "skip")
    assert ([e.id for e in kept], [name for name, _ in bad], unchecked) == (["row-0", "row-2"], ["row-1"], ["row-0"])
    assert [e.id for e in check_golds(golds("43", "43"), verify, some, "stop")[0]] == ["row-0", "row-1"]


def test_a_verifier_that_gives_too_few_verdicts_is_broken():
    with pytest.raises(VerifierError, match="asked 2 times"):
        check_golds(golds("1", "2"), lambda requests: verify(requests[:1]), VERIFIER.gold_response, "stop")


def test_only_a_bad_gold_is_a_bad_gold():
    def broken(gold, meta) -> str:
        raise KeyError("a bug of the verifier")

    def unreadable(gold, meta) -> str:
        raise BadGold("no")

    with pytest.raises(KeyError):
        check_golds(golds("1"), verify, broken, "skip")
    with pytest.raises(DataError, match=r"bad_gold \(no\)"):
        check_golds(golds("1"), verify, unreadable, "skip")
