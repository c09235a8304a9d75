"""Advantages, losses, KL, reductions and weights against vectors recorded from verl and TRL (see README.md here)."""

import pytest
import torch

from tests.golden.vectors import CLOSE, each, flat, layout, records, reduced
from trainer.advantages.base import AdvantageInputs
from trainer.advantages.grpo import ADVANTAGES, GrpoOptions
from trainer.config import MismatchConfig
from trainer.losses.base import LossInputs
from trainer.losses.ppo_clip import PpoClipOptions, ppo_clip_loss
from trainer.objective import kl_penalty, mismatch_weights, sequence_weights, soft_overlong_penalty

pytestmark = pytest.mark.golden


# ---- advantages --------------------------------------------------


@pytest.mark.parametrize("record", each("verl_grpo_std", "verl_grpo_nostd_drgrpo"))
def test_grpo_equals_verl(record):
    i = record["inputs"]
    mask, lengths, _ = layout(i["response_mask"])
    reward = torch.tensor(i["token_level_rewards"]).sum(-1)
    torch.testing.assert_close(reward, torch.tensor(i["scores"]))
    options = GrpoOptions(normalize_std=i["norm_adv_by_std_in_grpo"], eps=i["epsilon"])
    found = ADVANTAGES.get("grpo").compute(AdvantageInputs(reward, torch.tensor(i["group_index"]), lengths), options)
    torch.testing.assert_close(found, flat(record["outputs"]["advantages"], mask), **CLOSE)


# ---- the clipped loss --------------------------------------------

VERL_REDUCE = {"token-mean": "token", "seq-mean-token-mean": "sequence"}


def clipped_loss(i, options):
    """(token losses, diagnostics, log-probs that carry the gradient) of a vanilla record."""
    mask, _, segment = layout(i["response_mask"])
    logp = flat(i["log_prob"], mask).requires_grad_()
    inputs = LossInputs(logp, flat(i["old_log_prob"], mask), flat(i["advantages"], mask), segment)
    return *ppo_clip_loss(inputs, options), logp, mask


def vanilla_options(i, dual_clip):
    c = i["config"]
    return PpoClipOptions(clip_low=c["clip_ratio_low"], clip_high=c["clip_ratio_high"],
                          dual_clip=c["clip_ratio_c"] if dual_clip else None)  # fmt: skip


def verl_reduced(loss_R, i, mask):
    mode = i["loss_agg_mode"]
    if mode in VERL_REDUCE:
        return reduced(loss_R, mask, VERL_REDUCE[mode])
    assert mode == "seq-mean-token-sum-norm"  # verl divides by the padded length alone, we by the sequences too
    return reduced(loss_R, mask, "constant", mask.shape[1]) * len(mask)


@pytest.mark.parametrize("record", each("verl_policy_loss_vanilla"))
def test_ppo_clip_with_dual_clip_equals_verl_in_value_gradient_and_diagnostics(record):
    i, expected = record["inputs"], record["outputs"]
    assert "rollout_is_weights" not in i
    loss_R, diagnostics, logp, mask = clipped_loss(i, vanilla_options(i, dual_clip=True))
    loss = verl_reduced(loss_R, i, mask)
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
    torch.testing.assert_close(logp.grad, flat(expected["grad_log_prob"], mask), **CLOSE)
    means = {n: float(v.mean()) for n, v in diagnostics.items()}
    metrics = expected["metrics"]
    assert means["approx_kl"] == pytest.approx(metrics["actor/ppo_kl"], rel=1e-5, abs=1e-6)
    assert means["dual_clip_fraction"] == pytest.approx(metrics["actor/pg_clipfrac_lower"], abs=1e-6)
    assert means["clip_fraction"] == pytest.approx(metrics["actor/pg_clipfrac"], abs=1e-6)


