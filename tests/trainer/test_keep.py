"""rollout.keep: which groups are trained on, and that the prompts of the surplus ones come first in the next step."""

import pytest

from data.example import Example, Message
from data.sampler import Sampler
from prm.rule import RuleSource
from rollout.trajectory import Finish
from rollout.world import World
from tests.helpers import make_config, make_engine, source_context, tiny_model, trajectory
from trainer.advantages.base import ADVANTAGES
from trainer.collect import collect, in_band, wanted_groups
from trainer.config import KeepConfig, PassRateBand
from trainer.loop import LoopState, step_metrics
from verifiers import Runner
from verifiers.errors import ConfigError
from verifiers.verdict import Status, Verdict

EXAMPLES = [Example(f"q{i}", (Message("user", "1+1"),), gold=str(i)) for i in range(10)]


# ---- the band ------------------------------------------------------


def test_a_rate_on_the_border_belongs_to_the_band_unless_it_is_strict():
    """Five samples: 1/5 and 4/5 are 0.2 and 0.8 in float32. The paper's figure has the strict band, its code the other
    one; with four samples they agree."""
    band = {"low": 0.2, "high": 0.8}
    rates = [[1.0] * n + [0.0] * (5 - n) for n in range(6)]
    assert [in_band(r, PassRateBand(**band)) for r in rates] == [False, True, True, True, True, False]
    assert [in_band(r, PassRateBand(**band, strict=True)) for r in rates] == [False, False, True, True, False, False]
    of_four = [[1.0] * n + [0.0] * (4 - n) for n in range(5)]
    for strict in (False, True):
        found = [in_band(r, PassRateBand(**band, strict=strict)) for r in of_four]
        assert found == [False, True, True, True, False]


def test_soft_scores_count_as_they_are():
    assert in_band([0.3, 0.5], PassRateBand(low=0.4, high=0.4))
    assert not in_band([0.3, 0.5], PassRateBand(low=0.41, high=1.0))


def test_a_cut_response_takes_its_group_along_and_only_judged_samples_count():
    ends = [Finish.STOP, Finish.LENGTH, Finish.STOP, Finish.STOP]
    trajectories = [trajectory([5], [6], i // 2, i % 2, finish=f) for i, f in enumerate(ends)]
    verdicts = [Verdict(float(i % 2), Status.WRONG, "") for i in range(4)]
    groups = [[0, 1], [2, 3]]
    assert wanted_groups(trajectories, verdicts, groups, KeepConfig(drop_truncated=True)) == (
        [[2, 3]],
        {"truncated": 1},
    )
    assert wanted_groups(trajectories, verdicts, groups, KeepConfig()) == (groups, {})
    band = KeepConfig(pass_rate=PassRateBand(low=0.9, high=1.0))
    assert wanted_groups(trajectories, verdicts, [[0, 1], [3]], band) == ([[3]], {"pass_rate": 1})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rollout.keep": {"pass_rate": {"low": 0.8, "high": 0.2}}}, "exceeds high"),
        ({"rollout.keep": {"put_back_surplus": True}}, "does nothing"),
        ({"rollout.keep": {"pass_rate": {"low": 0.0, "high": 1.0}}, "sources": [{"kind": "x:Y"}]}, "needs verdicts"),
        ({"objective.zero_variance": {"drop": False, "max_refills": 1}}, "replaces dropped groups"),
    ],
)
def test_settings_that_do_nothing_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_config(overrides)


def test_refills_may_replace_what_the_band_drops():
    keep = {"pass_rate": {"low": 0.2, "high": 0.8}, "put_back_surplus": True}
    config = make_config({"rollout.keep": keep, "objective.zero_variance": {"drop": False, "max_refills": 1}})
    assert config.rollout.prompts_per_batch == config.rollout.prompts_per_step


# ---- put back ------------------------------------------------------


class Session:
    """As much of one as `collect` needs: everything is kept."""

    def __init__(self, runner, **keep):
        self.config = make_config({
            "rollout": {"prompts_per_step": 2, "samples_per_prompt": 2, "max_response_tokens": 6, "keep": keep},
            "objective.zero_variance": {"drop": False},
        })  # fmt: skip
        self.world = World()
        self.train_examples = EXAMPLES
        self.prepared = self
        self.prompt_ids = {e.id: [5, 6, 7 + i] for i, e in enumerate(EXAMPLES)}
        self.advantage = ADVANTAGES.get("grpo")
        self.engine = make_engine(tiny_model(), max_rows=8)
        self.sources = [RuleSource(RuleSource.Options(truncated="judge"), source_context(runner))]


@pytest.fixture
def runner():
    with Runner("exact", {}) as made:
        yield made


def asked(rollouts):
    return list(dict.fromkeys(t.example_id for t in rollouts.trajectories))


def trained(rollouts):
    return list(dict.fromkeys(rollouts.trajectories[i].example_id for i in rollouts.kept))


def test_surplus_prompts_come_first_in_the_next_step_with_fresh_samples(runner):
    session = Session(runner, oversample=2, put_back_surplus=True)
    state = LoopState(Sampler(len(EXAMPLES), seed=0))
    first = collect(session, state)
    assert len(asked(first)) == 4
    assert trained(first) == asked(first)[:2]
    assert step_metrics(first)["groups/put_back"] == 2
    state.step = 1
    second = collect(session, state)
    assert asked(second)[:2] == asked(first)[2:]
    before = [t.response_ids for t in first.trajectories if t.example_id == asked(first)[2]]
    again = [t.response_ids for t in second.trajectories if t.example_id == asked(first)[2]]
    assert before != again


def test_surplus_prompts_are_lost_to_the_epoch_without_it(runner):
    session = Session(runner, oversample=2)
    state = LoopState(Sampler(len(EXAMPLES), seed=0))
    first, second = collect(session, state), collect(session, state)
    assert not set(asked(first)) & set(asked(second))
    assert "groups/put_back" not in step_metrics(first)


def test_a_step_that_is_thrown_away_gives_back_what_it_took_and_nothing_else(runner):
    """As on SIGTERM: the sampler's state from before the step."""
    session = Session(runner, oversample=2, put_back_surplus=True)
    state = LoopState(Sampler(len(EXAMPLES), seed=0))
    collect(session, state)
    position = state.sampler.state_dict()
    state.step = 1
    expected = asked(collect(session, state))
    state.sampler.load_state_dict(position)
    assert asked(collect(session, state)) == expected
