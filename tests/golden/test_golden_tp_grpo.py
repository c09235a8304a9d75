"""TP-GRPO against values derived from the paper's two propositions (no reference code is public)."""

import pytest
import torch

from prm.thoughts import merge
from tests.golden.vectors import CLOSE, each
from tests.trainer.advantages.thought_sums import by_cumulative_sum, thought_rewards
from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.advantages.grpo import GrpoOptions, grpo_advantage
from trainer.advantages.tp_grpo import TpGrpoOptions

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("r", each("tp_grpo_derived"))
def test_thoughts_rewards_and_advantages_equal_the_derived_ones(r):
    i, out = r["inputs"], r["outputs"]
    reward_N = torch.tensor(i["group_outcome_rewards"], dtype=torch.float64)
    labels = [bool(v) for v in i["step_labels_incl_answer_step"]]
    thoughts = merge(labels)
    assert [[int(t.is_key), list(range(t.first, t.last + 1))] for t in thoughts] == out["thoughts"]

    row, group_N = i["rollout_index"], torch.zeros(len(reward_N), dtype=torch.long)
    rhat_N = grpo_advantage(reward_N, group_N, GrpoOptions())
    assert float(rhat_N[row]) == pytest.approx(out["r_hat_outcome"], rel=1e-6)
    rewards = thought_rewards(labels, bool(reward_N[row] > 0), out["r_hat_outcome"], out["r_c"])
    assert rewards == pytest.approx(out["thought_rewards"])
    assert by_cumulative_sum(rewards) == pytest.approx(out["advantage_by_cumsum"])

    # one token a step, and one token for each of the others
    length_N = torch.ones(len(reward_N), dtype=torch.long)
    length_N[row] = len(labels)
    label_R = torch.tensor([key for n in range(len(length_N)) for key in (labels if n == row else [True])]).long()
    inputs = AdvantageInputs(reward_N, group_N, length_N, token_label_R=label_R, correct_N=reward_N > 0)
    advantage_R = ADVANTAGES.get("tp_grpo").compute(inputs, TpGrpoOptions(alpha=i["alpha"]))
    first_tokens = [row + thought.first for thought in thoughts]
    torch.testing.assert_close(
        advantage_R[first_tokens], torch.tensor(out["advantage_direct"], dtype=torch.float64), **CLOSE
    )