@pytest.mark.parametrize("record", each("verl_policy_loss_vanilla"))
def test_without_dual_clip_ppo_differs_from_verl_only_where_its_bound_was_active(record):
    """Our default is off; verl's is on. The difference shows in the vector `dualclip_active` and in no other."""
    i, expected = record["inputs"], record["outputs"]
    loss_R, _, logp, mask = clipped_loss(i, vanilla_options(i, dual_clip=False))
    loss = verl_reduced(loss_R, i, mask)
    loss.backward()
    same_loss = loss.item() == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
    assert same_loss == (record["case"] != "dualclip_active")
    if not same_loss:
        assert loss.item() > expected["loss"]  # an unbounded penalty
        differs = (logp.grad - flat(expected["grad_log_prob"], mask)).abs() > 1e-6
        assert float(differs.float().mean()) == pytest.approx(expected["metrics"]["actor/pg_clipfrac_lower"], abs=1e-6)


TRL_REDUCE = {"grpo": "sequence", "bnpo": "token", "dr_grpo": "constant", "dapo": "token"}


@pytest.mark.parametrize(
    "record",
    each("trl_grpo_losses", keep=lambda r: r["inputs"]["loss_type"] in TRL_REDUCE and not r["inputs"]["delta"]),
)
def test_the_composed_objective_equals_trl(record):
    """Clip, importance weights, then KL (k3), then the reduction: the order of TRL and of the learner."""
    i, expected = record["inputs"], record["outputs"]
    mask, lengths, segment = layout(i["completion_mask"])
    logp = flat(i["per_token_logps"], mask).requires_grad_()
    advantage = torch.tensor(i["advantages"]).repeat_interleave(lengths)
    options = PpoClipOptions(clip_low=i["epsilon_low"], clip_high=i["epsilon_high"])
    loss_R, _ = ppo_clip_loss(LossInputs(logp, flat(i["old_per_token_logps"], mask), advantage, segment), options)
    if i["importance_sampling_ratio"] is not None:
        loss_R = loss_R * flat(i["importance_sampling_ratio"], mask)
    loss_R = loss_R + i["beta"] * kl_penalty(logp, flat(i["ref_per_token_logps"], mask), "k3")
    reduce = TRL_REDUCE[i["loss_type"]]
    loss = reduced(loss_R, mask, reduce, i["max_completion_length"] if reduce == "constant" else None)
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
    torch.testing.assert_close(logp.grad, flat(expected["grad"], mask), **CLOSE)


# ---- KL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", each("verl_kl_estimators", keep=lambda r: r["case"] in ("k1", "k2", "k3")))
def test_kl_equals_verl_where_verl_does_not_clamp(record):
    i, expected = record["inputs"], record["outputs"]
    logp = torch.tensor(i["logprob"]).flatten().requires_grad_()
    reference = torch.tensor(i["ref_logprob"]).flatten()
    kl = kl_penalty(logp, reference, record["case"])
    kl.sum().backward()
    clamped = torch.zeros(len(logp), dtype=torch.bool)
    if record["case"] == "k3":
        clamped = torch.tensor(expected["kl"]).flatten() >= 10.0
        assert clamped.sum() == 2
    torch.testing.assert_close(kl.detach()[~clamped], torch.tensor(expected["kl"]).flatten()[~clamped], **CLOSE)
    torch.testing.assert_close(logp.grad[~clamped], torch.tensor(expected["grad_logprob"]).flatten()[~clamped], **CLOSE)


def test_k3_keeps_its_value_and_gradient_where_verl_clamps_them():
    record = next(r for r in records("verl_kl_estimators") if r["case"] == "k3")
    logp = torch.tensor(record["inputs"]["logprob"]).flatten().double().requires_grad_()
    reference = torch.tensor(record["inputs"]["ref_logprob"]).flatten().double()
    clamped = torch.tensor(record["outputs"]["kl"]).flatten() >= 10.0
    kl = kl_penalty(logp, reference, "k3")
    kl.sum().backward()
    difference = (logp.detach() - reference)[clamped]
    torch.testing.assert_close(kl.detach()[clamped], torch.exp(-difference) + difference - 1)
    torch.testing.assert_close(logp.grad[clamped], 1 - torch.exp(-difference))
    assert (torch.tensor(record["outputs"]["grad_logprob"]).flatten()[clamped] == 0).all()


