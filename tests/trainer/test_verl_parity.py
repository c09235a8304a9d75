"""Every estimator, loss, reduction, KL and mismatch form that verl has too, called live on random batches in float64:
ragged responses with tool output inside. The recorded vectors in tests/golden are of an older commit; this is what
verl computes today.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.advantages.gae import GaeOptions, gae
from trainer.losses.base import LOSSES, LossInputs, sequence_mean
from trainer.losses.value import ValueLossOptions, value_loss
from trainer.objective import (
    RejectionOptions,
    adapted_kl_coef,
    importance_weights,
    kl_loss,
    kl_penalty,
    normalised_weights,
    rejection_mask,
    sequence_weights,
)
from verifiers.options import parse_options

core = pytest.importorskip("verl.trainer.ppo.core_algos")
correction = pytest.importorskip("verl.trainer.ppo.rollout_corr_helper")

pytestmark = [pytest.mark.golden, pytest.mark.filterwarnings("ignore")]

B, T = 8, 9
EXACT = {"rtol": 1e-9, "atol": 1e-9}
SEEDS = pytest.mark.parametrize("seed", range(3))


class Batch:
    """Padded [B, T] tensors for verl, and the tokens under the mask [R] for us."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

        lengths = torch.randint(2, T + 1, (B,), generator=generator)
        within = torch.arange(T) < lengths[:, None]
        self.mask = within & (torch.rand(B, T, generator=generator) > 0.2)
        self.mask[:, 0] = True
        self.m = self.mask.double()
        self.segment = torch.arange(B)[:, None].expand(B, T)[self.mask]
        self.length = self.mask.sum(1)
        self.old = normal(B, T) - 1.5
        self.logp = self.old + normal(B, T, scale=0.3)
        self.reference, self.sampled = self.old + normal(B, T, scale=0.5), self.old + normal(B, T, scale=0.4)
        self.advantage = normal(B, 1).expand(B, T).contiguous()
        self.reward = normal(B, T) * self.m
        self.value, self.new_value = normal(B, T), normal(B, T)
        self.group = np.array([0, 1, 0, 0, 1, 2, 1, 2])

    def inputs(self, dense: bool = False, **more: Any) -> AdvantageInputs:
        """Every position as a token, the mask as that of tool output. dense: rewards on tokens, no outcome."""
        outcome = torch.zeros(B, dtype=torch.float64) if dense else self.reward.sum(1)
        more |= {"token_reward_R": self.reward.flatten()} if dense else {}
        lengths = torch.full((B,), T)
        return AdvantageInputs(outcome, torch.tensor(self.group), lengths, mask_R=self.mask.flatten(), **more)

    def reduced(self, loss_R: Tensor, reduce: str, constant: int | None = None) -> Tensor:
        weight_N = sequence_weights(self.length, torch.ones(B).bool(), reduce, constant)  # type: ignore[arg-type]
        return (loss_R * weight_N.repeat_interleave(self.length)).sum()


# ---- advantages --------------------------------------------------

GROUP_ESTIMATORS = {
    "grpo": (core.compute_grpo_outcome_advantage, "grpo", {}),
    "grpo without std": (
        lambda *a: core.compute_grpo_outcome_advantage(*a, norm_adv_by_std_in_grpo=False), "dr_grpo", {}
    ),
    "grpo vectorised": (core.compute_grpo_vectorized_outcome_advantage, "grpo", {}),
    "rloo": (core.compute_rloo_outcome_advantage, "rloo", {}),
    "rloo vectorised": (core.compute_rloo_vectorized_outcome_advantage, "rloo", {"singleton": "zero"}),
    "opo": (core.compute_opo_outcome_advantage, "opo", {}),
    "gpg": (core.compute_gpg_outcome_advantage, "gpg", {}),
    "reinforce++ baseline": (
        core.compute_reinforce_plus_plus_baseline_outcome_advantage, "reinforce_pp_baseline", {}
    ),
    "pass@k": (
        lambda *a: core.compute_grpo_passk_outcome_advantage(*a, config={"norm_adv_by_std_in_grpo": True}),
        "passk_grpo", {},
    ),
}  # fmt: skip


def assert_same_advantages(batch: Batch, theirs: Tensor, kind: str, inputs: AdvantageInputs, **options: Any) -> None:
    estimator = ADVANTAGES.get(kind)
    found = estimator.compute(inputs, parse_options(estimator.options, options)).view(B, T)
    torch.testing.assert_close(found, (theirs * batch.m).to(found.dtype), rtol=1e-6, atol=1e-7)


