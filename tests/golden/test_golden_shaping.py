"""Length and repetition rewards, R1-Reward's composition and reward ensembles against vectors from their references."""

import pytest
import torch

from prm.ensemble import EnsembleOptions, combine
from tests.golden.vectors import CLOSE, each
from trainer.shaping.consistency import consistency_reward
from trainer.shaping.cosine import CosineOptions, cosine_reward
from trainer.shaping.repetition import dense_penalty, sparse_penalty

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("r", each("demystify_cosine_reward"))
def test_the_cosine_reward_equals_the_reference(r):
    i = r["inputs"]
    options = CosineOptions(
        correct_at_0=i["max_value_correct"], correct_at_max=i["min_value_correct"],
        wrong_at_0=i["min_value_wrong"], wrong_at_max=i["max_value_wrong"],
        exceed=i["exceed_length"], margin_tokens=i["max_len_margin"],
    )  # fmt: skip
    found = [
        cosine_reward(n, bool(c), i["max_len"], options) for n, c in zip(i["gen_lengths"], i["correct"], strict=True)
    ]
    assert found == pytest.approx(r["outputs"]["rewards"], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("r", each("demystify_repetition_penalty", keep=lambda r: "tokens" in r["inputs"]))
def test_the_dense_repetition_penalty_equals_the_reference(r):
    i = r["inputs"]
    found = dense_penalty(i["tokens"], i["ngram_size"], i["penalty"], i["only_start"])
    padded = found + [0.0] * (i["num_actions"] - len(found))
    assert padded == pytest.approx(r["outputs"]["token_penalty"], abs=1e-8)


@pytest.mark.parametrize("r", each("demystify_repetition_penalty", keep=lambda r: "text" in r["inputs"]))
def test_the_sparse_repetition_penalty_equals_the_reference_on_words(r):
    i = r["inputs"]
    found = sparse_penalty(i["text"].split(), i["ngram_size"], i["max_penalty"])
    assert found == pytest.approx(r["outputs"]["penalty"], abs=1e-12)


@pytest.mark.parametrize("r", each("ensemble_wco_uwo"))
def test_ensembles_equal_the_reference_whose_two_paths_divide_the_variance_differently(r):
    i = r["inputs"]
    path, _, name = r["case"].partition("_")
    objective = next(o for word, o in (("mean", "mean"), ("worst", "wco"), ("uncertainty", "uwo")) if word in name)
    ddof = {"ppo": 1, "bon": 0}[path]
    options = EnsembleOptions(objective=objective, coef=i["coeff"] or 0.0, ddof=ddof)
    found = combine(torch.tensor(i["member_scores"]), options)
    torch.testing.assert_close(found, torch.tensor(r["outputs"]["score"]), **CLOSE)


@pytest.mark.parametrize("r", each("r1_reward_reward_formula"))
def test_the_consistency_reward_equals_the_formula(r):
    i = r["inputs"]
    found = consistency_reward(bool(i["format"]), bool(i["acc"]), i["consistency"])
    assert found == pytest.approx(r["outputs"]["reward"])