# ---- reductions --------------------------------------------------


@pytest.mark.parametrize("record", each("verl_agg_loss", "verl_agg_loss_b"))
def test_reductions_equal_verl(record):
    i = record["inputs"]
    mode = i.get("loss_agg_mode", i.get("mode"))
    mask, _, _ = layout(i["loss_mask"])
    loss_R = flat(i["loss_mat"], mask)
    expected = record["outputs"]["loss"] if isinstance(record["outputs"], dict) else record["outputs"]
    whole_batch = "dp_size" not in i  # with it, verl's value is one rank's share times the world size
    if mode in VERL_REDUCE and whole_batch:
        found = reduced(loss_R, mask, VERL_REDUCE[mode])
    elif mode == "seq-mean-token-sum" and whole_batch:  # the constant reduction with constant 1
        found = reduced(loss_R, mask, "constant", 1)
    elif mode == "seq-mean-token-sum-norm":  # by the constant alone: undo our division by the sequences
        counted = int((mask.sum(1) > 0).sum())
        found = reduced(loss_R, mask, "constant", i.get("loss_scale_factor", mask.shape[1])) * counted
    elif (
        mode == "token-mean" and "batch_num_tokens" in i
    ):  # this rank's sum over the tokens of all, times the world size
        found = reduced(loss_R, mask, "token") * int(mask.sum()) / i["batch_num_tokens"] * i["dp_size"]
    elif "global_batch_size" in i and mode == "seq-mean-token-sum":
        counted = int((mask.sum(1) > 0).sum())
        found = reduced(loss_R, mask, "constant", 1) * counted / i["global_batch_size"] * i["dp_size"]
    else:  # verl multiplies by dp_size without a global count: a per-rank mean, which assay does not have
        found = reduced(loss_R, mask, VERL_REDUCE[mode]) * i["dp_size"]
        if mode == "seq-mean-token-mean" and "global_batch_size" in i:
            found = found * int((mask.sum(1) > 0).sum()) / i["global_batch_size"]
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_loss_weighted_by_the_counts_of_the_whole_batch_does_not_depend_on_its_split():
    (record,) = records("loss_normalisation_trap")
    losses = [torch.tensor(x) for x in record["inputs"]["per_token_losses"]]
    lengths = torch.tensor([len(x) for x in losses])
    weight_N = sequence_weights(lengths, torch.ones(len(losses), dtype=torch.bool), "token", None)
    for split, micro_batches in record["inputs"]["micro_batches"].items():
        ours = sum(float((losses[i] * weight_N[i]).sum()) for rows in micro_batches for i in rows)
        assert ours == pytest.approx(record["outputs"][split]["token_weighted"]) == pytest.approx(2.5)
        wrong = sum(float(torch.cat([losses[i] for i in rows]).mean()) for rows in micro_batches) / len(micro_batches)
        assert wrong == pytest.approx(record["outputs"][split]["mean_of_micro_token_means"])


# ---- mismatch weights and length ---------------------------------


@pytest.mark.parametrize("record", each("verl_rollout_is_weights", keep=lambda r: not r["inputs"]["batch_normalize"]))
def test_truncated_importance_weights_equal_verl(record):
    i = record["inputs"]
    mask, _, segment = layout(i["response_mask"])
    ratio = flat(i["log_ratio"], mask)
    options = MismatchConfig(kind="truncated", level=i["rollout_is"], cap=i["rollout_is_threshold"])
    found = mismatch_weights(ratio, torch.zeros_like(ratio), segment, options)
    torch.testing.assert_close(found, flat(record["outputs"]["weights"], mask), **CLOSE)


@pytest.mark.parametrize("record", each("verl_dapo_overlong"))
def test_the_soft_overlong_penalty_equals_verl(record):
    i = record["inputs"]
    found = soft_overlong_penalty(i["valid_response_length"], i["max_resp_len"], i["buffer_len"], i["penalty_factor"])
    assert found == pytest.approx(record["outputs"]["overlong_reward"], abs=1e-9)
