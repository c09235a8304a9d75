"""The pieces of the loop that decide what is trained on, and with which advantage."""

import math
from types import SimpleNamespace

import pytest
import torch

from data.example import Example, Message
from prm.signal import Signal
from rollout.trajectory import Finish
from tests import helpers
from tests.helpers import make_config, trajectory
from trainer.advantages.base import ADVANTAGES
from trainer.advantages.grpo import GrpoOptions
from trainer.collect import Rollouts, first_groups, informative_groups, total_outcome
from trainer.loop import check_faults, due, step_metrics, trajectory_rows
from verifiers.errors import RunError
from verifiers.verdict import Status, Verdict

NAN = math.nan


def in_groups(*groups, lengths=None, finish=None):
    lengths = lengths or [2] * len(groups)
    ends = finish or [Finish.STOP] * len(groups)
    return [
        trajectory([5, 6], [7] * n, g, s, finish=f)
        for s, (g, n, f) in enumerate(zip(groups, lengths, ends, strict=True))
    ]


# ---- outcomes ----------------------------------------------------


def test_the_total_outcome_is_the_weighted_sum():
    signals = [Signal(torch.tensor([1.0, 0.0, 0.5])), Signal(torch.tensor([0.0, 1.0, 1.0]))]
    assert total_outcome(signals, [1.0, -0.5]).tolist() == [1.0, -0.5, 0.0]


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.0, 1.0]])
def test_one_source_that_could_not_judge_makes_the_total_unknown_even_at_weight_zero(weights):
    signals = [Signal(torch.tensor([NAN, 0.0])), Signal(torch.tensor([1.0, 1.0]))]
    assert torch.isnan(total_outcome(signals, weights)).tolist() == [True, False]


# ---- which groups ------------------------------------------------


def test_groups_of_equal_rewards_are_dropped_and_counted():
    trajectories = in_groups(0, 0, 1, 1, 2, 2)
    reward = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    assert informative_groups(trajectories, reward, True) == ([[0, 1]], 2)
    assert informative_groups(trajectories, reward, False) == ([[0, 1], [2, 3], [4, 5]], 2)


def test_an_unjudged_trajectory_leaves_its_group_and_the_rest_stays():
    trajectories = in_groups(0, 0, 0, 1, 1, 2, 2)
    reward = torch.tensor([1.0, NAN, 0.0, NAN, 1.0, NAN, NAN])
    assert informative_groups(trajectories, reward, True) == ([[0, 2]], 1)  # group 1 has one left: nothing to compare
    assert informative_groups(trajectories, reward, False) == ([[0, 2], [4]], 1)


def test_a_group_is_judged_by_its_own_rewards_wherever_its_samples_stand():
    trajectories = in_groups(3, 1, 3, 1)
    assert informative_groups(trajectories, torch.tensor([1.0, 0.5, 0.0, 0.5]), True) == ([[0, 2]], 1)


def test_no_more_groups_are_kept_than_asked_for_and_the_first_ones():
    trajectories = in_groups(0, 0, 4, 4, 2, 2)
    assert first_groups(trajectories, [0, 1, 2, 3, 4, 5], 2) == [0, 1, 2, 3]
    assert first_groups(trajectories, [2, 3, 5], 2) == [2, 3, 5]
    assert first_groups(trajectories, [], 2) == []


@pytest.mark.parametrize(
    ("every", "step", "expected"), [(None, 5, False), (None, 10, True), (5, 5, True), (5, 6, False), (3, 10, True)]
)
def test_what_is_scheduled_happens_on_its_steps_and_at_the_end(every, step, expected):
    assert due(every, step, 10) is expected


# ---- advantages --------------------------------------------------


def rollouts(trajectories, reward, signals=None, kept=None):
    n = len(trajectories)
    examples = [Example(f"q{t.group}", (Message("user", "?"),), gold="1") for t in trajectories]
    signals = signals or [Signal(torch.tensor(reward))]
    return Rollouts(trajectories, examples, signals, torch.tensor(reward), list(range(n)) if kept is None else kept, 0,
                    len({t.group for t in trajectories}), 0)  # fmt: skip


def session(overrides=None):
    return SimpleNamespace(config=make_config(overrides), advantage=ADVANTAGES.get("grpo"), shapings=[], critic=None,
                           advantage_options=GrpoOptions(normalize_std=False))  # fmt: skip


def weigh(session, rollouts):
    return helpers.weigh(session, rollouts)[0]


def per_trajectory(batch):
    return [a.tolist() for a in batch.advantages]


def test_each_kept_trajectory_gets_its_advantage_on_every_token():
    r = rollouts(in_groups(0, 0, 1, 1, lengths=[1, 3, 2, 2]), [1.0, 0.0, 0.0, 1.0], kept=[0, 1, 3])
    batch = weigh(session(), r)
    assert [t.sample for t in batch.trajectories] == [0, 1, 3]
    assert per_trajectory(batch) == [[0.5], [-0.5] * 3, [1.0, 1.0]]  # the last one is alone in its group
    assert batch.included_N.tolist() == [True] * 3


def test_masked_overlong_responses_count_in_the_statistics_but_not_in_the_loss():
    ends = [Finish.STOP, Finish.LENGTH, Finish.STOP, Finish.STOP]
    r = rollouts(in_groups(0, 0, 0, 0, finish=ends), [1.0, 0.0, 1.0, 0.0])
    batch = weigh(session({"objective.overlong": {"kind": "mask"}}), r)
    assert batch.included_N.tolist() == [True, False, True, True]
    assert per_trajectory(batch) == [[0.5] * 2, [-0.5] * 2, [0.5] * 2, [-0.5] * 2]


