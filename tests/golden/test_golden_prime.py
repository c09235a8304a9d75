"""PRIME against vectors recorded from its repository and from verl's recipe."""

import pytest
import torch

from prm.health import pairwise_accuracy
from prm.implicit import ImplicitOptions, cross_entropy, process_rewards
from rollout.trajectory import Finish
from tests.golden.vectors import CLOSE, CLOSE_WHITENED, each, flat, layout, length_mask
from tests.helpers import trajectory
from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.advantages.prime import PrimeRlooOptions, prime_rloo_return
from trainer.collect import wanted_groups
from trainer.config import KeepConfig, PassRateBand
from verifiers.verdict import Status, Verdict

pytestmark = pytest.mark.golden

TOKENS = {"rtol": 1e-5, "atol": 1e-5}


def source_options(**values):
    return ImplicitOptions(optim={"lr": 0.0}, **values)


def rows(values, mask):
    return list(flat(values, mask).split(mask.sum(1).tolist()))


def log_ratios(logp, reference, lengths):
    mask = length_mask(lengths, len(logp[0]))
    return rows((torch.tensor(logp) - torch.tensor(reference)).tolist(), mask), mask


# ---- the reward ----------------------------------------------------


@pytest.mark.parametrize("r", each("prime_repo_implicit_reward"))
def test_the_token_rewards_equal_the_repositorys(r):
    i = r["inputs"]
    q, mask = log_ratios(i["logprobs"], i["ref_logprobs"], i["lengths"])
    options = source_options(granularity=r["case"].split("_")[0], normalise="none")
    found, _ = process_rewards(q, options)
    torch.testing.assert_close(torch.cat(found), flat(r["outputs"]["token_level_score"], mask), **TOKENS)


@pytest.mark.parametrize("r", each("prime_repo_ce_loss"))
def test_the_cross_entropy_and_its_gradient_equal_the_repositorys(r):
    i = r["inputs"]
    mask, lengths, _ = layout(i["response_mask"])
    q_R = flat(i["q"], mask).requires_grad_()
    loss = cross_entropy(q_R.split(lengths.tolist()), torch.tensor(i["acc"]), i["beta"]).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(r["outputs"]["loss"], rel=1e-5)
    torch.testing.assert_close(q_R.grad, flat(r["outputs"]["grad_q"], mask), **CLOSE)


@pytest.mark.parametrize("r", each("recipe_prime_detached_dpo_loss", keep=lambda r: r["case"] == "none"))
def test_the_recipes_other_losses_are_other_losses(r):
    """It compares with the mean of the opposite class; not offered here."""
    i = r["inputs"]
    mask, lengths, _ = layout(i["response_mask"])
    ours = cross_entropy(flat(i["q"], mask).split(lengths.tolist()), torch.tensor(i["acc"]), i["beta"]).mean()
    assert abs(float(ours) - r["outputs"]["loss"]) > 0.05


@pytest.mark.parametrize("r", each("prime_repo_dpo_accuracy"))
def test_the_pairwise_accuracy_equals_the_repositorys(r):
    i = r["inputs"]
    score_N = (torch.tensor(i["token_level_scores"]) * torch.tensor(i["response_mask"])).sum(1)
    group_N = torch.arange(len(score_N)) // i["n_samples"]
    assert pairwise_accuracy(score_N, torch.tensor(i["acc"]), group_N) == pytest.approx(r["outputs"]["dpo_accuracy"])


# ---- the advantage -------------------------------------------------


def prime_inputs(token_reward_R, acc, lengths, samples):
    group_N = torch.arange(len(acc)) // samples
    return AdvantageInputs(torch.tensor(acc).float(), group_N, torch.as_tensor(lengths), token_reward_R)


@pytest.mark.parametrize("r", each("prime_repo_rloo_advantage"))
def test_from_log_probs_to_advantages_as_in_the_repository(r):
    i, expected = r["inputs"], r["outputs"]
    q, mask = log_ratios(i["policy_prm_logprobs"], i["ref_logprobs"], i["lengths"])
    rewards, _ = process_rewards(q, source_options(normalise=i["prime_norm"]))
    inputs = prime_inputs(torch.cat(rewards), i["acc"], i["lengths"], i["n_samples"])
    options = PrimeRlooOptions(gamma_outcome=i["verifier_gamma"], gamma_process=i["reward_model_gamma"])
    found = prime_rloo_return(inputs, options)
    torch.testing.assert_close(found, flat(expected["returns"], mask), **TOKENS)
    whitened = ADVANTAGES.get("prime_rloo").compute(inputs, options)
    torch.testing.assert_close(whitened, flat(expected["advantages"], mask), **TOKENS)


@pytest.mark.parametrize("r", each("recipe_prime_rloo_advantage"))
def test_the_recipes_coefficients_are_factors_of_the_rewards(r):
    i = r["inputs"]
    mask, lengths, _ = layout(i["response_mask"])
    dense_R = flat(i["rm_scores"], mask) * i["reward_dpo_coef"]
    acc = [a * i["reward_gt_coef"] for a in i["acc"]]
    inputs = prime_inputs(dense_R, acc, lengths, i["n_samples"])
    found = prime_rloo_return(inputs, PrimeRlooOptions())
    torch.testing.assert_close(found, flat(r["outputs"]["returns"], mask), **TOKENS)
    whitened = ADVANTAGES.get("prime_rloo").compute(inputs, PrimeRlooOptions())
    torch.testing.assert_close(whitened, flat(r["outputs"]["advantages"], mask), **CLOSE_WHITENED)


# ---- the filter ----------------------------------------------------


@pytest.mark.parametrize("r", each("prime_repo_prompt_filter"))
def test_the_band_keeps_what_the_repository_keeps(r):
    i = r["inputs"]
    n = i["n_samples"]
    trajectories = [
        trajectory([5], [6], row // n, row % n, finish=Finish.LENGTH if at >= i["max_response_length"] else Finish.STOP)
        for row, at in enumerate(i["lengths"])
    ]
    verdicts = [Verdict(float(a), Status.CORRECT if a else Status.WRONG, "") for a in i["acc"]]
    groups = [list(range(at, at + n)) for at in range(0, len(verdicts), n)]
    keep = KeepConfig(pass_rate=PassRateBand(low=float(i["lower"]), high=float(i["upper"])),
                      drop_truncated=i["filter_truncated"])  # fmt: skip
    kept, left_out = wanted_groups(trajectories, verdicts, groups, keep)
    assert [row for group in kept for row in group] == r["outputs"]["kept_rows"]
    assert left_out.total() == len(groups) - len(kept)
