"""KL in loss and reward, the coefficient's controller, importance weights, rejection, the three-policy form."""

import math

import pytest
import torch

from trainer.losses.base import LossInputs
from trainer.losses.ppo_clip import PpoClipOptions, ppo_clip_loss
from trainer.objective import (
    BatchCounts,
    RejectionOptions,
    adapted_kl_coef,
    count_batch,
    importance_weights,
    kl_loss,
    kl_penalty,
    kl_reward,
    mismatch_diagnostics,
    normalised_weights,
    proximal_logp,
    rejection_mask,
    sequence_weights,
)
from verifiers.errors import ConfigError
from verifiers.options import parse_options

SEGMENT = torch.tensor([0, 0, 0, 1, 2, 2])
LOG_RATIO = torch.tensor([0.5, -0.2, 0.9, -1.5, 0.1, 2.0], dtype=torch.float64)


# ---- reduction -----------------------------------------------------


def test_sequence_sum_divides_by_sequences_only():
    length, included = torch.tensor([2, 6, 4, 0]), torch.tensor([True, True, False, True])
    assert sequence_weights(length, included, "sequence_sum", None).tolist() == [1 / 2, 1 / 2, 0, 0]


def test_sequence_sum_is_the_constant_reduction_with_constant_1():
    length, included = torch.tensor([2, 6, 4]), torch.ones(3).bool()
    ours = sequence_weights(length, included, "sequence_sum", None)
    assert torch.equal(ours, sequence_weights(length, included, "constant", 1))


def test_counts_add_up_over_ranks_and_leave_out_what_takes_no_part():
    length, included = torch.tensor([2, 6, 4, 0, 3]), torch.tensor([True, True, False, True, True])
    whole = count_batch(length, included)
    assert whole == BatchCounts(tokens=11, sequences=3)
    assert count_batch(length[:2], included[:2]) + count_batch(length[2:], included[2:]) == whole


@pytest.mark.parametrize("reduce", ["token", "sequence", "sequence_sum"])
def test_a_rank_without_any_trajectory_weighs_by_the_counts_of_the_others(reduce):
    length, included = torch.tensor([4]), torch.tensor([False])
    assert sequence_weights(length, included, reduce, None, BatchCounts(10, 2)).tolist() == [0.0]
    assert sequence_weights(length, ~included, reduce, None, BatchCounts(10, 2))[0] > 0


# ---- KL ------------------------------------------------------------


@pytest.fixture(name="policies")
def _policies():
    """(logits of the policy, log-probs of the reference) over 5 tokens."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=g, dtype=torch.float64)
    return logits, torch.log_softmax(torch.randn(5, generator=g, dtype=torch.float64), -1)


def expected_gradient(policies, estimator, gradient, old_logits=None):
    """The gradient of the KL term's exact expectation under the sampling policy (the old one), its samples fixed."""
    logits, reference = policies
    logits = logits.clone().requires_grad_()
    logp = torch.log_softmax(logits, -1)
    old = logp.detach() if old_logits is None else torch.log_softmax(old_logits, -1)
    (old.exp() * kl_loss(logp, reference, old, estimator, gradient)).sum().backward()
    return logits.grad


def true_gradient(policies, forward=False):
    logits, reference = policies
    logits = logits.clone().requires_grad_()
    logp = torch.log_softmax(logits, -1)
    kl = (reference.exp() * (reference - logp)).sum() if forward else (logp.exp() * (logp - reference)).sum()
    kl.backward()
    return logits.grad


def test_k1_in_the_loss_has_no_expected_gradient(policies):
    assert expected_gradient(policies, "k1", "estimator").abs().max() < 1e-12


def test_k2_in_the_loss_has_the_gradient_of_the_reverse_kl(policies):
    torch.testing.assert_close(expected_gradient(policies, "k2", "estimator"), true_gradient(policies))


def test_k3_in_the_loss_has_the_gradient_of_the_forward_kl(policies):
    torch.testing.assert_close(expected_gradient(policies, "k3", "estimator"), true_gradient(policies, forward=True))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_straight_through_keeps_the_value_and_takes_the_reverse_kls_gradient(policies, estimator):
    logits, reference = policies
    logp = torch.log_softmax(logits, -1)
    assert torch.equal(kl_loss(logp, reference, logp, estimator, "reverse_kl"), kl_penalty(logp, reference, estimator))
    torch.testing.assert_close(expected_gradient(policies, estimator, "reverse_kl"), true_gradient(policies))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("off_policy", [False, True])
