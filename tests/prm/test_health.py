"""Learned rewards against outcomes and against the line oracle."""

import pytest
import torch

from data.example import Example, Message
from prm.health import LineOracle, RewardedLine, outcome_health, pairwise_accuracy
from tests.helpers import EOS, tokenizer, trajectory

EXAMPLE = Example(
    "q",
    (Message("user", "3+4-5="),),
    gold="2",
    meta={"task": "chain", "expression": "3+4-5", "modulus": 10, "precedence": "left_to_right"},
)


def written(text):
    ids = [*tokenizer()(text, add_special_tokens=False)["input_ids"], EOS]
    return trajectory([5], ids, text=text)


def test_a_lines_reward_is_the_sum_over_its_tokens_and_the_end_belongs_to_the_last():
    t = written("7-5\n2\n#2")
    reward_T = torch.tensor([1.0, 1, 1, 1, 10, 10, 100, 100, 1000])
    assert LineOracle(tokenizer()).lines(t, EXAMPLE, reward_T) == [
        RewardedLine(4.0, True, False),
        RewardedLine(20.0, True, False),
        RewardedLine(1200.0, True, False),
    ]


def test_lines_after_the_first_wrong_one_are_known_as_such():
    t = written("8-5\n3\n#3")
    found = LineOracle(tokenizer()).lines(t, EXAMPLE, torch.zeros(9))
    assert [(line.right, line.after_error) for line in found] == [(False, False), (False, True), (False, True)]


def test_the_areas_with_and_without_what_follows_an_error():
    good, bad = written("7-5\n2\n#2"), written("8-5\n3\n#3")
    rewards = [torch.tensor([0.25] * 4 + [0.5] * 2 + [0.5] * 3), torch.tensor([-1.0] * 4 + [2.0] * 5)]
    found = LineOracle(tokenizer()).health([good, bad], [EXAMPLE] * 2, rewards)
    assert found["line_auc_to_error"] == 1.0
    assert found["line_auc"] == pytest.approx(1 / 3)


def test_without_an_oracle_or_with_another_text_there_are_no_lines():
    oracle, t = LineOracle(tokenizer()), written("7-5\n2\n#2")
    plain = Example("q", (Message("user", "?"),), gold="1", meta={"task": "essay"})
    assert oracle.lines(t, plain, torch.zeros(9)) == []
    t.text += "x"
    assert oracle.lines(t, EXAMPLE, torch.zeros(9)) == []
    assert oracle.lines(written(""), EXAMPLE, torch.zeros(1)) == []
    assert oracle.health([t], [EXAMPLE], [torch.zeros(9)]) == {}


def test_health_of_outcomes():
    logit, label = torch.tensor([2.0, -1.0, 0.5, -3.0]).double(), torch.tensor([1.0, 0.0, 0.0, 0.0]).double()
    found = outcome_health(logit, label, torch.tensor([0, 0, 1, 1]))
    assert found["accuracy"] == 0.75
    assert found["auc"] == 1.0
    assert found["pairwise_accuracy"] == 0.75  # the second group has one label only: 1/2
    p = logit.sigmoid()
    assert found["brier"] == pytest.approx(float(((p - label) ** 2).mean()))
    assert found["ce"] == pytest.approx(float(-(label * p.log() + (1 - label) * (1 - p).log()).mean()))
    assert "auc" not in outcome_health(logit, torch.ones(4).double(), torch.zeros(4))


def test_pairs_weigh_by_the_difference_of_their_labels_and_ties_count_half():
    group = torch.zeros(3)
    label = torch.tensor([1.0, 0.5, 0.0])
    assert pairwise_accuracy(torch.tensor([0.0, 1.0, -1.0]), label, group) == pytest.approx(1.5 / 2)
    assert pairwise_accuracy(torch.zeros(3), label, group) == 0.5