@SEEDS
@pytest.mark.parametrize("name", GROUP_ESTIMATORS)
def test_estimators_over_groups_equal_verl(name: str, seed: int) -> None:
    compute, kind, options = GROUP_ESTIMATORS[name]
    batch = Batch(seed)
    theirs, _ = compute(batch.reward, batch.m, batch.group)
    assert_same_advantages(batch, theirs, kind, batch.inputs(), **options)


@SEEDS
def test_estimators_with_rewards_to_go_equal_verl(seed: int) -> None:
    batch = Batch(seed)
    config = SimpleNamespace(gamma=0.9)
    theirs, _ = core.compute_reinforce_plus_plus_outcome_advantage(batch.reward, batch.m, config=config)
    assert_same_advantages(batch, theirs, "reinforce_pp", batch.inputs(dense=True), gamma=0.9)
    baseline_N = batch.value[:, 0]
    theirs, _ = core.compute_remax_outcome_advantage(batch.reward, baseline_N, batch.m)
    assert_same_advantages(batch, theirs, "remax", batch.inputs(dense=True, baseline_N=baseline_N))


@SEEDS
def test_gae_equals_verl_in_advantages_and_returns(seed: int) -> None:
    batch = Batch(seed)
    theirs, returns = core.compute_gae_advantage_return(batch.reward, batch.value, batch.m, 0.9, 0.8)
    inputs = batch.inputs(dense=True, value_R=batch.value.flatten())
    assert_same_advantages(batch, theirs, "gae", inputs, gamma=0.9, lam=0.8)
    found = gae(inputs, GaeOptions(gamma=0.9, lam=0.8))[1].view(B, T)
    torch.testing.assert_close(found, returns * batch.m, **EXACT)


# ---- losses ------------------------------------------------------


def actor_config() -> Any:
    from verl.workers.config import ActorConfig  # pyright: ignore[reportMissingImports]

    return ActorConfig(strategy="fsdp", rollout_n=1, ppo_mini_batch_size=B, use_dynamic_bsz=True, clip_ratio=0.2,
                       clip_ratio_low=0.15, clip_ratio_high=0.25, clip_ratio_c=1.5)  # fmt: skip


BOUNDS = {"clip_low": 0.15, "clip_high": 0.25}
# verl's name -> (our kind, our options, our reduction, verl's mode)
POLICY_LOSSES = {
    "vanilla": ("ppo_clip", BOUNDS | {"dual_clip": 1.5}, "token", "token-mean"),
    "gspo": ("gspo", BOUNDS, "sequence", "seq-mean-token-mean"),
    "sapo": ("sapo", {}, "sequence", "seq-mean-token-mean"),
    "geo_mean": ("gmpo", BOUNDS, "sequence", "token-mean"),  # verl ignores its mode here
    "cispo": ("cispo", {"min_ratio": 0.85, "max_ratio": 1.25}, "token", "token-mean"),
    "gpg": ("reinforce", {}, "token", "token-mean"),
}


@SEEDS
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_policy_losses_equal_verl_in_value_and_gradient(name: str, weighted: bool, seed: int) -> None:
    kind, options, reduce, mode = POLICY_LOSSES[name]
    batch = Batch(seed)
    weight = torch.exp(batch.old - batch.sampled).clamp(max=2.0) if weighted else None
    theirs_logp, ours_logp = batch.logp.clone().requires_grad_(), batch.logp.clone().requires_grad_()
    compute = core.get_policy_loss_fn(name)
    theirs, _ = compute(batch.old, theirs_logp, batch.advantage, batch.m, mode, actor_config(), weight)
    theirs.backward()

    entry = LOSSES.get(kind)
    mask = batch.mask
    inputs = LossInputs(ours_logp[mask], batch.old[mask], batch.advantage[mask], batch.segment)
    loss_R, _ = entry.compute(inputs, parse_options(entry.options, options))
    if weight is not None:  # verl's GMPO takes the geometric mean of a sequence's weights
        own = weight[mask]
        loss_R = loss_R * (sequence_mean(own.log(), batch.segment).exp() if kind == "gmpo" else own)
    ours = batch.reduced(loss_R, reduce)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-9)
    torch.testing.assert_close(ours_logp.grad, theirs_logp.grad * batch.m, rtol=1e-6, atol=1e-9)


