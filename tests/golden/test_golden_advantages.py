"""Every advantage estimator against vectors recorded from its reference. Where the reference is wrong, or differs from
what assay chose, the test shows the difference."""

import pytest
import torch

from tests.golden.vectors import CLOSE, CLOSE_WHITENED, each, flat, group_inputs, layout, record, whole
from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.advantages.gae import GaeOptions, gae
from trainer.advantages.multi_stream import multi_stream_return
from trainer.advantages.stable_reinforce import filter_advantages
from verifiers.options import parse_options

pytestmark = pytest.mark.golden


def advantage(kind, inputs, **options):
    estimator = ADVANTAGES.get(kind)
    return estimator.compute(inputs, parse_options(estimator.options, options))


GROUP_RECORDS = {
    "verl_grpo_vectorized": ("grpo", {}),
    "verl_rloo": ("rloo", {}),
    "verl_rloo_vectorized": ("rloo", {"singleton": "zero"}),
    "verl_opo": ("opo", {}),
    "verl_gpg": ("gpg", {}),
    "verl_grpo_nostd_drgrpo": ("dr_grpo", {}),
}


@pytest.mark.parametrize(("file", "kind"), [(f, k) for f, (k, _) in GROUP_RECORDS.items()])
def test_outcome_estimators_equal_verl(file, kind):
    for case in each(file):
        (r,) = case.values
        inputs, mask = group_inputs(r["inputs"])
        found = advantage(kind, inputs, **GROUP_RECORDS[file][1])
        torch.testing.assert_close(found, flat(r["outputs"]["advantages"], mask), **CLOSE)


@pytest.mark.parametrize("r", each("verl_reinforce_pp_baseline"))
def test_reinforce_pp_baseline_equals_verl(r):
    inputs, mask = group_inputs(r["inputs"])
    found = advantage("reinforce_pp_baseline", inputs)
    torch.testing.assert_close(found, flat(r["outputs"]["advantages"], mask), **CLOSE_WHITENED)


@pytest.mark.parametrize("r", each("verl_grpo_passk"))
def test_passk_grpo_equals_verl(r):
    inputs, mask = group_inputs(r["inputs"])
    found = advantage("passk_grpo", inputs, normalize_std=r["inputs"]["norm_adv_by_std_in_grpo"])
    torch.testing.assert_close(found, flat(r["outputs"]["advantages"], mask), **CLOSE)


def test_the_two_reference_forms_of_rloo_differ_in_groups_of_one_only():
    r, other = record("verl_rloo", "sizes_1_2_3_8"), each("verl_rloo_vectorized")
    inputs, _ = group_inputs(r["inputs"])
    loop, vectorised = advantage("rloo", inputs), advantage("rloo", inputs, singleton="zero")
    _, index, size = torch.unique(inputs.group_N, return_inverse=True, return_counts=True)
    single = (size[index] == 1).repeat_interleave(inputs.length_N)
    assert other
    assert single.any()
    torch.testing.assert_close(loop[~single], vectorised[~single])
    assert (vectorised[single] == 0).all()
    assert (loop[single] != 0).any()


# ---- returns -------------------------------------------------------


def token_inputs(i, mask, **extra):
    """Rewards a token only; the outcome is 0."""
    _, lengths, _ = layout(mask.tolist())
    zero, group = torch.zeros(len(mask)), torch.arange(len(mask))
    return AdvantageInputs(zero, group, lengths, flat(i["token_level_rewards"], mask), **extra)


@pytest.mark.parametrize("r", each("verl_reinforce_pp"))
def test_reinforce_pp_equals_verl(r):
    i = r["inputs"]
    mask, _, _ = layout(i["response_mask"])
    found = advantage("reinforce_pp", token_inputs(i, mask), gamma=i["gamma"])
    torch.testing.assert_close(found, flat(r["outputs"]["advantages"], mask), **CLOSE_WHITENED)


@pytest.mark.parametrize("r", each("verl_remax"))
def test_remax_equals_verl(r):
    i = r["inputs"]
    mask, _, _ = layout(i["response_mask"])
    found = advantage("remax", token_inputs(i, mask, baseline_N=torch.tensor(i["reward_baselines"])))
    torch.testing.assert_close(found, flat(r["outputs"]["advantages"], mask), **CLOSE)


