"""The oracle: right as often as it is told to be, whatever the order."""

import random

import pytest

from prm.judge.base import JUDGES, JudgeReply, JudgeRequest, ReplyStatus, build_judge
from prm.judge.oracle import MALFORMED_TEXT, OracleJudge, err_yes_no
from prm.judge.parsing import parse_score, parse_yes_no
from verifiers.errors import ConfigError

N = 4000


def request(i, **fields):
    return JudgeRequest(f"r{i}", [{"role": "user", "content": f"{i}"}], **fields)


def truth(request):
    return "Final Judgment: " + ("Yes" if int(request.id[1:]) % 2 else "No")


def judge(seed=0, **rates):
    return OracleJudge(OracleJudge.Options(**rates), truth, seed=seed)


def test_without_errors_it_says_the_truth():
    assert [parse_yes_no(r.text) for r in judge().ask([request(i) for i in range(4)])] == [False, True, False, True]


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_it_errs_at_its_rate_in_both_directions(rate):
    replies = judge(error_rate=rate).ask([request(i) for i in range(N)])
    wrong = [parse_yes_no(r.text) != bool(i % 2) for i, r in enumerate(replies)]
    for half in (wrong[0::2], wrong[1::2]):
        assert abs(sum(half) / len(half) - rate) < 4 * (rate * (1 - rate) / len(half)) ** 0.5


def test_an_error_rate_of_one_is_always_wrong():
    assert [parse_yes_no(r.text) for r in judge(error_rate=1.0).ask([request(1), request(2)])] == [False, True]


def test_failures_are_texts_without_a_judgment():
    replies = judge(failure_rate=0.25).ask([request(i) for i in range(N)])
    failed = [r for r in replies if r.text == MALFORMED_TEXT]
    assert abs(len(failed) / N - 0.25) < 0.03
    assert parse_yes_no(MALFORMED_TEXT) is parse_score(MALFORMED_TEXT, 10) is None


def test_order_and_company_do_not_matter_and_seed_id_and_sample_do():
    rates = {"error_rate": 0.5, "failure_rate": 0.2}
    together = [r.text for r in judge(**rates).ask([request(i) for i in range(50)])]
    backwards = [r.text for r in judge(**rates).ask([request(i) for i in reversed(range(50))])][::-1]
    assert together == backwards == [judge(**rates).ask([request(i)])[0].text for i in range(50)]
    assert together != [r.text for r in judge(seed=1, **rates).ask([request(i) for i in range(50)])]
    assert together != [r.text for r in judge(**rates).ask([request(i, sample=1) for i in range(50)])]


def test_the_request_may_bring_its_truth_and_its_way_to_err():
    def every_digit(text, error_rate, rng):
        return "".join(str(1 - int(c)) if rng.random() < error_rate else c for c in text)

    meta = {"oracle": "0101" * 500, "oracle_err": every_digit}
    said = judge(error_rate=0.2).ask([request(1, meta=meta)])[0].text
    assert 0.15 < sum(a != b for a, b in zip(said, meta["oracle"], strict=True)) / 2000 < 0.25
    assert judge().ask([request(1, meta={"oracle": lambda r: r.id})])[0].text == "r1"


def test_an_unknown_truth_is_no_reply():
    for one in (OracleJudge(OracleJudge.Options()), OracleJudge(OracleJudge.Options(), lambda r: None)):
        reply = one.ask([request(1)])[0]
        assert (reply.text, reply.status) == (None, ReplyStatus.NO_ORACLE)


def test_only_the_last_word_of_a_truth_is_turned():
    assert err_yes_no("Yes or not, Final Judgment: NO.", 1.0, random.Random(0)) == "Yes or not, Final Judgment: Yes."
    assert err_yes_no("nothing of the kind", 1.0, random.Random(0)) == "nothing of the kind"


# ---- the protocol ------------------------------------------------------


def test_a_reply_has_a_text_exactly_if_it_is_ok():
    for text, status in ((None, ReplyStatus.OK), ("Yes", ReplyStatus.TIMEOUT)):
        with pytest.raises(ValueError, match="exactly if"):
            JudgeReply(text, status)


def test_judges_are_found_by_name_and_mistakes_name_the_key():
    assert set(JUDGES.names()) >= {"openai", "local", "oracle"}
    with pytest.raises(ConfigError, match="did you mean 'oracle'"):
        build_judge({"kind": "orakle"}, None)
    with pytest.raises(ConfigError, match=r"unknown key 'judge\.rate'"):
        build_judge({"kind": "oracle", "rate": 0.5}, None)
    with pytest.raises(ConfigError, match="needs a kind"):
        build_judge({}, None)