@SEEDS
@pytest.mark.parametrize(
    ("mode", "reduce", "constant"),
    [("token-mean", "token", None), ("seq-mean-token-mean", "sequence", None),
     ("seq-mean-token-sum", "sequence_sum", None), ("seq-mean-token-sum-norm", "constant", 16)],
)  # fmt: skip
def test_reductions_equal_verl(mode: str, reduce: str, constant: int | None, seed: int) -> None:
    batch = Batch(seed)
    theirs = core.agg_loss(batch.value, batch.m, mode, loss_scale_factor=constant)
    ours = batch.reduced(batch.value[batch.mask], reduce, constant)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)  # verl adds 1e-8 to lengths


@SEEDS
def test_the_value_loss_equals_verl(seed: int) -> None:
    batch = Batch(seed)
    theirs_value, ours_value = batch.new_value.clone().requires_grad_(), batch.new_value.clone().requires_grad_()
    theirs, clipped = core.compute_value_loss(theirs_value, batch.reward, batch.value, batch.m, 0.5)
    theirs.backward()
    mask = batch.mask
    loss_R, diagnostics = value_loss(
        ours_value[mask], batch.value[mask], batch.reward[mask], ValueLossOptions(clip=0.5)
    )
    ours = batch.reduced(loss_R, "token")
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    assert float(diagnostics["value_clip_fraction"].mean()) == pytest.approx(float(clipped))
    torch.testing.assert_close(ours_value.grad, theirs_value.grad, **EXACT)


# ---- KL ----------------------------------------------------------


@SEEDS
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_equals_verl_plain_and_straight_through(estimator: Any, seed: int) -> None:
    batch = Batch(seed)
    torch.testing.assert_close(kl_penalty(batch.logp, batch.reference, estimator),
                               core.kl_penalty(batch.logp, batch.reference, estimator), **EXACT)  # fmt: skip
    theirs_logp, ours_logp = batch.logp.clone().requires_grad_(), batch.logp.clone().requires_grad_()
    theirs = core.kl_penalty(theirs_logp, batch.reference, f"{estimator}+")
    ours = kl_loss(ours_logp, batch.reference, batch.old, estimator, "reverse_kl")
    torch.testing.assert_close(ours, theirs, **EXACT)
    theirs.sum().backward()
    ours.sum().backward()
    torch.testing.assert_close(ours_logp.grad, theirs_logp.grad, **EXACT)


@pytest.mark.parametrize("kl", [0.0, 0.09, 0.1, 0.115, 5.0])
def test_the_kl_controller_equals_verl(kl: float) -> None:
    controller = core.AdaptiveKLController(0.02, 0.1, 10000)
    controller.update(kl, 512)
    assert adapted_kl_coef(0.02, kl, 0.1, 10000, 512) == pytest.approx(controller.value, rel=1e-12)


# ---- mismatch ----------------------------------------------------


@SEEDS
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("threshold", "outside", "bounds"),
                         [(1.3, "truncate", (1.3, 0.0)), ("0.7_1.3", "zero", (1.3, 0.7))])  # fmt: skip
def test_importance_weights_equal_verl(
    level: Any, normalise: bool, threshold: Any, outside: Any, bounds: tuple[float, float], seed: int
) -> None:
    batch = Batch(seed)
    theirs, _ = correction.compute_rollout_correction_weights(
        batch.old - batch.sampled, batch.m, level, threshold, normalise
    )
    log_ratio = (batch.old - batch.sampled)[batch.mask]
    ours = importance_weights(log_ratio, batch.segment, level, outside, *bounds)
    if normalise:
        ours = normalised_weights(ours, batch.segment, level)
    torch.testing.assert_close(ours, theirs[batch.mask], rtol=1e-6, atol=1e-9)


LEVELS = {"token": "token", "sequence_sum": "seq_sum", "sequence_mean": "seq_mean", "sequence_max": "seq_max"}


@pytest.mark.parametrize(
    ("statistic", "level"),
    [(s, level) for s in ("k1", "k2", "k3") for level in LEVELS if (s, level) != ("k1", "sequence_max")],
)
def test_rejection_equals_verl(statistic: Any, level: Any) -> None:
    bounds, text = ({"upper": 1.3, "lower": 0.8}, "0.8_1.3") if statistic == "k1" else ({"upper": 0.08}, "0.08")
    options = RejectionOptions(level=level, statistic=statistic, **bounds)
    total = rejected = 0
    for seed in range(5):
        batch = Batch(seed)
        kept, _ = correction.compute_rollout_rejection_mask(
            batch.old - batch.sampled, batch.m, f"{LEVELS[level]}_{statistic}", text
        )
        ours = rejection_mask((batch.old - batch.sampled)[batch.mask], batch.segment, options)
        assert ours.tolist() == kept[batch.mask].bool().tolist()
        total, rejected = total + len(ours), rejected + int((~ours).sum())
    assert 0 < rejected < total
