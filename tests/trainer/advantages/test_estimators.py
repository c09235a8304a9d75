"""Identities of the outcome estimators, and what holds for every estimator: masks, order of the groups, edges."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.advantages.batches import own_only, random_inputs, run, select
from trainer.advantages.base import ADVANTAGES, AdvantageInputs, at_last_token
from trainer.advantages.dr_grpo import DrGrpoOptions
from trainer.advantages.gpg import GpgOptions
from trainer.advantages.grpo import GrpoOptions
from trainer.advantages.opo import OpoOptions
from trainer.advantages.passk_grpo import PasskGrpoOptions, passk_advantage
from trainer.advantages.raft import RaftOptions, raft_advantage
from trainer.advantages.rloo import RlooOptions, rloo_advantage
from verifiers.errors import ConfigError

KINDS = ["dr_grpo", "gae", "gpg", "grpo", "multi_stream", "opo", "oreal", "passk_grpo", "prime_grpo", "prime_rloo",
         "raft", "reinforce_pp", "reinforce_pp_baseline", "remax", "returns_to_go", "rloo", "stable_reinforce",
         "total_return", "tp_grpo"]  # fmt: skip
OF_GROUPS = ["dr_grpo", "grpo", "rloo"]
ROWS = st.lists(st.tuples(st.integers(0, 3), st.floats(-1, 1)), min_size=1, max_size=16)


def test_every_estimator_is_listed_here():
    assert ADVANTAGES.names() == KINDS


def outcome(reward, group=None, lengths=None):
    """One token a trajectory unless lengths are given, so that advantages read like rewards."""
    reward = torch.tensor(reward, dtype=torch.float64)
    group = torch.zeros(len(reward), dtype=torch.long) if group is None else torch.tensor(group)
    lengths = torch.ones(len(reward), dtype=torch.long) if lengths is None else torch.tensor(lengths)
    return AdvantageInputs(reward, group, lengths)


def per_trajectory(values, lengths):
    return list(values.split(lengths.tolist()))


# ---- every estimator -----------------------------------------------


@pytest.mark.invariance
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_trajectories_and_groups_does_not_matter(kind):
    inputs, order = random_inputs(), [4, 0, 6, 2, 5, 3, 1]
    parts = per_trajectory(run(kind, inputs), inputs.length_N)
    torch.testing.assert_close(
        run(kind, select(inputs, order)), torch.cat([parts[i] for i in order]), atol=1e-9, rtol=0
    )


@pytest.mark.invariance
@pytest.mark.parametrize("kind", KINDS)
def test_tool_tokens_get_nothing_and_change_nothing(kind):
    inputs = random_inputs()
    own = inputs.mask_R
    found = run(kind, inputs)
    assert (found[~own] == 0).all()
    torch.testing.assert_close(found[own], run(kind, own_only(inputs)), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trajectory_without_tokens_of_its_own_is_harmless(kind):
    inputs = random_inputs()
    own = inputs.mask_R.clone()
    own[3:8] = False  # all of the second trajectory
    found = run(kind, replace(inputs, mask_R=own))
    assert torch.isfinite(found).all()
    assert (found[3:8] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens_at_all_give_no_advantages(kind):
    inputs = select(random_inputs(), [0])
    inputs = own_only(replace(inputs, mask_R=torch.zeros_like(inputs.mask_R)))
    assert run(kind, inputs).shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_left_as_they_were(kind):
    inputs, again = random_inputs(), random_inputs()
    run(kind, inputs)
    for field in fields(inputs):
        assert torch.equal(getattr(inputs, field.name), getattr(again, field.name))


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_estimator_needs_is_declared_and_asked_for(kind):
    estimator, inputs = ADVANTAGES.get(kind), random_inputs()
    for name in ("value_R", "baseline_N", "stream_RK", "correct_N", "token_label_R"):
        without = replace(inputs, **{name: None})
        if name in estimator.needs:
            with pytest.raises(ConfigError, match=name):
                run(kind, without)
        elif not (kind == "multi_stream" and name == "value_R"):  # optional there
            torch.testing.assert_close(run(kind, without), run(kind, inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_whether_dense_rewards_are_used_is_declared(kind):
    inputs = random_inputs()
    without = replace(inputs, token_reward_R=None)
    same = torch.equal(run(kind, inputs), run(kind, without))
    assert same != ADVANTAGES.get(kind).uses_token_reward


def test_the_outcome_sits_at_the_last_token_of_the_policy_not_at_the_last_token():
    inputs = AdvantageInputs(torch.tensor([7.0, 8.0, 9.0]), torch.arange(3), torch.tensor([3, 2, 1]),
                             mask_R=torch.tensor([True, True, False, False, False, True]))  # fmt: skip
    assert at_last_token(inputs.reward_N, inputs).tolist() == [0.0, 7.0, 0.0, 0.0, 0.0, 9.0]


# ---- identities ----------------------------------------------------


@settings(deadline=None)
@given(ROWS)
def test_rloo_is_dr_grpo_times_n_over_n_minus_1(rows):
    group, reward = [g for g, _ in rows], [r for _, r in rows]
    inputs = outcome(reward, group)
    size = torch.tensor([group.count(g) for g in group], dtype=torch.float64)
    expected = run("dr_grpo", inputs) * torch.where(size > 1, size / (size - 1).clamp(min=1), 1.0)
    torch.testing.assert_close(run("rloo", inputs), expected, atol=1e-12, rtol=1e-9)


def test_rloo_is_the_reward_minus_the_mean_of_the_others():
    reward = [0.3, -1.0, 2.0, 0.5]
    expected = [r - (sum(reward) - r) / 3 for r in reward]
    assert run("rloo", outcome(reward)).tolist() == pytest.approx(expected)


@settings(deadline=None)
@given(ROWS, st.sampled_from(OF_GROUPS))
def test_advantages_of_a_group_sum_to_zero(rows, kind):
    group, reward = [g for g, _ in rows], [r for _, r in rows]
    found = run(kind, outcome(reward, group))
    for g in {g for g in group if group.count(g) > 1}:
        assert abs(float(found[torch.tensor(group) == g].sum())) < 1e-6


def test_a_least_standard_deviation_keeps_hardly_different_rewards_small():
    inputs = outcome([0.500, 0.501, 0.499])
    assert float(run("grpo", inputs).abs().max()) > 0.9
    assert float(run("grpo", inputs, min_std=0.1).abs().max()) == pytest.approx(0.01, rel=1e-3)
    spread = outcome([1.0, 0.0, 1.0])
    torch.testing.assert_close(run("grpo", spread, min_std=0.1), run("grpo", spread))


@pytest.mark.parametrize(("n", "correct"), [(4, 1), (4, 3), (8, 2), (16, 15)])
def test_grpo_of_right_and_wrong_depends_on_the_pass_rate_only(n, correct):
    p = correct / n
    found = run("grpo", outcome([1.0] * correct + [0.0] * (n - correct)), eps=1e-12)
    scale = math.sqrt((n - 1) / n)
    assert found[0].item() == pytest.approx(scale * math.sqrt((1 - p) / p), rel=1e-9)
    assert found[-1].item() == pytest.approx(-scale * math.sqrt(p / (1 - p)), rel=1e-9)


@pytest.mark.parametrize("kind", ["dr_grpo", "grpo", "opo", "passk_grpo", "reinforce_pp_baseline", "rloo",
                                  "stable_reinforce", "gpg"])  # fmt: skip
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_equal_rewards_teach_nothing_and_are_not_nan(kind, value):
    inputs = AdvantageInputs(
        torch.full((6,), value), torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 2, 3, 4, 5, 6])
    )
    assert run(kind, inputs).abs().max() < 1e-6  # float32, where the mean of three 0.1 could be another number


def test_grpo_does_not_see_an_affine_map_of_the_rewards_and_rloo_does_not_see_a_shift():
    reward = torch.tensor([0.1, 0.7, -0.4, 0.9], dtype=torch.float64)
    inputs = outcome(reward.tolist())
    mapped, shifted = replace(inputs, reward_N=3 * reward + 2), replace(inputs, reward_N=reward + 2)
    torch.testing.assert_close(run("grpo", mapped, eps=1e-12), run("grpo", inputs, eps=1e-12))
    torch.testing.assert_close(run("rloo", shifted), run("rloo", inputs))
    torch.testing.assert_close(run("rloo", mapped), 3 * run("rloo", inputs))


def test_dr_grpo_is_grpo_without_the_standard_deviation():
    inputs = random_inputs()
    grpo = ADVANTAGES.get("grpo").compute(inputs, GrpoOptions(normalize_std=False))
    assert torch.equal(ADVANTAGES.get("dr_grpo").compute(inputs, DrGrpoOptions()), grpo)


@pytest.mark.parametrize(("kind", "expected"), [("grpo", 0.75), ("dr_grpo", 0.75), ("rloo", 0.75), ("opo", 0.75),
                                                ("gpg", 0.75), ("passk_grpo", 0.0), ("raft", 0.75),
                                                ("reinforce_pp_baseline", 0.0)])  # fmt: skip
def test_a_group_of_one(kind, expected):
    assert run(kind, outcome([0.75])).item() == pytest.approx(expected, abs=1e-5)


def test_rloo_can_give_a_group_of_one_nothing():
    zero = rloo_advantage(torch.tensor([0.75]), torch.tensor([3]), RlooOptions(singleton="zero"))
    assert zero.tolist() == [0.0]


def test_opo_weighs_the_baseline_by_length():
    inputs = outcome([1.0, 0.0], lengths=[1, 3])
    found = ADVANTAGES.get("opo").compute(inputs, OpoOptions())
    assert found.tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])
    same = outcome([1.0, 0.0, 0.5], lengths=[2, 2, 2])
    torch.testing.assert_close(run("opo", same), run("dr_grpo", same))


def test_gpg_scales_up_for_what_teaches_nothing():
    inputs = outcome([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1, 2, 2])
    verl = ADVANTAGES.get("gpg").compute(inputs, GpgOptions(f_norm=2.0))
    assert verl.tolist() == pytest.approx([6 / 3 * 0.5 / 2, -6 / 3 * 0.5 / 2, 0, 0, 0, 0])
    paper = ADVANTAGES.get("gpg").compute(inputs, GpgOptions(scale="informative_groups"))
    assert paper.tolist() == pytest.approx([6 / 2 * 0.5, -6 / 2 * 0.5, 0, 0, 0, 0])


def test_gpg_without_any_reward_is_zero():
    for scale in ("nonzero_rewards", "informative_groups"):
        assert run("gpg", outcome([0.0, 0.0]), scale=scale).tolist() == [0.0, 0.0]


def test_passk_rewards_the_lead_of_the_best_and_nothing_in_a_tie():
    reward, group = torch.tensor([0.2, 0.9, 0.5, 1.0, 1.0]), torch.tensor([0, 0, 0, 1, 1])
    found = passk_advantage(reward, group, PasskGrpoOptions(normalize_std=False))
    assert found.tolist() == pytest.approx([0.0, 0.4, 0.0, 0.0, 0.0])


# ---- rejection -----------------------------------------------------


def test_raft_keeps_all_of_an_all_correct_group_and_nothing_of_an_all_wrong_batch():
    right, wrong = outcome([1.0, 1.0]), outcome([-1.0, -1.0])
    assert run("raft", right).tolist() == [1.0, 1.0]
    assert run("raft", wrong).tolist() == [0.0, 0.0]
    assert run("raft", right, select="mixed_groups").tolist() == [0.0, 0.0] == run("grpo", right).tolist()


def test_raft_best_keeps_the_first_of_the_best():
    reward, group = torch.tensor([0.2, 0.9, 0.9, -3.0]), torch.tensor([0, 0, 0, 1])
    assert raft_advantage(reward, group, RaftOptions(select="best")).tolist() == [0.0, 1.0, 0.0, 1.0]


def test_reinforce_rej_of_rewards_0_and_1_with_a_baseline():
    found = run("raft", outcome([1.0, 0.0, 1.0], [0, 0, 1]), select="mixed_groups", baseline=0.5)
    assert found.tolist() == [0.5, -0.5, 0.0]
