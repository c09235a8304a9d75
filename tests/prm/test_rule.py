"""The rule source: the verifier's score, no reward out of a fault."""

import pytest
import torch

from data.example import Example, Message
from prm.rule import RuleSource
from prm.signal import SOURCES, Kept, Source
from rollout.trajectory import Finish
from tests.helpers import source_context, trajectory
from verifiers import Runner
from verifiers.errors import ConfigError
from verifiers.options import parse_options
from verifiers.verdict import Status, Verdict, VerifyRequest


class Spy(Runner):
    """A real runner that remembers what it was asked."""

    asked: list[VerifyRequest]

    def submit(self, requests):
        self.asked = list(requests)
        return super().submit(requests)


def source(runner, **options):
    return RuleSource(RuleSource.Options(**options), source_context(runner))


def example(gold, name="q"):
    return Example(name, (Message("user", "?"),), gold=gold, meta={"level": 3})


@pytest.fixture
def runner():
    with Spy("exact", {}) as spy:
        yield spy


def test_the_outcome_is_the_verdicts_score_and_the_verdicts_are_labels(runner):
    signal = source(runner).score([trajectory([1], [2], text="7"), trajectory([1], [2], text="8")], [example("7")] * 2)
    assert signal.outcome_N.tolist() == [1.0, 0.0]
    assert signal.outcome_N.dtype == torch.float32
    assert [v.status for v in signal.labels["verdict"]] == [Status.CORRECT, Status.WRONG]
    assert signal.token_reward is None


def test_a_cut_response_is_wrong_without_asking_and_the_others_keep_their_places(runner):
    cut, whole = trajectory([1], [2], text="7", finish=Finish.LENGTH), trajectory([1], [2], text="7")
    signal = source(runner).score([cut, whole, cut], [example("7")] * 3)
    assert signal.outcome_N.tolist() == [0.0, 1.0, 0.0]
    assert [v.status for v in signal.labels["verdict"]] == [Status.TRUNCATED, Status.CORRECT, Status.TRUNCATED]
    assert len(runner.asked) == 1


def test_a_cut_response_is_judged_when_the_recipe_says_so(runner):
    cut = trajectory([1], [2], text="7", finish=Finish.LENGTH)
    assert source(runner, truncated="judge").score([cut], [example("7")]).outcome_N.tolist() == [1.0]


def test_the_verifier_sees_text_gold_meta_and_id(runner):
    source(runner).score([trajectory([1], [2], text="7")], [example("7", "problem-3")])
    assert runner.asked == [VerifyRequest("7", "7", {"level": 3}, "problem-3")]


def test_a_fault_of_the_verifier_is_no_outcome_rather_than_a_zero():
    class Broken:
        def submit(self, requests):
            return lambda: [Verdict(None, Status.VERIFIER_FAULT, "crashed") for _ in requests]

    signal = source(Broken()).score([trajectory([1], [2], text="7")], [example("7")])
    assert torch.isnan(signal.outcome_N).tolist() == [True]
    assert signal.labels["verdict"][0].is_fault


def test_a_gold_that_cannot_be_read_is_no_outcome(runner):
    signal = source(runner).score([trajectory([1], [2], text="7")], [example({"not": "a gold"})])
    assert torch.isnan(signal.outcome_N).tolist() == [True]


def test_a_started_judgement_is_asked_at_once_and_collected_later(runner):
    finish = source(runner).start([trajectory([1], [2], text="7")], [example("7")])
    assert len(runner.asked) == 1
    assert finish().outcome_N.tolist() == [1.0]


def test_nothing_to_judge_gives_nothing(runner):
    assert source(runner).score([], []).outcome_N.shape == (0,)


def test_the_rule_source_is_registered_stateless_and_does_not_learn(runner):
    s = source(runner)
    assert SOURCES.get("rule") is RuleSource
    assert isinstance(s, Source)
    assert s.state_dict() == {}
    assert s.learn(Kept([], [], torch.zeros(0), [], 0), s.score([], [])) == {}


def test_wrong_options_are_refused():
    with pytest.raises(ConfigError, match=r"sources\.0\.truncated"):
        parse_options(RuleSource.Options, {"truncated": "maybe"}, "sources.0")
