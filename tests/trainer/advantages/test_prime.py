"""PRIME's advantages: the two forms, what they share, and the estimators that take its token rewards as they are."""

from types import SimpleNamespace

import pytest
import torch

from tests.helpers import weigh
from tests.trainer.advantages.batches import random_inputs, run
from tests.trainer.test_weigh import rollouts, session
from trainer.advantages.base import AdvantageInputs, at_last_token, discounted_to_go, own_tokens, whiten
from trainer.advantages.prime import PrimeRlooOptions, mean_token_reward, prime_rloo_return
from trainer.advantages.rloo import RlooOptions, rloo_advantage
from trainer.compose import load_recipe
from verifiers.errors import ConfigError

PAIR = AdvantageInputs(torch.tensor([1.0, 0.0]), torch.zeros(2), torch.tensor([2, 1]), torch.tensor([0.2, -0.1, 0.3]))
FORMS = pytest.mark.parametrize("form", ["code", "paper"])


def returned(inputs, **options):
    return prime_rloo_return(inputs, PrimeRlooOptions(**options))


@pytest.mark.parametrize(("form", "expected"), [("code", [0.5, 0.45, -0.75]), ("paper", [0.5, 0.6, -0.75])])
def test_the_worked_example_of_each_form(form, expected):
    assert returned(PAIR, form=form).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_forms_differ_inside_a_response_only():
    inputs = random_inputs()
    code, paper = (returned(inputs, form=form) for form in ("code", "paper"))
    own = own_tokens(inputs)
    starts = torch.tensor([int(own[a:b].nonzero()[0]) + a for a, b in bounds(inputs) if own[a:b].any()])
    torch.testing.assert_close(code[starts], paper[starts])
    assert not torch.allclose(code, paper)


def bounds(inputs):
    ends = inputs.length_N.cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


@FORMS
def test_without_process_rewards_it_is_whitened_rloo(form):
    inputs = random_inputs()
    silent = AdvantageInputs(inputs.reward_N, inputs.group_N, inputs.length_N,
                             torch.zeros_like(inputs.token_reward_R), inputs.mask_R)  # fmt: skip
    rloo_N = rloo_advantage(inputs.reward_N, inputs.group_N, RlooOptions(singleton="zero"))
    expected = whiten(rloo_N.repeat_interleave(inputs.length_N) * own_tokens(inputs), inputs)
    torch.testing.assert_close(run("prime_rloo", silent, form=form), expected)


@FORMS
def test_equal_outcomes_leave_the_process_part(form):
    equal = AdvantageInputs(torch.ones(2), PAIR.group_N, PAIR.length_N, PAIR.token_reward_R)
    shifted = AdvantageInputs(torch.zeros(2), PAIR.group_N, PAIR.length_N, PAIR.token_reward_R)
    torch.testing.assert_close(returned(equal, form=form), returned(shifted, form=form))
    assert bool(returned(equal, form=form).any())


def test_centred_means_add_up_to_nothing_in_a_group():
    inputs = random_inputs(mask=False)
    no_outcome = AdvantageInputs(torch.zeros(7).double(), inputs.group_N, inputs.length_N, inputs.token_reward_R)
    centred = returned(no_outcome, gamma_process=0.0)  # gamma 0: the centred reward of the token itself
    mu_N = mean_token_reward(AdvantageInputs(inputs.reward_N, inputs.group_N, inputs.length_N, centred))
    for group in (5, 1):
        assert float(mu_N[inputs.group_N == group].sum()) == pytest.approx(0.0, abs=1e-9)


@FORMS
def test_discounts_are_of_their_own_source(form):
    inputs = random_inputs()
    rloo_N = rloo_advantage(inputs.reward_N, inputs.group_N, RlooOptions(singleton="zero"))
    outcome_R = discounted_to_go(at_last_token(rloo_N, inputs), inputs, 0.5)
    only = returned(inputs, form=form, gamma_outcome=1.0) - returned(inputs, form=form, gamma_outcome=0.5)
    expected = discounted_to_go(at_last_token(rloo_N, inputs), inputs, 1.0) - outcome_R
    torch.testing.assert_close(only, expected)


