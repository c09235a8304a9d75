"""Every policy loss, the value loss, rejection and weights against vectors recorded from their references."""

import pytest
import torch

from tests.golden.vectors import CLOSE, each, flat, layout, loss_inputs, record, reduced
from trainer.losses.base import LOSSES, LossInputs, sequence_mean
from trainer.losses.ppo_clip import PpoClipOptions
from trainer.losses.value import ValueLossOptions, value_loss
from trainer.objective import (
    RejectionOptions,
    importance_weights,
    kl_penalty,
    normalised_weights,
    rejection_mask,
)
from verifiers.options import parse_options

pytestmark = pytest.mark.golden


def loss(kind, inputs, **options):
    entry = LOSSES.get(kind)
    return entry.compute(inputs, parse_options(entry.options, options))


def bounds(i):
    return {"clip_low": i["config"]["clip_ratio_low"], "clip_high": i["config"]["clip_ratio_high"]}


def ratio_bounds(i):
    return {"min_ratio": 1 - i["config"]["clip_ratio_low"], "max_ratio": 1 + i["config"]["clip_ratio_high"]}


# kind -> (options from a record, reduction that the reference uses whatever it was asked for)
VERL = {
    "gspo": (bounds, "sequence"),
    "cispo": (ratio_bounds, "token"),
    "sapo": (lambda i: {"tau_positive": i["config"]["tau_pos"], "tau_negative": i["config"]["tau_neg"]}, "sequence"),
    "gmpo": (bounds, "sequence"),
    "reinforce": (lambda i: {}, "sequence_sum"),
}


@pytest.mark.parametrize("kind", VERL)
def test_losses_equal_verl_in_value_gradient_and_diagnostics(kind):
    options, reduce = VERL[kind]
    cases = each(f"verl_policy_loss_{kind}")
    assert len(cases) >= 2
    for case in cases:
        (r,) = case.values
        i, expected = r["inputs"], r["outputs"]
        mask, _, segment = layout(i["response_mask"])
        inputs = loss_inputs(i, mask)
        loss_R, diagnostics = loss(kind, inputs, **options(i))
        if "rollout_is_weights" in i:
            weight = flat(i["rollout_is_weights"], mask)
            # verl's GMPO: the geometric mean of the sequence's weights
            loss_R = loss_R * (sequence_mean(weight.log(), segment).exp() if kind == "gmpo" else weight)
        total = reduced(loss_R, mask, reduce)
        total.backward()
        assert total.item() == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
        torch.testing.assert_close(inputs.logp_R.grad, flat(expected["grad_log_prob"], mask), **CLOSE)
        metrics = expected["metrics"]
        assert float(diagnostics["approx_kl"].mean()) == pytest.approx(metrics["actor/ppo_kl"], rel=1e-4, abs=1e-6)
        clipped = metrics.get("actor/pg_clipfrac", 0.0) + metrics.get("actor/pg_clipfrac_lower", 0.0)
        if kind == "gmpo":  # verl counts what is out of bounds on either side, we what lost its gradient by it
            assert diagnostics["clip_fraction"].bool().tolist() == (inputs.logp_R.grad == 0).tolist()
            assert float(diagnostics["clip_fraction"].mean()) <= clipped + 1e-6
        elif "clip_fraction" in diagnostics:
            assert float(diagnostics["clip_fraction"].mean()) == pytest.approx(clipped, abs=1e-6)


def trl(case):
    """(inputs, mask, record inputs, outputs) of a TRL record; one advantage a sequence."""
    r = record("trl_grpo_losses", case)
    i = r["inputs"]
    mask, lengths, segment = layout(i["completion_mask"])
    logp = flat(i["per_token_logps"], mask).requires_grad_()
    advantage = torch.tensor(i["advantages"]).repeat_interleave(lengths)
    return LossInputs(logp, flat(i["old_per_token_logps"], mask), advantage, segment), mask, i, r["outputs"]


def assert_equals_trl(inputs, loss_R, mask, reduce, expected):
    total = reduced(loss_R, mask, reduce)
    total.backward()
    assert total.item() == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
    torch.testing.assert_close(inputs.logp_R.grad, flat(expected["grad"], mask), **CLOSE)


def test_cispo_equals_trl_whose_bound_is_the_ratio_itself():
    inputs, mask, i, expected = trl("cispo_eps_high_1")
    assert i["epsilon_high"] == 1.0
    loss_R, _ = loss("cispo", inputs, max_ratio=i["epsilon_high"])
    assert_equals_trl(inputs, loss_R, mask, "token", expected)
    as_distance, _ = loss("cispo", inputs, min_ratio=1 - i["epsilon_low"], max_ratio=1 + i["epsilon_high"])
    assert abs(reduced(as_distance, mask, "token").item() - expected["loss"]) > 0.01  # the same epsilon read verl's way


