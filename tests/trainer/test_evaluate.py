"""Metrics of an evaluation: unbiased, deterministic, and honest about what could not be judged."""

import itertools
import math

import pytest
import torch

from data.example import Example, Message
from rollout.engine import SamplingParams
from rollout.trajectory import Finish
from tests.helpers import make_config, make_engine, tiny_model, trajectory
from trainer.evaluate import (
    bootstrap,
    chosen_scores,
    evaluate,
    majority,
    pass_at_k,
    summarise,
    summarise_chosen,
    verify_trajectories,
)
from verifiers import Runner
from verifiers.errors import ConfigError, RunError
from verifiers.verdict import Status, Verdict


def right(answer="a"):
    return Verdict(1.0, Status.CORRECT, answer=answer)


def wrong(answer="b"):
    return Verdict(0.0, Status.WRONG, answer=answer)


FAULT = Verdict(None, Status.VERIFIER_FAULT)
SILENT = Verdict(0.0, Status.NO_ANSWER)


# ---- pass@k ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_draws_of_k_that_hold_a_correct_sample(samples):
    for correct in range(samples + 1):
        row = [1] * correct + [0] * (samples - correct)
        for k in range(1, samples + 1):
            draws = list(itertools.combinations(row, k))
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(max, draws)) / len(draws), abs=1e-12)


def test_pass_at_1_is_the_mean_and_large_counts_do_not_overflow():
    assert pass_at_k(7, 3, 1) == pytest.approx(3 / 7)
    assert 0 < pass_at_k(100_000, 1, 50_000) < 1
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 0, 8), (4, 5, 1), (4, -1, 1), (4, 2, 0)])
def test_impossible_counts_are_refused(samples, correct, k):
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k(samples, correct, k)


# ---- maj@k ----------------------------------------------------------------------------------------------------------


def test_the_most_frequent_answer_decides():
    assert majority([1, 1, 0], ["a", "a", "b"]) == 1.0
    assert majority([1, 0, 0], ["a", "b", "b"]) == 0.0


def test_a_tie_counts_as_the_chance_of_breaking_it_right():
    assert majority([1, 0], ["a", "b"]) == 0.5
    assert majority([1, 0, 0], ["a", "b", "c"]) == pytest.approx(1 / 3)
    assert majority([0, 0, 1, 1, 0, 0], ["x", "x", "a", "a", "y", "z"]) == 0.5


def test_samples_without_an_answer_have_no_vote():
    assert majority([0, 0, 0, 1], [None, None, None, "a"]) == 1.0
    assert majority([0, 0], [None, None]) == 0.0
    assert majority([], []) == 0.0


# ---- intervals ---------------------------------------------------


def test_the_interval_is_deterministic_in_the_seed_and_holds_the_mean():
    values = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    a, b, c = (bootstrap(values, 1000, s) for s in (1, 1, 2))
    assert a == b != c
    assert a.low < a.value < a.high
    assert a.value == pytest.approx(sum(values) / 50)


def test_the_interval_is_as_wide_as_the_normal_approximation():
    values = torch.rand(400, generator=torch.Generator().manual_seed(3)).double()
    found = bootstrap(values.tolist(), 4000, 0)
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(4)
    covered = 0
    for trial in range(200):
        values = torch.bernoulli(torch.full((100,), 0.3), generator=generator).tolist()
        found = bootstrap(values, 300, trial)
        covered += found.low <= 0.3 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_equal_values_have_an_interval_of_no_width():
    found = bootstrap([1.0] * 8, 100, 0)
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


# ---- summaries ---------------------------------------------------


