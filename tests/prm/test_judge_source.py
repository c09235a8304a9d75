"""A judge's word as the outcome: 1, 0 or not judged, and never a reward out of a failure."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from data.example import Example, Message
from prm.judge.base import Judge, JudgeReply, ReplyStatus
from prm.judge.outcome import JudgeSource, agreement
from prm.signal import SOURCES, Signal
from rollout.trajectory import Finish
from rollout.world import World
from tests.helpers import CPU, tokenizer, trajectory
from tests.prm.test_judge_openai import BAD, SLOW, ServerProcess
from verifiers import Runner
from verifiers.errors import ConfigError
from verifiers.options import Options, parse_options


class Scripted(Judge):
    """Says what it is told: for each request the next of `script`, a text or a status."""

    class Options(Options):
        script: list[str]

    def __init__(self, options):
        self.script, self.asked, self.spent = iter(options.script), [], 0

    @classmethod
    def from_context(cls, options, context):
        return cls(options)

    def ask(self, requests):
        self.asked += requests
        said = [next(self.script) for _ in requests]
        failures = {str(s) for s in ReplyStatus}
        return [JudgeReply(None, ReplyStatus(s)) if s in failures else JudgeReply(s, ReplyStatus.OK) for s in said]

    def state_dict(self):
        return {"spent": len(self.asked) + self.spent}

    def load_state_dict(self, state):
        self.spent = state["spent"]


def example(gold="7", name="q", question="3+4?"):
    return Example(name, (Message("user", question),), gold=gold)


def responses(*texts):
    return [trajectory([1], [2], text=text, sample=i) for i, text in enumerate(texts)]


@pytest.fixture
def runner():
    with Runner("exact", {}) as runner:
        yield runner


@pytest.fixture
def source(runner):
    made = []

    def make(*script, judge=None, **options):
        part = judge or {"kind": "tests.prm.test_judge_source:Scripted", "script": list(script)}
        context = SimpleNamespace(runner=runner, tokenizer=tokenizer(), device=CPU, seed=0, world=World())
        made.append(JudgeSource(parse_options(JudgeSource.Options, {"judge": part, **options}), context))
        return made[-1]

    yield make
    for one in made:
        one.close()


def outcomes(signal):
    return [None if math.isnan(v) else round(v, 6) for v in signal.outcome_N.tolist()]


def score(source, *texts, **fields):
    return source.score(responses(*texts), [example(**fields)] * len(texts))


def test_yes_is_one_and_no_is_zero(source):
    signal = score(source("Final Judgment: Yes", "Final Judgment: No"), "7", "8")
    assert outcomes(signal) == [1.0, 0.0]
    assert signal.outcome_N.dtype == torch.float32
    assert [j.word for j in signal.labels["judgement"]] == ["yes", "no"]
    assert signal.token_reward is None


def test_graded_is_the_share_of_the_highest_score(source):
    s = source("Final Score: 3", "Final Score: 4/4", "Final Score: 5", form="graded", max_score=4, unparsable_retries=0)
    assert outcomes(score(s, "a", "b", "c")) == [0.75, 1.0, None]


@pytest.mark.parametrize("status", [s for s in ReplyStatus if s is not ReplyStatus.OK])
def test_no_failure_is_a_reward_and_each_is_counted_by_its_cause(source, status):
    signal = score(source(status, "Yes", unparsable_retries=0), "7", "8")
    assert outcomes(signal) == [None, 1.0]
    assert signal.metrics[f"failed/{status}_share"] == 0.5
    assert signal.metrics["unjudged_share"] == 0.5
    assert sum(v for k, v in signal.metrics.items() if k.startswith("failed/")) == 0.5


def test_what_cannot_be_read_is_asked_again_as_another_sample_and_then_given_up(source):
    s = source("hm", "Yes", "hm", "truncated", "No", "hm", temperature=0.0)
    signal = score(s, "a", "b", "c")  # asks a, b, c; then a, c; then a
    assert outcomes(signal) == [None, 1.0, 0.0]
    assert [j.asks for j in signal.labels["judgement"]] == [3, 1, 2]
    assert signal.metrics["failed/unparsable_share"] == pytest.approx(1 / 3)
    assert [r.sample for r in s.judge.asked] == [0, 0, 0, 1, 1, 2]
    assert [r.temperature for r in s.judge.asked] == [0.0] * 3 + [0.7] * 3


def test_a_judge_that_failed_otherwise_is_not_asked_again(source):
    s = source("timeout")
    score(s, "a")
    assert len(s.judge.asked) == 1


def test_what_a_judge_thinks_aloud_is_not_its_judgement(source):
    s = source("<think>No no No</think> Yes", "<think>Final Judgment: Yes", unparsable_retries=0)
    assert outcomes(score(s, "a", "b")) == [1.0, None]


def test_the_judge_sees_question_reference_and_the_response_without_its_thinking(source):
    s = source("Yes", "Yes")
    score(s, "<think>secret</think>the response", gold="the gold", question="the question")
    content = s.judge.asked[0].messages[0]["content"]
    assert all(part in content for part in ("the question", "the gold", "the response"))
    assert "secret" not in content
    kept = source("Yes", thinking="keep", prompt="only {response}")
    score(kept, "<think>x</think>y")
    assert kept.judge.asked[0].messages == [{"role": "user", "content": "only <think>x</think>y"}]


def test_what_the_policy_did_costs_it_reward_without_asking(source):
    s = source("Yes")
    cut = trajectory([1], [2], text="7", finish=Finish.LENGTH)
    signal = s.score([cut, *responses("<think>for ever", "  ", "7")], [example()] * 4)
    assert outcomes(signal) == [0.0, 0.0, 0.0, 1.0]
    assert [j.word for j in signal.labels["judgement"]] == ["truncated_response", "no_answer", "no_answer", "yes"]
    assert signal.metrics["unasked_share"] == 0.75
    assert outcomes(source("Yes", truncated="judge").score([cut], [example()])) == [1.0]


def test_of_a_long_response_the_judge_sees_the_end(source):
    s = source("Yes", prompt="{response}", max_response_chars=5)
    score(s, "0123456789")
    assert s.judge.asked[0].messages[0]["content"] == "56789"


# ---- beside the verifier -----------------------------------------------


def test_the_agreement_with_the_verifier_is_logged_and_changes_no_outcome(source):
    s = source("Yes", "Yes", "No", "timeout", compare_with_rule=True)
    signal = score(s, "7", "8", "7", "7")
    assert outcomes(signal) == [1.0, 1.0, 0.0, None]
    assert signal.metrics["rule_agreement"] == pytest.approx(1 / 3)
    assert signal.metrics["accepts_what_rule_rejects_share"] == pytest.approx(1 / 3)
    assert signal.metrics["rejects_what_rule_accepts_share"] == pytest.approx(1 / 3)
    assert [v.score for v in signal.labels["judge_rule_verdict"]] == [1.0, 0.0, 1.0, 1.0]
    assert "rule_agreement" not in score(source("Yes"), "7").metrics


def test_agreement_of_nothing_is_nothing():
    assert agreement([None, 1.0], [1.0, None]) == {}


def test_an_oracle_takes_the_verifier_as_the_truth(source):
    assert outcomes(score(source(judge={"kind": "oracle"}), "7", "8")) == [1.0, 0.0]
    wrong = {"kind": "oracle", "error_rate": 1.0}
    assert outcomes(score(source(judge=wrong), "7", "8")) == [0.0, 1.0]
    assert outcomes(score(source(judge=wrong, form="graded"), "7", "8")) == [0.0, 1.0]
    assert outcomes(score(source(judge={"kind": "oracle"}), "7", gold={"not": "a gold"})) == [None]
    silent = {"kind": "oracle", "failure_rate": 1.0}
    assert outcomes(score(source(judge=silent), "7", "8")) == [None, None]


def test_agreement_with_an_oracle_that_errs_is_one_minus_its_rate(source):
    s = source(judge={"kind": "oracle", "error_rate": 0.3}, compare_with_rule=True)
    texts = ["7", "8"] * 250
    assert abs(score(s, *texts).metrics["rule_agreement"] - 0.7) < 0.07


# ---- a real server -----------------------------------------------------


def test_a_server_that_fails_in_every_way_gives_no_reward_at_all(source):
    server = ServerProcess()
    part = {"kind": "openai", "base_url": server.url + "/v1", "model": "m", "timeout_s": 30.0, "backoff_s": 0.01,
            "max_attempts": 2, "max_concurrency": 32}  # fmt: skip
    try:
        s = source(judge=part, prompt="{response}", unparsable_retries=1, max_response_chars=200_000)
        signal = score(s, *BAD, "say Final Judgment: Yes", "say gibberish", "draft Final Judgment: No")
        late = score(source(judge=part | {"timeout_s": 0.3, "max_attempts": 1}, prompt="{response}"), *SLOW)
    finally:
        server.stop()
    assert outcomes(signal) == [None] * len(BAD) + [1.0, None, 0.0]
    assert outcomes(late) == [None] * len(SLOW)
    assert late.metrics["failed/timeout_share"] == 1.0
    causes = {k.removeprefix("failed/"): v * len(signal.outcome_N) for k, v in signal.metrics.items() if "/" in k}
    expected = {f"{s}_share": sum(status is s for status, _ in BAD.values()) for s in ReplyStatus if s != "ok"}
    assert causes == pytest.approx(expected | {"unparsable_share": 1})


def test_a_used_up_budget_is_not_judged_and_its_state_is_resumed(source):
    server = ServerProcess()
    part = {"kind": "openai", "base_url": server.url + "/v1", "model": "m", "max_calls": 3, "max_concurrency": 1}
    try:
        first = source(judge=part, prompt="{response}")
        signal = score(first, "say Yes", "say No", "say Yes")
        assert outcomes(signal) == [1.0, 0.0, 1.0]
        assert signal.metrics["tokens_per_trajectory"] == 10.0  # 15 a reply, and the third was the first
        assert signal.metrics["cached_per_trajectory"] == pytest.approx(1 / 3)
        second = source(judge=part, prompt="{response}")
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        signal = score(second, "say Yes 1", "say Yes 2")
        assert outcomes(signal) == [1.0, None]
        assert signal.metrics["failed/refused_budget_share"] == 0.5
    finally:
        server.stop()


# ---- as a source -------------------------------------------------------


def test_groups_started_apart_are_the_groups_scored_together(source):
    texts = ["7", "8", "9", "7"]
    judge = {"kind": "oracle", "error_rate": 0.5}
    together = score(source(judge=judge), *texts)
    s, answers = source(judge=judge), responses(*texts)
    parts = [s.start(answers[i : i + 2], [example()] * 2) for i in (0, 2)]
    apart = Signal.concat([part() for part in parts])
    assert apart.outcome_N.tolist() == together.outcome_N.tolist()
    assert apart.metrics == pytest.approx(together.metrics)


def test_it_is_registered_and_keeps_the_judges_state(source):
    assert SOURCES.get("judge") is JudgeSource
    s = source("Yes")
    score(s, "7")
    again = source()
    again.load_state_dict(s.state_dict())
    assert again.state_dict() == {"judge": {"spent": 1}} == s.state_dict()
    assert s.learn(None, None) == {}


def test_nothing_to_judge_gives_nothing(source):
    assert source().score([], []).outcome_N.shape == (0,)


@pytest.mark.parametrize(("options", "message"), [
    ({"judge": {"kind": "nobody"}}, "Unknown judge 'nobody'"), ({"prompt": "is it right?"}, "must contain {response}"),
    ({"form": "stars"}, "form"), ({}, "missing key 'judge'"),
])  # fmt: skip
def test_wrong_options_are_refused(options, message):
    values = options if not options or "judge" in options else {"judge": {"kind": "oracle"}, **options}
    with pytest.raises(ConfigError, match=message):
        parse_options(JudgeSource.Options, values)