def test_dual_clip_is_trls_two_sided_delta():
    inputs, mask, i, expected = trl("dapo_two_sided_delta")
    assert i["delta"] >= 1 + i["epsilon_high"]  # below that TRL's bound is 1 + epsilon_high
    options = PpoClipOptions(clip_low=i["epsilon_low"], clip_high=i["epsilon_high"], dual_clip=i["delta"])
    loss_R, _ = loss("ppo_clip", inputs, **options.model_dump())
    assert_equals_trl(inputs, loss_R, mask, "token", expected)


@pytest.mark.parametrize("r", each("r1_reward_policy_loss"))
def test_stable_reinforce_equals_the_reference_at_extreme_ratios(r):
    i, expected = r["inputs"], r["outputs"]
    mask, _, segment = layout(i["action_mask"])
    logp = flat(i["log_probs"], mask).requires_grad_()
    inputs = LossInputs(logp, flat(i["old_log_probs"], mask), flat(i["advantages"], mask), segment)
    loss_R, _ = loss("stable_reinforce", inputs, clip_low=i["clip_eps"], clip_high=i["clip_eps"])
    assert_equals_trl(inputs, loss_R, mask, "sequence", expected)
    plain, _ = loss("ppo_clip", inputs, clip_low=i["clip_eps"], clip_high=i["clip_eps"])
    assert reduced(plain, mask, "sequence").item() > 100 * expected["loss"]  # what the pre-clip is for


@pytest.mark.parametrize("r", each("verl_value_loss"))
def test_the_value_loss_equals_verl(r):
    i, expected = r["inputs"], r["outputs"]
    mask, _, _ = layout(i["response_mask"])
    value = flat(i["vpreds"], mask).requires_grad_()
    options = ValueLossOptions(clip=i["cliprange_value"])
    loss_R, diagnostics = value_loss(value, flat(i["values"], mask), flat(i["returns"], mask), options)
    total = reduced(loss_R, mask, "token")
    total.backward()
    assert total.item() == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
    torch.testing.assert_close(value.grad, flat(expected["grad"], mask), **CLOSE)
    assert float(diagnostics["value_clip_fraction"].mean()) == pytest.approx(expected["clipfrac"], abs=1e-6)


# ---- mismatch ------------------------------------------------------


@pytest.mark.parametrize("r", each("verl_rollout_is_weights"))
def test_importance_weights_equal_verl_normalised_or_not(r):
    i = r["inputs"]
    mask, _, segment = layout(i["response_mask"])
    ratio = flat(i["log_ratio"], mask)
    found = importance_weights(ratio, segment, i["rollout_is"], "truncate", i["rollout_is_threshold"])
    if i["batch_normalize"]:
        found = normalised_weights(found, segment, i["rollout_is"])
    torch.testing.assert_close(found, flat(r["outputs"]["weights"], mask), **CLOSE)


@pytest.mark.parametrize("r", each("verl_rollout_rejection_mask"))
def test_rejection_equals_verl(r):
    i = r["inputs"]
    mask, _, segment = layout(i["response_mask"])
    level, _, statistic = i["rollout_rs"].replace("seq_", "sequence_").rpartition("_")
    lower, _, upper = i["rollout_rs_threshold"].rpartition("_")
    options = RejectionOptions(
        level=level, statistic=statistic, upper=float(upper), lower=float(lower) if lower else None
    )
    found = rejection_mask(flat(i["log_ratio"], mask), segment, options)
    expected = flat(r["outputs"]["mask"], mask).bool()
    assert found.tolist() == expected.tolist()
    assert not expected.all()


def test_trls_weights_then_kl_equal_the_composed_objective():
    """TRL's order: weight, then KL; the same vector as in test_golden_objectives, through `importance_weights`."""
    inputs, mask, i, expected = trl("dapo_with_vllm_is")
    weight = importance_weights(
        flat(i["importance_sampling_ratio"], mask).log(), inputs.segment_R, "token", "zero", 1e9
    )
    loss_R, _ = loss("ppo_clip", inputs, clip_low=i["epsilon_low"], clip_high=i["epsilon_high"])
    loss_R = loss_R * weight + i["beta"] * kl_penalty(inputs.logp_R, flat(i["ref_per_token_logps"], mask), "k3")
    assert_equals_trl(inputs, loss_R, mask, "token", expected)