@pytest.mark.parametrize("r", each("verl_gae"))
def test_gae_equals_verl_with_tool_tokens_and_padding_as_masked_tokens(r):
    i, expected = r["inputs"], r["outputs"]
    mask, _, _ = layout(i["response_mask"])
    lengths, own = whole(mask)
    zero = torch.zeros(len(mask))
    reward, value = torch.tensor(i["token_level_rewards"]).flatten(), torch.tensor(i["values"]).flatten()
    inputs = AdvantageInputs(zero, torch.arange(len(mask)), lengths, reward, mask_R=own, value_R=value)
    options = {"gamma": i["gamma"], "lam": i["lam"]}
    found = advantage("gae", inputs, **options)
    torch.testing.assert_close(found[own], flat(expected["advantages"], mask), **CLOSE_WHITENED)
    assert (found[~own] == 0).all()  # verl leaves whitened zeros there
    returns = ADVANTAGES.get("gae").returns(inputs, GaeOptions(**options))
    torch.testing.assert_close(returns[own], flat(expected["returns"], mask), **CLOSE)


def test_values_at_padding_do_not_leak_as_in_the_older_copy_of_gae():
    r = record("prime_repo_gae_unmasked_padding", "padding_values_leak")
    i = r["inputs"]
    mask, _, _ = layout(i["response_mask"])
    options = GaeOptions(gamma=i["gamma"], lam=i["lam"])
    _, returns = gae(token_inputs(i, mask, value_R=flat(i["values"], mask)), options)
    expected = flat(r["outputs"]["returns"], mask)
    full = mask.sum(1)[layout(mask.tolist())[2]] == mask.shape[1]
    torch.testing.assert_close(returns[full], expected[full], **CLOSE)  # the row without padding agrees
    assert ((returns[~full] - expected[~full]).abs() > 0.02).all()  # every padded row was wrong there
    single = mask.sum(1).tolist().index(1)  # one token: the return is its reward, whatever stands in the padding
    assert returns[layout(mask.tolist())[2] == single].item() == pytest.approx(i["token_level_rewards"][single][0])


@pytest.mark.parametrize("r", each("demystify_multi_gamma"))
def test_multi_stream_equals_the_reference(r):
    i = r["inputs"]
    mask, lengths, _ = layout(i["mask"])
    inputs = AdvantageInputs(torch.zeros(len(mask)), torch.arange(len(mask)), lengths,
                             value_R=flat(i["values"], mask), stream_RK=flat(i["rewards"], mask))  # fmt: skip
    found = advantage("multi_stream", inputs, gammas=i["gamma"])
    torch.testing.assert_close(found, flat(r["outputs"]["advantages"], mask), **CLOSE)
    estimator = ADVANTAGES.get("multi_stream")
    returns = multi_stream_return(inputs, parse_options(estimator.options, {"gammas": i["gamma"]}))
    torch.testing.assert_close(returns, flat(r["outputs"]["returns"], mask), **CLOSE)


# ---- rejection -----------------------------------------------------


@pytest.mark.parametrize("r", each("minimal_rl_raft"))
def test_raft_and_reinforce_rej_equal_the_reference(r):
    inputs, mask = group_inputs(r["inputs"])
    select = {"raft": "positive", "reinforce_rej": "mixed_groups"}[r["case"]]
    found = advantage("raft", inputs, select=select)
    torch.testing.assert_close(found, flat(r["outputs"]["advantages"], mask), **CLOSE)


def filtered(case):
    r = record("r1_reward_advantage_filter", case)
    mask, _, _ = layout(r["inputs"]["action_mask"])
    found = filter_advantages(flat(r["inputs"]["advantages"], mask), torch.ones(int(mask.sum())).bool(), 3.0)
    return found, flat(r["outputs"]["normalized"], mask), r["outputs"]


def test_the_advantage_filter_equals_the_reference_where_nothing_is_far_out():
    found, expected, _ = filtered("gaussian")
    torch.testing.assert_close(found, expected, **CLOSE_WHITENED)


def test_the_advantage_filter_drops_what_is_beyond_three_sigma_where_the_reference_keeps_it():
    found, expected, _ = filtered("outlier")
    assert (expected[-3:] > 3.3).all()  # compared with raw mean 0.5 + 3
    assert found[-3:].tolist() == [0.0] * 3
    torch.testing.assert_close(found[:-3], expected[:-3], **CLOSE_WHITENED)


def test_the_advantage_filter_keeps_the_batch_where_the_reference_drops_all_of_it():
    found, expected, facts = filtered("shifted_mean")
    assert facts["mean"] > 5  # compared with raw mean 5.9 +- 3
    assert (expected == 0).all()
    assert (found != 0).all()
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-5)