def test_times_the_ratio_the_gradient_is_the_reverse_kls_off_policy_too(policies, estimator, off_policy):
    old = torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if off_policy else None
    found = expected_gradient(policies, estimator, "ratio", old)
    torch.testing.assert_close(found, true_gradient(policies))


@pytest.mark.parametrize(("estimator", "slope"), [("k3", lambda d: d), ("k1", lambda d: d + 1)])
def test_times_the_ratio_the_token_gradient_on_policy(estimator, slope):
    d = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64)
    logp = d.clone().requires_grad_()
    kl_loss(logp, torch.zeros(3).double(), d, estimator, "ratio").sum().backward()
    assert logp.grad.tolist() == pytest.approx([slope(x) for x in d.tolist()])


def test_k1_in_the_reward_has_the_gradient_of_the_reverse_kl(policies):
    """REINFORCE on the reward -k1: the other way of the same penalty."""
    logits, reference = policies
    logits = logits.clone().requires_grad_()
    logp = torch.log_softmax(logits, -1)
    reward = kl_reward(logp, reference, coef=1.0)
    assert not reward.requires_grad
    (-(logp.detach().exp() * logp * reward).sum()).backward()
    torch.testing.assert_close(logits.grad, true_gradient(policies))


def test_kl_in_the_reward_is_minus_the_coefficient_times_the_estimate():
    old, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    assert kl_reward(old, reference, 0.1).tolist() == pytest.approx([-0.05, 0.1])
    assert kl_reward(old, reference, 0.1, "k2").tolist() == pytest.approx([-0.0125, -0.05])


@pytest.mark.parametrize(("kl", "factor"), [
    (0.1, 1.0), (0.11, 1 + 0.1 * 512 / 10_000), (1e9, 1 + 0.2 * 512 / 10_000), (0.0, 1 - 0.2 * 512 / 10_000),
    (0.095, 1 - 0.05 * 512 / 10_000),
])  # fmt: skip
def test_the_controller_moves_the_coefficient_towards_the_target_by_a_bounded_step(kl, factor):
    assert adapted_kl_coef(0.001, kl, target=0.1, horizon=10_000, samples=512) == pytest.approx(0.001 * factor)


# ---- importance weights --------------------------------------------


def test_equal_policies_weigh_one():
    for level in ("token", "sequence", "geometric"):
        for outside in ("truncate", "zero"):
            assert importance_weights(torch.zeros(6), SEGMENT, level, outside, cap=2.0).tolist() == [1.0] * 6


def test_weights_at_the_three_levels_by_hand():
    token = importance_weights(LOG_RATIO, SEGMENT, "token", "truncate", cap=2.0)
    assert token.tolist() == pytest.approx([min(math.exp(x), 2.0) for x in LOG_RATIO.tolist()])
    sums = [1.2, 1.2, 1.2, -1.5, 2.1, 2.1]
    sequence = importance_weights(LOG_RATIO, SEGMENT, "sequence", "truncate", cap=2.0)
    assert sequence.tolist() == pytest.approx([min(math.exp(x), 2.0) for x in sums])
    means = [0.4, 0.4, 0.4, -1.5, 1.05, 1.05]
    geometric = importance_weights(LOG_RATIO, SEGMENT, "geometric", "truncate", cap=2.0)
    assert geometric.tolist() == pytest.approx([min(math.exp(x), 2.0) for x in means])


def test_what_is_outside_the_bounds_is_truncated_or_dropped():
    truncated = importance_weights(LOG_RATIO, SEGMENT, "token", "truncate", cap=2.0, floor=0.5)
    dropped = importance_weights(LOG_RATIO, SEGMENT, "token", "zero", cap=2.0, floor=0.5)
    raw = LOG_RATIO.exp()
    assert truncated.tolist() == pytest.approx(raw.clamp(0.5, 2.0).tolist())
    assert dropped.tolist() == pytest.approx([w if 0.5 <= w <= 2 else 0.0 for w in raw.tolist()])


