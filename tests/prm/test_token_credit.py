"""OREAL's token-level reward model: where its score is read, its weights, its pairs, what it learns and what it leaves
alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForTokenClassification

from data.example import Example, Message
from prm.signal import Kept, Signal
from prm.token_credit import TokenCredit, choose_pairs, success_probability, token_weight
from rollout.options import OptimConfig
from tests.helpers import make_config, make_learner, random_trajectories, sharpen, source_context, trajectory
from verifiers.verdict import Status, Verdict

OPTIM = OptimConfig(lr=3e-3, grad_clip=1e9, eps=1e-3)


def options(**changes: Any) -> TokenCredit.Options:
    return TokenCredit.Options(optim=OPTIM, **changes)


def make_source(config: dict[str, Any] | None = None, **changes: Any) -> TokenCredit:
    source = TokenCredit(options(**changes), source_context(None, make_config(config)))  # type: ignore[arg-type]
    sharpen(source.model.trunk)
    sharpen(source.model.head)
    return source


def kept(correct: list[bool], samples: int = 2, step: int = 0, score: float = 1.0) -> Kept:
    trajectories = random_trajectories(len(correct) // samples, samples)
    verdicts = [Verdict(score if c else 0.0, Status.CORRECT if c else Status.WRONG) for c in correct]
    examples = [Example(t.example_id, (Message("user", "?"),), "1") for t in trajectories]
    return Kept(trajectories, examples, torch.tensor([v.score for v in verdicts]), verdicts, step)


MIXED = [True, False] * 4


# ---- where the score is read -------------------------------------


@pytest.mark.parametrize("max_tokens", [1, 25, 4096])
def test_a_score_is_that_of_the_exported_model_before_its_token(tmp_path: Path, max_tokens: int) -> None:
    source = make_source({"train.max_tokens_per_microbatch": max_tokens})
    source.model.export_hf(tmp_path)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    trajectories = random_trajectories()
    for t, found in zip(trajectories, source.model.outputs(trajectories), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([t.prompt_ids + t.response_ids])).logits[0, :, 0]
        torch.testing.assert_close(found, logits[len(t.prompt_ids) - 1 : -1], atol=1e-5, rtol=0)
        if len(found) > 1:  # read after its token it is another number
            assert not torch.allclose(found, logits[len(t.prompt_ids) :], atol=1e-3)


def test_a_token_does_not_change_its_own_score() -> None:
    source = make_source()
    a, b = source.model.outputs([trajectory([5, 6], [7, 8, 9]), trajectory([5, 6], [7, 30, 9])])
    torch.testing.assert_close(a[:2], b[:2])
    assert abs(float(a[2] - b[2])) > 1e-4


def test_the_model_starts_as_the_policy_with_a_head_without_bias() -> None:
    learner, source = make_learner(), make_source()
    source.start_from(learner.weights())
    for name, tensor in source.model.trunk.state_dict().items():
        assert torch.equal(tensor, learner.model.model.state_dict()[name])
    assert source.model.head is not None
    assert source.model.head.bias is None
    assert bool(source.model.head.weight.any())


# ---- weights -----------------------------------------------------

SCORES = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_no_token_has_both_weights_and_none_is_outside_of_0_and_1(scores: list[float]) -> None:
    score = torch.tensor(scores)
    positive, negative = token_weight(score, True, options()), token_weight(score, False, options())
    assert not bool((positive * negative).any())
    for weight in (positive, negative):
        assert bool(((weight >= 0) & (weight <= 1)).all())


@settings(max_examples=60, deadline=None)
@given(SCORES, st.floats(0.01, 1))
def test_the_highest_share_has_one_full_weight_and_at_most_its_number_of_tokens(
    scores: list[float], share: float
) -> None:
    weight = token_weight(torch.tensor(scores), True, options(weights="top_k", correct_share=share))
    assert float(weight.max()) == 1.0
    assert float(weight.min()) >= 0.0
    assert int((weight > 0).sum()) <= max(1, int(len(scores) * share))


def test_scores_of_0_weigh_nothing() -> None:
    for correct in (True, False):
        assert not bool(token_weight(torch.zeros(5), correct, options()).any())


def test_a_sure_model_gives_full_weight_to_correct_and_none_to_wrong_responses() -> None:
    assert token_weight(torch.full((3,), 50.0), True, options()).tolist() == [1.0, 1.0, 1.0]
    assert token_weight(torch.full((3,), 50.0), False, options()).tolist() == [0.0, 0.0, 0.0]


def test_the_weight_is_of_the_mean_so_far_and_has_no_gradient() -> None:
    score = torch.tensor([2.0, -4.0, 8.0], requires_grad=True)
    probability = success_probability(score)
    torch.testing.assert_close(probability, torch.tensor([2.0, -1.0, 2.0]).sigmoid())
    assert not probability.requires_grad
    torch.testing.assert_close(token_weight(score, True, options()), (2 * probability - 1).clamp(min=0))


# ---- pairs -------------------------------------------------------


def test_a_pair_is_one_correct_and_one_wrong_response_of_each_group_that_has_both() -> None:
    group = torch.arange(5).repeat_interleave(4)
    correct = torch.tensor([1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0]).bool()
    chosen = choose_pairs(correct, group, 3)
    for g, both in enumerate([True, False, False, True, True]):
        own = chosen & (group == g)
        assert (int((own & correct).sum()), int((own & ~correct).sum())) == ((1, 1) if both else (0, 0))


def test_pairs_follow_the_seed_and_reach_every_response() -> None:
    group, correct = torch.zeros(8, dtype=torch.long), torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]).bool()
    drawn = torch.stack([choose_pairs(correct, group, seed) for seed in range(60)])
    assert torch.equal(drawn[7], choose_pairs(correct, group, 7))
    assert bool(drawn.any(0).all())


def test_pairs_change_from_step_to_step_and_with_the_seed_of_the_run() -> None:
    correct = [True, True, True, True, False, False, False, False] * 3

    def drawn(step: int, seed: int = 0) -> list[bool]:
        included = make_source({"seed": seed}).credit(kept(correct, 8, step)).included_N
        assert included is not None
        return included.tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1) != drawn(1, seed=1)


def test_groups_that_are_all_correct_or_all_wrong_take_no_part() -> None:
    source = make_source()
    signal = source.credit(kept([True, True, False, False]))
    assert signal.included_N is not None
    assert not bool(signal.included_N.any())
    assert source.learn(kept([True, True, False, False]), signal) == {}
    assert source.model.optimizer_steps == 0


def test_fractional_rewards_do_not_split_pairs_weights_and_labels() -> None:
    """The reference pairs by reward == 1, weighs by reward > 0 and labels by int(reward): half marks are all three."""
    half, full = kept(MIXED, score=0.5), kept(MIXED, score=1.0)
    a, b = make_source(), make_source()
    of_half, of_full = a.credit(half), b.credit(full)
    assert of_half.included_N is not None
    assert int(of_half.included_N.sum()) == 8
    assert torch.equal(torch.cat(of_half.token_weight or []), torch.cat(of_full.token_weight or []))
    assert a.learn(half, of_half) == b.learn(full, of_full)


def test_without_pairs_everybody_takes_part() -> None:
    signal = make_source(pairs=False).credit(kept([True, True, False, False]))
    assert signal.included_N is not None
    assert bool(signal.included_N.all())


def test_those_who_take_no_part_have_no_weight_and_are_not_asked() -> None:
    source = make_source()
    asked: list[int] = []
    outputs = source.model.outputs

    def count(sequences: Any) -> Any:
        asked.append(len(sequences))
        return outputs(sequences)

    source.model.outputs = count  # type: ignore[method-assign]
    signal = source.credit(kept([True, True, True, False] * 2, 4))
    assert asked == [4]
    assert signal.included_N is not None
    assert not any(bool(w.any()) for w, i in zip(signal.token_weight or [], signal.included_N, strict=True) if not i)


# ---- learning ----------------------------------------------------


def test_the_model_learns_to_tell_correct_from_wrong() -> None:
    source, batch = make_source(), kept(MIXED)
    seen = [source.learn(batch, source.credit(batch)) for _ in range(25)]
    assert seen[-1]["loss"] < 0.5 * seen[0]["loss"]
    assert seen[-1]["accuracy"] == 1.0
    assert seen[-1]["brier"] < seen[0]["brier"]


def test_the_loss_is_the_mean_over_responses_of_the_entropy_of_the_mean_score() -> None:
    source, batch = make_source(), kept(MIXED)
    mean = torch.stack([s.mean() for s in source.model.outputs(batch.trajectories)])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(mean, batch.correct_N.float())
    assert source.learn(batch, source.credit(batch))["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_the_update_does_not_depend_on_micro_batches() -> None:
    after = []
    for max_tokens in (4096, 25):
        source, batch = make_source({"train.max_tokens_per_microbatch": max_tokens}), kept(MIXED)
        source.learn(batch, source.credit(batch))
        after.append(source.model.weights())
    for name, tensor in after[0].items():
        torch.testing.assert_close(tensor, after[1][name], atol=1e-6, rtol=1e-5)


def test_a_batch_of_one_class_trains_without_a_pair() -> None:
    for correct in ([True] * 4, [False] * 4):
        source, batch = make_source(pairs=False), kept(correct)
        metrics = source.learn(batch, source.credit(batch))
        assert 0 < metrics["loss"] < float("inf")


def test_neither_learning_touches_the_other() -> None:
    learner, source, batch = make_learner(), make_source(), kept(MIXED)
    source.start_from(learner.weights())
    policy = {n: t.clone() for n, t in learner.weights().items()}
    model = {n: t.clone() for n, t in source.model.weights().items()}
    signal = source.credit(batch)
    assert not any(w.requires_grad for w in signal.token_weight or [])
    assert all(torch.equal(t, model[n]) for n, t in source.model.weights().items())  # asking does not teach
    source.learn(batch, signal)
    assert all(torch.equal(t, policy[n]) for n, t in learner.weights().items())
    assert any(not torch.equal(t, model[n]) for n, t in source.model.weights().items())
    assert all(p.grad is None for p in learner.model.parameters())


def test_a_checkpoint_holds_the_model_exactly(tmp_path: Path) -> None:
    batch = kept(MIXED)
    first, second = make_source(), make_source({"seed": 9})
    first.learn(batch, first.credit(batch))
    first.model.export_hf(tmp_path)
    second.model.load(tmp_path, copy.deepcopy(first.model.state_dict()))  # as from a file
    second.context = first.context
    for source in (first, second):
        source.learn(batch, source.credit(batch))
    assert all(torch.equal(t, second.model.weights()[n]) for n, t in first.model.weights().items())


def test_its_health_is_reported() -> None:
    source, batch = make_source(), kept(MIXED)
    signal = source.credit(batch)
    assert {"included_share", "weight_correct", "weight_wrong", "silent_correct_share"} <= signal.metrics.keys()
    assert {"loss", "accuracy", "brier", "grad_norm", "lr"} <= source.learn(batch, signal).keys()


# ---- the signal --------------------------------------------------


def test_who_takes_part_survives_a_subset_and_a_concatenation() -> None:
    a = Signal(torch.zeros(2), included_N=torch.tensor([True, False]))
    b = Signal(torch.zeros(1), included_N=torch.tensor([True]))
    both = Signal.concat([a, b])
    assert both.included_N is not None
    assert both.included_N.tolist() == [True, False, True]
    chosen = both.select([1, 2]).included_N
    assert chosen is not None
    assert chosen.tolist() == [False, True]
