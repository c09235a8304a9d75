"""Our estimators and losses as verl calls them: padded tensors with tool output inside. None of this needs verl."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.losses.base import LOSSES, LossInputs
from trainer.objective import sequence_weights
from trainer.verl.adapters import advantage_function, loss_function, plain_estimators
from verifiers.errors import ConfigError

pytestmark = pytest.mark.unit

B, R = 6, 7
GROUPS = ["a", "b", "a", "b", "a", "b"]


class Batch:
    """verl's tensors, and the same responses end to end without their padding."""

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.length = torch.randint(2, R + 1, (B,), generator=generator)
        self.within = torch.arange(R) < self.length[:, None]
        self.mask = self.within & (torch.rand(B, R, generator=generator) > 0.25)
        self.mask[:, 0] = True
        self.outcome = torch.randint(0, 2, (B,), generator=generator).double()
        self.reward = torch.zeros(B, R, dtype=torch.float64)
        last = (self.mask * torch.arange(1, R + 1)).argmax(1)
        self.reward[torch.arange(B), last] = self.outcome
        self.old = torch.randn(B, R, generator=generator, dtype=torch.float64) - 1.5
        self.logp = self.old + 0.3 * torch.randn(B, R, generator=generator, dtype=torch.float64)
        self.advantage = torch.randn(B, R, generator=generator, dtype=torch.float64)

    def packed(self, padded: Tensor) -> Tensor:
        return padded[self.within]

    def inputs(self) -> AdvantageInputs:
        group = torch.tensor([GROUPS.index(g) for g in GROUPS])
        baseline = torch.zeros(B, dtype=torch.float64)
        return AdvantageInputs(self.outcome, group, self.length, mask_R=self.packed(self.mask),
                               correct_N=self.outcome > 0, baseline_N=baseline)  # fmt: skip


@pytest.mark.parametrize("kind", plain_estimators())
def test_an_estimator_gives_verl_what_it_gives_the_recipe(kind: str) -> None:
    batch = Batch()
    estimator = ADVANTAGES.get(kind)
    baseline = torch.zeros(B, dtype=torch.float64)
    found, returns = advantage_function(kind)(
        batch.reward, batch.mask.long(), index=GROUPS, config={}, reward_baselines=baseline
    )
    ours = estimator.compute(batch.inputs(), estimator.options())
    torch.testing.assert_close(batch.packed(found), ours.double(), rtol=1e-6, atol=1e-7)
    assert not found[~batch.mask].any()
    assert torch.equal(found, returns)


def test_options_of_an_estimator_come_from_algorithm_assay() -> None:
    batch = Batch()
    plain, _ = advantage_function("grpo")(batch.reward, batch.mask, index=GROUPS, config={"assay": None})
    own = {"assay": {"normalize_std": False}}
    centred, _ = advantage_function("grpo")(batch.reward, batch.mask, index=GROUPS, config=own)
    assert not torch.allclose(plain, centred)
    with pytest.raises(ConfigError, match="normalise_std"):
        advantage_function("grpo")(batch.reward, batch.mask, index=GROUPS, config={"assay": {"normalise_std": True}})


def test_only_what_plain_verl_can_feed_is_offered_to_it() -> None:
    offered = plain_estimators()
    assert {"grpo", "rloo", "reinforce_pp", "opo"} <= set(offered)
    assert not {"gae", "multi_stream", "tp_grpo", "prime_rloo"} & set(offered)


def token_mean(loss_mat: Tensor, loss_mask: Tensor, loss_agg_mode: str, **_: Any) -> Tensor:
    assert loss_agg_mode == "token-mean"
    return (loss_mat * loss_mask).sum() / loss_mask.sum()


def actor(**changes: Any) -> SimpleNamespace:
    values = {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3, "clip_ratio_c": 3.0, "tau_pos": 1.0, "tau_neg": 1.05}
    return SimpleNamespace(**(values | changes), global_batch_info={})


OPTIONS = {
    "ppo_clip": {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 3.0},
    "gspo": {"clip_low": 0.1, "clip_high": 0.3},
    "gmpo": {"clip_low": 0.1, "clip_high": 0.3},
    "cispo": {"min_ratio": 0.9, "max_ratio": 1.3},
    "stable_reinforce": {"clip_low": 0.1, "clip_high": 0.3},
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", LOSSES.names())
def test_a_loss_gives_verl_what_it_gives_the_recipe(kind: str, weighted: bool) -> None:
    batch = Batch()
    theirs, ours = batch.logp.clone().requires_grad_(), batch.logp.clone().requires_grad_()
    weight = (batch.old - batch.logp).exp() if weighted else None
    loss, metrics = loss_function(kind, token_mean)(
        batch.old, theirs, batch.advantage, batch.mask, config=actor(), rollout_is_weights=weight
    )
    loss.backward()

    entry = LOSSES.get(kind)
    segment = torch.arange(B)[:, None].expand(B, R)[batch.within]
    inputs = LossInputs(*(batch.packed(x) for x in (ours, batch.old, batch.advantage)), segment,
                        batch.packed(batch.mask))  # fmt: skip
    loss_R, diagnostics = entry.compute(inputs, entry.options(**OPTIONS.get(kind, {})))
    loss_R = loss_R * (1 if weight is None else batch.packed(weight))
    weight_N = sequence_weights(batch.mask.sum(1), torch.ones(B, dtype=torch.bool), "token", None)
    expected = (loss_R * weight_N[segment] * batch.packed(batch.mask)).sum()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(theirs.grad, ours.grad)
    assert set(metrics) == {f"actor/{name}" for name in diagnostics}
