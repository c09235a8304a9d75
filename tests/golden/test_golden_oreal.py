"""OREAL against vectors recorded from its reference: shaping, token weights, the whole loss and its gradient."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from data import Example, Message, by_repetition
from prm.token_credit import TokenCredit, response_means, threshold_weight, token_weight, top_k_weight
from tests.golden.vectors import CLOSE, each
from trainer.advantages.base import AdvantageInputs
from trainer.advantages.oreal import OrealOptions, oreal_advantage
from trainer.losses.base import LOSSES, LossInputs
from trainer.objective import kl_loss, kl_penalty, sequence_weights

pytestmark = pytest.mark.golden

KL = {"unbias": "k3", "mse": "k2"}


@pytest.mark.parametrize("r", each("oreal_reward_shaping"))
def test_reshaped_rewards_equal_the_reference(r):
    reward, k = torch.tensor(r["inputs"]["judger_rewards"]), r["inputs"]["k"]
    length = torch.ones(len(reward), dtype=torch.long)
    group = torch.arange(len(reward)) // k
    options = OrealOptions(shaping=r["inputs"]["reward_shaping_type"], signed=False)
    correct = torch.ones(len(reward), dtype=torch.bool)  # one class: its coefficient is 1, N / N+ is 1
    found = oreal_advantage(AdvantageInputs(reward, group, length, correct_N=correct), options)
    torch.testing.assert_close(found, torch.tensor(r["outputs"]["judger_advantages"]), **CLOSE)


@pytest.mark.parametrize("r", each("oreal_token_weight_rescale"))
def test_token_weights_equal_the_reference(r):
    p, options = torch.tensor(r["inputs"]["prob"]), r["inputs"]
    if "threshold" in options:
        found = threshold_weight(p, options["threshold"])
    else:
        found = top_k_weight(p, options["topk_ratio"])
    torch.testing.assert_close(found, torch.tensor(r["outputs"]["weight"]), **CLOSE)


def weight_options(config):
    if config["threshold_rescale"]:
        return SimpleNamespace(weights="threshold", correct_threshold=config["correct_threshold"],
                               wrong_threshold=config["incorrect_threshold"])  # fmt: skip
    return SimpleNamespace(weights="top_k", correct_share=config["correct_topk_ratio"],
                           wrong_share=config["incorrect_topk_ratio"])  # fmt: skip


def objective(r, loss_kind):
    """(loss [R] without the KL, KL [R], log-probs [R], the weight that reduce=token gives) of a record.

    The record brings A_i, so the estimator is only asked for the coefficient of each class: shaping=none, and A_i as
    the reward."""
    i, config = r["inputs"], r["inputs"]["config"]
    length = torch.tensor([len(row) for row in i["action_logprobs"]])
    correct = torch.tensor(i["judger_rewards"]) > 0
    options = OrealOptions(shaping="none", signed=False, pos_mult_adv=config["pos_mult_adv"],
                           positive_coef=config["positive_loss_factor"],
                           negative_coef=config["negative_loss_factor"])  # fmt: skip
    inputs = AdvantageInputs(torch.tensor(i["judger_advantages"]), torch.arange(len(length)), length, correct_N=correct)
    advantage_R = oreal_advantage(inputs, options).repeat_interleave(length)
    if i["action_rm_logits"] is not None:
        rows = zip(i["action_rm_logits"], correct, strict=True)
        weights = [token_weight(torch.tensor(row), bool(c), weight_options(config)) for row, c in rows]
        advantage_R = advantage_R * torch.cat(weights)
    logp_R = torch.tensor([v for row in i["action_logprobs"] for v in row]).requires_grad_()
    reference_R = torch.tensor([v for row in i["ref_action_logprobs"] for v in row])
    segment_R = torch.arange(len(length)).repeat_interleave(length)
    loss = LOSSES.get(loss_kind)
    loss_R, _ = loss.compute(LossInputs(logp_R, logp_R.detach(), advantage_R, segment_R), loss.options())
    kl_R = config["kl_coef"] * kl_loss(logp_R, reference_R, logp_R.detach(), KL[config.get("kl_type", "unbias")])
    weight_R = sequence_weights(length, torch.ones(len(length)).bool(), "token", None).repeat_interleave(length)
    return loss_R, kl_R, logp_R, weight_R.float(), length, correct


def per_sequence(value_R, length):
    return torch.stack([part.sum() for part in value_R.split(length.tolist())])


@pytest.mark.parametrize("loss_kind", ["reinforce", "ppo_clip"])
@pytest.mark.parametrize("r", each("oreal_losses"))
def test_the_gradient_equals_the_reference_with_the_kl_over_both_classes(r, loss_kind):
    loss_R, kl_R, logp_R, weight_R, _, _ = objective(r, loss_kind)
    ((loss_R + kl_R) * weight_R).sum().backward()
    expected = torch.tensor([v for row in r["outputs"]["grad_action_logprobs"] for v in row])
    torch.testing.assert_close(logp_R.grad, expected, **CLOSE)


@pytest.mark.parametrize("r", each("oreal_losses"))
def test_every_term_equals_the_reference(r):
    """Correct responses as -A logp (reinforce), wrong ones as -A ratio (ppo_clip at ratio 1): the same gradient."""
    cloning_R, kl_R, _, weight_R, length, correct = objective(r, "reinforce")
    ratio_R = objective(r, "ppo_clip")[0]
    correct_R = correct.repeat_interleave(length)
    for name, value_R in (("positive", cloning_R * correct_R), ("negative", ratio_R * ~correct_R), ("kl", kl_R)):
        found = per_sequence(value_R * weight_R, length)
        torch.testing.assert_close(found.detach(), torch.tensor(r["outputs"][name]), **CLOSE)


@pytest.mark.parametrize("r", each("oreal_losses", keep=lambda r: r["inputs"]["action_rm_logits"] is not None))
def test_the_reward_models_loss_and_gradient_equal_the_reference(r):
    rows = r["inputs"]["action_rm_logits"]
    score_R = torch.tensor([v for row in rows for v in row]).requires_grad_()
    segment_R = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row) for row in rows]))
    label = (torch.tensor(r["inputs"]["judger_rewards"]) > 0).float()
    mean = response_means(score_R, segment_R, len(rows))
    loss = binary_cross_entropy_with_logits(mean, label, reduction="none") / len(rows)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(r["outputs"]["rm_losses"]), **CLOSE)
    expected = torch.tensor([v for row in r["outputs"]["grad_action_rm_logits"] for v in row])
    torch.testing.assert_close(score_R.grad, expected, **CLOSE)


def test_the_reference_kl_form_that_is_not_offered_is_minus_k1_and_drives_away():
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    reference = torch.tensor([-1.5, -1.0])
    published = reference - logp
    torch.testing.assert_close(published, -kl_penalty(logp, reference, "k1"))
    published.sum().backward()
    assert bool((logp.grad < 0).all())  # minimising it raises logp, also where it is above the reference already


@pytest.mark.parametrize("r", each("oreal_difficulty_balance"))
def test_difficulty_balancing_equals_the_reference(r):
    rates = {f"q{i}": rate for i, rate in enumerate(r["inputs"]["pass_rates"])}
    examples = [Example(name, (Message("user", name),), "1") for name in rates]
    bands = [(low, high, times) for low, high, times in r["inputs"]["cfg"]]
    assert [rates[e.id] for e in by_repetition(examples, rates, bands)] == r["outputs"]["expanded"]


def test_the_top_share_has_at_least_one_token_where_the_reference_fails():
    assert top_k_weight(torch.tensor([0.2, 0.9, 0.4]), 0.25).tolist() == [0.0, 1.0, 0.0]
    assert TokenCredit.Options.model_fields["correct_share"].default == 0.25
