"""Step rewards on their way to the advantage: the weight of the method, and which combinations are warned about."""

from __future__ import annotations

import pytest
import torch

from prm.refine import delta
from prm.signal import Signal
from tests.helpers import weigh
from tests.trainer.test_weigh import rollouts, session
from trainer.combinations import warnings
from trainer.compose import load_recipe
from verifiers.errors import ConfigError

RESPONSES, CORRECT = [[7, 8, 7], [7, 8], [9]], [True, False, True]
DENSE = [[0.9, 0.0, 0.4], [0.0, 0.2], [0.7]]


def two_sources(advantage, alpha, **options):
    s = session(advantage, sources=[{"kind": "rule"}, {"kind": "step_oracle", "weight": alpha}], **options)
    r = rollouts(RESPONSES, CORRECT)
    r.signals.append(Signal(torch.zeros(3), [torch.tensor(d) for d in DENSE]))
    return s, r


def advantages(s, r):
    return weigh(s, r)[0].advantages


@pytest.mark.parametrize("advantage", ["returns_to_go", "total_return", "reinforce_pp"])
def test_alpha_zero_is_exactly_the_success_reward(advantage):
    naive = advantages(*two_sources(advantage, 0.0))
    success = advantages(session(advantage), rollouts(RESPONSES, CORRECT))
    assert all(torch.equal(a, b) for a, b in zip(naive, success, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(advantages(*two_sources(advantage, 1.0)), success, strict=True))


def test_alpha_multiplies_the_step_rewards_and_not_the_success():
    found = advantages(*two_sources("returns_to_go", 2.0, normalize_std=False))
    returns = torch.tensor([2 * 1.3 + 1, 2 * 0.4 + 1, 2 * 0.4 + 1, 2 * 0.2, 2 * 0.2, 2 * 0.7 + 1])
    torch.testing.assert_close(torch.cat(found), returns - returns.mean())


def test_the_total_return_pays_one_more_true_line_nothing_and_rewards_to_go_pay_it():
    """The second response is the first with one more true line before the last; both are right."""
    short, long = delta(torch.tensor([0.9, 0.9])), delta(torch.tensor([0.9, 0.9, 0.9]))
    r = rollouts([[7, 7], [7, 7, 7]], [True, True], [short.tolist(), long.tolist()])
    total = advantages(session("total_return", normalize_std=False), r)
    assert float(total[0][0]) == pytest.approx(float(total[1][0]), abs=1e-6)
    to_go = advantages(session("returns_to_go", normalize_std=False), r)
    assert float(to_go[1][1] - to_go[0][1]) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sources.1.refine={kind: delta}"], "pay for one more true line"),
        (["sources.1.refine={kind: delta}", "objective=ppo"], "pay for one more true line"),
        (["sources.1.refine={kind: delta}", "objective=reinforce_pp"], "pay for one more true line"),
    ],
)
def test_what_does_not_do_what_it_says_is_warned_about(overrides, said):
    assert any(said in line for line in warnings(load_recipe("clip_delta_chain", overrides)))


def test_an_estimator_that_ignores_step_rewards_is_refused():
    with pytest.raises(ConfigError, match="does not use them"):
        load_recipe("clip_delta_chain", ["objective=grpo"])


@pytest.mark.parametrize(
    "overrides",
    [[], ["sources.1.refine={kind: delta}", "objective=total_return"], ["objective=ppo"],
     ["sources.1.refine={kind: none}"]],
)  # fmt: skip
def test_what_is_meant_is_silent(overrides):
    assert warnings(load_recipe("clip_delta_chain", overrides)) == []