def test_returns_are_zero_outside_the_own_tokens():
    inputs = random_inputs()
    assert not bool(returned(inputs)[~own_tokens(inputs)].any())


@FORMS
def test_one_sample_a_prompt_is_refused(form):
    alone = AdvantageInputs(torch.ones(2), torch.tensor([0, 1]), torch.tensor([1, 1]), torch.ones(2))
    with pytest.raises(ConfigError, match="no prompt of this step has two"):
        returned(alone, form=form)


@pytest.mark.parametrize("kind", ["prime_rloo", "prime_grpo"])
def test_the_recipe_needs_two_samples_and_a_sample_that_lost_the_others_gets_nothing(kind):
    part = [f"objective.advantage={{kind: {kind}}}", "objective.zero_variance.drop=false"]
    with pytest.raises(ConfigError, match="samples_per_prompt must be at least 2"):
        load_recipe("quickstart", [*part, "rollout.samples_per_prompt=1"])
    inputs = random_inputs()
    alone = (inputs.group_N == 9).repeat_interleave(inputs.length_N)
    options = {"whiten": False} if kind == "prime_rloo" else {}
    assert not bool(run(kind, inputs, **options)[alone].any())


# ---- the other estimators ------------------------------------------


def test_prime_grpo_scores_each_source_by_itself():
    inputs = AdvantageInputs(
        torch.tensor([1.0, 0.0, 0.0]).double(), torch.zeros(3), torch.tensor([2, 1, 1]),
        torch.tensor([0.2, 0.4, 0.1, -0.1]).double(),
    )  # fmt: skip
    outcome = (1 - 1 / 3) / torch.tensor([1.0, 0, 0]).std().item()
    mu = torch.tensor([0.3, 0.1, -0.1])
    process = ((torch.tensor([0.2, 0.4]) - mu.mean()) / mu.std()).tolist()
    found = run("prime_grpo", inputs)[:2].tolist()
    assert found == pytest.approx([outcome + sum(process), outcome + process[1]], rel=1e-4)
    larger = AdvantageInputs(inputs.reward_N, inputs.group_N, inputs.length_N, 50 * inputs.token_reward_R)
    torch.testing.assert_close(run("prime_grpo", larger), run("prime_grpo", inputs), rtol=1e-3, atol=1e-4)


def two_sources(advantage, **options):
    """Outcomes from the rule, token rewards from another source."""
    s = session(advantage, sources=[{"kind": "rule"}, {"kind": "rule"}], **options)
    r = rollouts([[7, 8, 9], [7, 8]], [True, False])
    process = rollouts([[7, 8, 9], [7, 8]], [False, False], dense=[[0.1, 0.2, 0.3], [-0.5, 0.25]])
    r.signals.append(process.signals[0])
    return s, r


def test_reinforce_is_multi_stream_without_a_critic():
    s, r = two_sources("multi_stream", gammas=[1.0, 0.5])
    batch, _ = weigh(s, r)
    assert batch.advantages[0].tolist() == pytest.approx([1 + 0.1 + 0.1 + 0.075, 1 + 0.2 + 0.15, 1 + 0.3])
    assert batch.advantages[1].tolist() == pytest.approx([-0.5 + 0.125, 0.25])


def test_ppo_gets_the_outcome_on_the_last_token_and_a_reward_on_each():
    s, r = two_sources("gae", whiten=False)
    s.critic = SimpleNamespace(values=lambda ts: [torch.zeros(t.num_response_tokens) for t in ts])
    batch, _ = weigh(s, r)
    assert batch.returns[0].tolist() == pytest.approx([1.6, 1.5, 1.3])
    assert batch.returns[1].tolist() == pytest.approx([-0.25, 0.25])
    assert batch.advantages[0].tolist() == pytest.approx([1.6, 1.5, 1.3])
