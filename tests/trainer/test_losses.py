"""The clipped loss, beyond the recorded vectors."""

import math

import pytest
import torch

from trainer.losses.base import LOSSES, LossInputs
from trainer.losses.ppo_clip import PpoClipOptions, ppo_clip_loss
from verifiers.errors import ConfigError
from verifiers.options import parse_options


def run(ratio, advantage, **options):
    """(loss, gradient with respect to the log-prob, diagnostics) of single tokens."""
    logp = torch.tensor(ratio, dtype=torch.float64).log().requires_grad_()
    inputs = LossInputs(logp, torch.zeros_like(logp), torch.tensor(advantage, dtype=torch.float64),
                        torch.zeros(len(ratio), dtype=torch.long))  # fmt: skip
    loss, diagnostics = ppo_clip_loss(inputs, PpoClipOptions(**options))
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    return loss.tolist(), gradient.tolist(), {n: v.tolist() for n, v in diagnostics.items()}


def test_at_ratio_one_the_gradient_is_minus_the_advantage():
    loss, gradient, diagnostics = run([1.0, 1.0, 1.0], [2.0, -3.0, 0.0])
    assert loss == [-2.0, 3.0, 0.0]
    assert gradient == [-2.0, 3.0, 0.0]
    assert diagnostics["clip_fraction"] == [0.0] * 3


def test_a_clipped_token_has_no_gradient_and_only_in_the_direction_that_went_too_far():
    loss, gradient, diagnostics = run([1.5, 1.5, 0.5, 0.5], [1.0, -1.0, 1.0, -1.0])
    assert loss == pytest.approx([-1.2, 1.5, -0.5, 0.8])
    assert gradient == pytest.approx([0.0, 1.5, -0.5, 0.0])
    assert diagnostics["clip_fraction"] == [1.0, 0.0, 0.0, 1.0]


def test_the_two_bounds_are_separate():
    loss, _, _ = run([2.0, 0.1], [1.0, -1.0], clip_low=0.3, clip_high=0.6)
    assert loss == pytest.approx([-1.6, 0.7])


def test_dual_clip_bounds_the_loss_of_bad_tokens_only():
    loss, gradient, diagnostics = run([10.0, 10.0, 2.0], [-1.0, 1.0, -1.0], dual_clip=3.0)
    assert loss == pytest.approx([3.0, -1.2, 2.0])
    assert gradient == pytest.approx([0.0, 0.0, 2.0])
    assert diagnostics["dual_clip_fraction"] == [1.0, 0.0, 0.0]


def test_an_absurd_log_ratio_stays_finite():
    logp = torch.tensor([500.0, -500.0], requires_grad=True)
    inputs = LossInputs(logp, torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.zeros(2, dtype=torch.long))
    loss, _ = ppo_clip_loss(inputs, PpoClipOptions())
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([math.exp(20), -math.exp(-20)])
    assert torch.isfinite(logp.grad).all()


@pytest.mark.parametrize("values", [{"clip_low": 0.0}, {"clip_low": 1.0}, {"clip_high": 0.0}, {"dual_clip": 1.0},
                                    {"clip": 0.2}])  # fmt: skip
def test_wrong_options_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        parse_options(PpoClipOptions, values, "objective.loss")


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'ppo_clip'"):
        LOSSES.get("ppo_clipp", key="objective.loss.kind")