def test_dropping_whole_responses_is_trls_default():
    found = importance_weights(LOG_RATIO, SEGMENT, "sequence", "zero", cap=3.0)
    assert found.tolist() == pytest.approx([0.0] * 3 + [math.exp(-1.5)] + [0.0] * 2)


def test_a_response_counts_with_its_own_tokens():
    mask = torch.tensor([True, True, False, True, True, False])
    found = importance_weights(LOG_RATIO, SEGMENT, "sequence", "truncate", cap=9.0, mask_R=mask)
    assert found.tolist() == pytest.approx([math.exp(0.3)] * 3 + [math.exp(-1.5)] + [math.exp(0.1)] * 2)


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("outside", ["truncate", "zero"])
def test_weights_are_bounded_and_carry_no_gradient(level, outside):
    ratio = torch.tensor([900.0, -900.0, 0.3], requires_grad=True)
    found = importance_weights(ratio, torch.tensor([0, 1, 2]), level, outside, cap=2.0)
    assert not found.requires_grad
    assert bool(((found >= 0) & (found <= 2)).all())


@pytest.mark.parametrize(("level", "own"), [("token", None), ("sequence", None), ("token", [1, 0, 1, 1, 1, 1])])
def test_normalised_weights_have_mean_1_over_what_they_are_normalised_over(level, own):
    weight = importance_weights(LOG_RATIO, SEGMENT, level, "truncate", cap=2.0)
    mask = None if own is None else torch.tensor(own).bool()
    found = normalised_weights(weight, SEGMENT, level, mask)
    values = found if level == "token" else found[[0, 3, 4]]
    chosen = values if mask is None else values[mask]
    assert float(chosen.mean()) == pytest.approx(1.0)


def test_weights_that_are_all_zero_stay_so():
    assert normalised_weights(torch.zeros(6), SEGMENT, "token").tolist() == [0.0] * 6


def test_diagnostics_show_the_gap_that_the_cap_hides():
    found = mismatch_diagnostics(LOG_RATIO)
    assert (
        found["mismatch_ratio"].max() > 7 > 2 == importance_weights(LOG_RATIO, SEGMENT, "token", "truncate", 2.0).max()
    )
    assert found["logprob_gap"].tolist() == LOG_RATIO.abs().tolist()
    assert bool((found["mismatch_kl"] >= 0).all())


def test_the_diagnosed_kl_is_that_of_engine_and_learner():
    g = torch.Generator().manual_seed(0)
    engine, learner = (torch.log_softmax(torch.randn(5, generator=g, dtype=torch.float64), -1) for _ in range(2))
    expectation = (engine.exp() * mismatch_diagnostics(learner - engine)["mismatch_kl"]).sum()
    assert float(expectation) == pytest.approx(float((engine.exp() * (engine - learner)).sum()))


# ---- rejection -----------------------------------------------------


def kept(values, segment=None, mask=None, **options):
    log_ratio = torch.tensor(values, dtype=torch.float64)
    segment = torch.arange(len(values)) if segment is None else torch.tensor(segment)
    mask = None if mask is None else torch.tensor(mask)
    parsed = parse_options(RejectionOptions, options, "objective.rejection")
    return rejection_mask(log_ratio, segment, parsed, mask).tolist()


def test_k1_bounds_are_ratios_of_sampled_to_old():
    values = [math.log(r) for r in (0.4, 0.6, 1.0, 1.9, 2.1)]  # old / sampled
    assert kept(values, level="token", statistic="k1", lower=0.5, upper=2.0) == [False, True, True, True, False]
    assert kept(values, level="token", statistic="k1", lower=0.5, upper=4.0) == [True, True, True, True, False]
    assert kept(values, level="token", statistic="k1", upper=2.0) == [False, True, True, True, False]


@pytest.mark.parametrize(("statistic", "bound"), [("k2", 0.3**2 / 2), ("k3", math.exp(0.3) - 1.3)])
def test_k2_and_k3_reject_in_both_directions(statistic, bound):
    assert kept([0.0, 0.29, 0.31, -0.5], level="token", statistic=statistic, upper=bound) == [True, True, False, False]