def test_the_soft_length_penalty_goes_into_the_reward_before_the_statistics():
    """Limit 16, buffer 8: lengths 8, 12 and 16 cost 0, a half and the whole penalty."""
    r = rollouts(in_groups(0, 0, 0, lengths=[8, 12, 16]), [1.0, 1.0, 1.0])
    batch = weigh(session({"objective.overlong": {"kind": "soft", "buffer_tokens": 8, "penalty": 1.0}}), r)
    assert [a[0] for a in per_trajectory(batch)] == pytest.approx([0.5, 0.0, -0.5])
    assert batch.included_N.tolist() == [True] * 3
    assert r.reward_N.tolist() == [1.0, 1.0, 1.0]  # the record keeps the outcome


def test_token_weights_of_every_source_multiply_the_advantage():
    weights = [torch.tensor([1.0, 0.0]), torch.tensor([0.5, 2.0])]
    signals = [Signal(torch.tensor([1.0, 0.0]), token_weight=weights), Signal(torch.tensor([0.0, 0.0]))]
    two = session({"sources": [{"kind": "rule"}, {"kind": "rule"}]})
    batch = weigh(two, rollouts(in_groups(0, 0), [1.0, 0.0], signals))
    assert per_trajectory(batch) == [[0.5, 0.0], [-0.25, -1.0]]


def test_dense_rewards_reach_the_estimator_weighted_and_summed_for_the_kept_only():
    seen = []

    def spy(inputs, options):
        seen.append(inputs)
        return torch.zeros(int(inputs.length_N.sum()))

    dense = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])]
    signals = [Signal(torch.zeros(3), token_reward=dense), Signal(torch.zeros(3), token_reward=dense)]
    s = session({"sources": [{"kind": "rule"}, {"kind": "rule", "weight": 0.5}]})
    s.advantage = SimpleNamespace(compute=spy, needs=(), uses_token_reward=True)
    weigh(s, rollouts(in_groups(0, 0, 0), [1.0, 0.0, 0.0], signals, kept=[0, 2]))
    assert seen[0].token_reward_R.tolist() == [1.5, 3.0, 7.5, 9.0]
    assert seen[0].length_N.tolist() == [2, 2]


def test_nothing_kept_is_an_empty_batch():
    batch = weigh(session(), rollouts(in_groups(0, 0), [1.0, 1.0], kept=[]))
    assert (batch.trajectories, batch.advantages) == ([], [])


# ---- records and alarms ------------------------------------------


def test_a_row_holds_what_the_sources_said_about_a_trained_trajectory():
    r = rollouts(in_groups(0, 0, 0), [1.0, 0.0, 0.0], kept=[0, 2])
    weights = [torch.tensor([0.25, 1 / 3]), torch.tensor([1.0, 0.0])]
    signal = Signal(torch.zeros(2), token_weight=weights, labels={"why": ["a", "b"], "verdict": [1, 2]})
    rows = trajectory_rows(r, weigh(session(), r), {"judge": signal, "rule": Signal.silent(2)})
    assert [row["sources"] for row in rows] == [
        {"judge": {"why": "a", "token_weight": [0.25, 0.333333]}},
        {},
        {"judge": {"why": "b", "token_weight": [1.0, 0.0]}},
    ]


def judged(*statuses):
    return [Verdict(None if s is Status.VERIFIER_FAULT else float(s is Status.CORRECT), s, "why") for s in statuses]


def with_verdicts(statuses, kept=None):
    verdicts = judged(*statuses)
    reward = [NAN if v.score is None else v.score for v in verdicts]
    signal = Signal(torch.tensor(reward), labels={"verdict": verdicts})
    return rollouts(in_groups(*[i // 2 for i in range(len(verdicts))]), reward, [signal], kept)


def test_metrics_leave_unjudged_trajectories_out_of_the_mean_and_count_them():
    r = with_verdicts([Status.CORRECT, Status.WRONG, Status.VERIFIER_FAULT, Status.CORRECT], kept=[0, 1])
    metrics = step_metrics(r)
    assert metrics["reward/mean"] == pytest.approx(2 / 3)
    assert metrics["rollout/unjudged_share"] == pytest.approx(0.25)
    assert metrics["verdict/verifier_fault"] == 0.25
    assert metrics["reward/accuracy"] == 0.5
    assert metrics["groups/trained"] == 1.0


def test_a_trajectory_row_says_what_was_judged_and_whether_it_was_trained_on():
    r = with_verdicts([Status.CORRECT, Status.WRONG, Status.VERIFIER_FAULT, Status.CORRECT], kept=[0, 1])
    rows = trajectory_rows(r, weigh(session(), r))
    assert [row["trained"] for row in rows] == [True, True, False, False]
    assert [row["reward"] for row in rows] == [1.0, 0.0, None, 1.0]
    assert [row["advantage"] for row in rows] == [[0.5, 0.5], [-0.5, -0.5], None, None]
    assert [row["verdict"]["status"] for row in rows] == ["correct", "wrong", "verifier_fault", "correct"]


def test_too_many_faults_stop_the_run_and_name_an_example():
    r = with_verdicts([Status.CORRECT, Status.WRONG, Status.VERIFIER_FAULT, Status.CORRECT])
    with pytest.raises(RunError, match=r"25\.0%.*alarms\.max_fault_share") as caught:
        check_faults(session(), r)
    assert "q1: verifier_fault (why)" in str(caught.value)
    check_faults(session({"alarms": {"max_fault_share": 0.25}}), r)