def test_metrics_of_full_rows_by_hand():
    rows = [[right(), right(), wrong(), SILENT], [wrong("b"), wrong("b"), wrong("c"), right()]]
    found = {n: e.value for n, e in summarise(rows, 100, 0).items()}
    assert found.keys() == {"avg@4", "pass@2", "pass@4", "maj@4"}
    assert found["avg@4"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["pass@2"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert found["pass@4"] == 1.0
    assert found["maj@4"] == 0.5


def test_a_fault_is_left_out_of_its_prompt_and_never_counts_as_wrong():
    rows = [[right(), right(), right(), FAULT], [FAULT] * 4, [wrong()] * 4]
    found = {n: e.value for n, e in summarise(rows, 100, 0).items()}
    assert found["avg@4"] == 0.5
    assert found["pass@2"] == 0.5
    assert found["pass@4"] == 0.0  # the first prompt has only three judged samples
    assert found["maj@4"] == 0.5


def test_pass_at_k_disappears_where_no_prompt_has_k_judged_samples():
    assert summarise([[right(), FAULT]], 100, 0).keys() == {"avg@2", "maj@2"}


def test_one_sample_a_prompt_gives_the_mean_alone():
    assert summarise([[right()], [wrong()]], 100, 0).keys() == {"avg@1"}


def test_a_score_between_zero_and_one_counts_for_the_mean_but_is_not_a_pass():
    half = Verdict(0.5, Status.WRONG, answer="b")
    found = {n: e.value for n, e in summarise([[half, half]], 100, 0).items()}
    assert found == {"avg@2": 0.5, "pass@2": 0.0, "maj@2": 0.5}


def test_an_evaluation_of_faults_only_is_an_error_not_a_zero():
    with pytest.raises(RunError, match="could be judged"):
        summarise([[FAULT], [FAULT]], 100, 0)


# ---- chosen answers ----------------------------------------------

A6B3C1 = ["a"] * 6 + ["b"] * 3 + ["c"]
REWARDS = [0.2] * 6 + [0.6] * 3 + [0.9]


def test_best_of_n_weighted_majority_and_best_of_majority_choose_differently():
    """The published example: c has the best sample, b the largest sum of weights, a the most votes."""
    for answer, best_of in (("a", set()), ("b", {"wmaj", "bom"}), ("c", {"bon"})):
        scores = [float(x == answer) for x in A6B3C1]
        found = chosen_scores(scores, A6B3C1, REWARDS, None)
        assert found == {method: float(method in best_of) for method in ("bon", "wmaj", "bom")}


def test_a_higher_alpha_asks_more_samples_of_an_answer_and_two_are_always_asked():
    right_a, right_b = ([float(x == answer) for x in A6B3C1] for answer in "ab")
    assert chosen_scores(right_a, A6B3C1, REWARDS, 0.5)["bom"] == 1.0
    for alpha in (None, 0.11, 0.3):
        assert chosen_scores(right_b, A6B3C1, REWARDS, alpha)["bom"] == 1.0


def test_one_judged_sample_is_chosen_and_no_answer_at_all_is_worth_nothing():
    assert chosen_scores([1.0], ["a"], [0.1], 0.5) == {"bon": 1.0, "wmaj": 1.0, "bom": 1.0}
    assert chosen_scores([0.0, 0.0], [None, None], [0.9, 0.9], None) == {"bon": 0.0, "wmaj": 0.0, "bom": 0.0}


def test_a_chosen_answer_is_worth_the_mean_of_its_samples():
    assert chosen_scores([1.0, 0.5, 0.0], ["a", "a", "b"], [0.9, 0.1, 0.5], None)["bon"] == 0.75


def test_chosen_answers_of_prompts_with_faults_by_hand():
    rows = [[right("a"), wrong("b"), wrong("b"), FAULT], [FAULT] * 4, [wrong("b"), right("a"), SILENT, wrong("c")]]
    rewards = [[0.5, 0.2, 0.2, 9.0], [1.0] * 4, [0.3, 0.4, 0.9, 0.2]]
    found = {n: e.value for n, e in summarise_chosen(rows, rewards, None, 100, 0).items()}
    # the second prompt has no answer given twice: Best-of-Majority takes what was sampled first
    assert found == {"bon@4": 1.0, "wmaj@4": 1.0, "bom@4": 0.0}


def test_votes_are_counted_by_mathematical_equivalence():
    """Four spellings of one half outvote three samples of one third."""
    spelled = [r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{\dfrac24}", r"\boxed{50\%}"] + [r"\boxed{1/3}"] * 3
    samples = [trajectory([1], [2], text=text) for text in spelled]
    half = [Example(f"q{i}", (Message("user", "?"),), gold="1/2") for i in range(7)]
    with Runner("math", {}) as runner:
        verdicts = verify_trajectories(runner, samples, half)
    assert len({v.answer for v in verdicts}) == 2
    assert summarise([verdicts], 100, 0)["maj@7"].value == 1.0
    chosen = summarise_chosen([verdicts], [[0.1] * 4 + [0.12] * 3], None, 100, 0)
    assert {n: e.value for n, e in chosen.items()} == {"bon@7": 0.0, "wmaj@7": 1.0, "bom@7": 0.0}


@pytest.mark.parametrize(("options", "match"), [
    ({"scorer": "mean_logprob", "samples_per_prompt": 1}, "at least 2"),
    ({"bom_alpha": 0.5}, "needs eval.scorer"),
    ({"scorer": "mean_logprob", "bom_alpha": 0.25}, "ever too rare"),
])  # fmt: skip
def test_settings_that_choose_nothing_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        make_config({"eval": options})


# ---- with an engine ----------------------------------------------


def examples(n):
    return [Example(f"q{i}", (Message("user", "1+1"),), gold="2") for i in range(n)]


def test_a_response_that_hit_the_limit_is_judged_but_never_right():
    cut, whole = trajectory([1], [2], finish=Finish.LENGTH, text="2"), trajectory([1], [2], text="2")
    with Runner("exact", {}) as runner:
        verdicts = verify_trajectories(runner, [cut, whole], examples(2))
    assert [(v.score, v.status) for v in verdicts] == [(0.0, Status.TRUNCATED), (1.0, Status.CORRECT)]


def test_an_evaluation_is_the_same_each_time_and_knows_every_trajectory():
    config = make_config({"eval": {"samples_per_prompt": 3, "max_response_tokens": 8}})
    engine = make_engine(tiny_model())
    ids = {e.id: [5, 6, 7 + i] for i, e in enumerate(examples(4))}
    with Runner("exact", {}) as runner:
        first, second, other = (evaluate(config, engine, runner, examples(4), ids, name) for name in ("a", "a", "b"))
    assert first[0] == second[0]
    metrics, facts, pairs = first
    assert metrics.keys() == {"avg@3", "pass@2", "maj@3"}
    assert len(pairs) == 12
    assert sum(v for n, v in facts.items() if n.startswith("verdict/")) == pytest.approx(1.0)
    assert facts["response/length_mean"] == sum(t.num_response_tokens for t, _ in pairs) / 12
    assert [t.response_ids for t, _ in pairs] != [t.response_ids for t, _ in other[2]]
    again = engine.generate([], 1, SamplingParams(8), 0)
    assert again == []


def test_a_scorer_adds_the_answers_it_chooses_and_changes_nothing_else():
    engine, ids = make_engine(tiny_model()), {e.id: [5, 6, 7 + i] for i, e in enumerate(examples(4))}
    found = []
    for scorer in (None, "mean_logprob"):
        config = make_config({"eval": {"samples_per_prompt": 3, "max_response_tokens": 8, "scorer": scorer}})
        with Runner("exact", {}) as runner:
            found.append(evaluate(config, engine, runner, examples(4), ids, "a"))
    (plain, facts, pairs), (metrics, other_facts, other_pairs) = found
    assert metrics.keys() - plain.keys() == {"bon@3", "wmaj@3", "bom@3"}
    assert {n: metrics[n] for n in plain} == plain
    assert (facts, [t for t, _ in pairs]) == (other_facts, [t for t, _ in other_pairs])
    best = []
    for prompt in range(4):
        mine = [(t, v) for t, v in pairs if t.group == prompt and v.answer is not None]
        most_likely = max(mine, key=lambda row: sum(row[0].logp_model) / len(row[0].logp_model), default=None)
        best.append(most_likely[1].score if most_likely else 0.0)
    assert metrics["bon@3"].value == sum(best) / 4


def test_there_is_no_majority_of_programs():
    right, wrong = Verdict(1.0, Status.CORRECT, ""), Verdict(0.0, Status.WRONG, "")
    assert "maj@2" not in summarise([[right, wrong]], 100, 0)
    assert "maj@2" in summarise([[wrong, wrong]], 100, 0)
    assert "maj@2" in summarise([[Verdict(1.0, Status.CORRECT, "", answer="4"), wrong]], 100, 0)