def test_a_whole_response_goes_by_its_sum_mean_or_maximum():
    values, segment = [0.1, 0.1, 0.1, 0.25], [0, 0, 0, 1]
    upper = math.exp(0.2)
    assert kept(values, segment, level="sequence_sum", statistic="k1", upper=upper) == [False, False, False, False]
    assert kept(values, segment, level="sequence_mean", statistic="k1", upper=upper) == [True, True, True, False]
    values = [0.0, 0.0, 1.0, 0.5]
    assert kept(values, segment, level="sequence_max", statistic="k2", upper=0.3) == [False, False, False, True]
    assert kept(values, segment, level="sequence_mean", statistic="k2", upper=0.2) == [True, True, True, True]


def test_equal_policies_reject_nothing():
    for level in ("token", "sequence_sum", "sequence_mean"):
        assert all(kept([0.0] * 4, [0, 0, 1, 1], level=level, statistic="k1", upper=1.01))
    for statistic in ("k2", "k3"):
        assert all(kept([0.0] * 4, [0, 0, 1, 1], level="sequence_max", statistic=statistic, upper=1e-9))


def test_tool_tokens_are_never_kept_and_never_the_reason():
    values, mask = [0.0, 9.0, 0.1], [True, False, True]
    for level in ("sequence_sum", "sequence_mean", "sequence_max"):
        assert kept(values, [0, 0, 0], mask, level=level, statistic="k2", upper=0.1) == mask


def test_what_is_rejected_leaves_the_counts():
    """Rejecting is not the same as a weight of 0: the rest weighs more."""
    keep = rejection_mask(LOG_RATIO, SEGMENT, RejectionOptions(level="sequence_max", statistic="k2", upper=1.0))
    length = torch.zeros(3, dtype=torch.long).index_add_(0, SEGMENT, keep.long())
    assert length.tolist() == [3, 0, 0]
    assert sequence_weights(length, torch.ones(3).bool(), "token", None).tolist() == [1 / 3, 0.0, 0.0]


@pytest.mark.parametrize(("options", "match"), [
    ({"level": "token", "statistic": "k2", "upper": 1.0, "lower": 0.5}, "lower is for statistic=k1"),
    ({"level": "sequence_max", "statistic": "k1", "upper": 2.0}, "needs statistic k2 or k3"),
    ({"level": "token", "statistic": "k1", "upper": 0.9}, "keeps nothing"),
    ({"level": "token", "statistic": "k1", "upper": 0.0}, "upper"),
])  # fmt: skip
def test_impossible_rejections_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        parse_options(RejectionOptions, options, "objective.rejection")


# ---- three policies ------------------------------------------------


def surrogate(form, logp, old, sampled, advantage, cap, clip):
    """The loss of the two forms, with the weight that belongs to each."""
    inputs = LossInputs(logp, proximal_logp(old, sampled, form), advantage, torch.zeros(len(logp)).long())
    loss_R, _ = ppo_clip_loss(inputs, PpoClipOptions(clip_low=min(clip, 0.999), clip_high=clip))
    if form == "decoupled":
        loss_R = loss_R * importance_weights(old - sampled, inputs.segment_R, "token", "truncate", cap)
    (gradient,) = torch.autograd.grad(loss_R.sum(), logp)
    return loss_R, gradient


def test_without_clip_and_cap_three_policies_and_two_are_the_same():
    g = torch.Generator().manual_seed(0)
    new, old, sampled, advantage = (0.2 * torch.randn(8, generator=g, dtype=torch.float64) for _ in range(4))
    new.requires_grad_()
    three = surrogate("decoupled", new, old, sampled, advantage, cap=1e9, clip=1e9)
    two = surrogate("bypass", new, old, sampled, advantage, cap=1e9, clip=1e9)
    for a, b in zip(three, two, strict=True):
        torch.testing.assert_close(a, b)


def test_a_gap_between_engine_and_learner_is_clipped_away_by_two_policies_and_weighed_by_three():
    new, old, sampled = torch.tensor([-1.0], requires_grad=True), torch.tensor([-1.0]), torch.tensor([-1.5])
    _, three = surrogate("decoupled", new, old, sampled, torch.ones(1), cap=2.0, clip=0.2)
    _, two = surrogate("bypass", new, old, sampled, torch.ones(1), cap=2.0, clip=0.2)
    assert three.item() == pytest.approx(-math.exp(0.5))
    assert two.item() == 0.0
