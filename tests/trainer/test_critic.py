"""The critic: what it predicts, what it learns, and that a checkpoint holds all of it."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification

from prm.optim import NonFiniteError
from tests.helpers import (
    make_config,
    make_learner,
    model_setup,
    random_trajectories,
    sharpen,
    tokenizer,
    training_batch,
    weigh,
)
from tests.trainer.test_weigh import rollouts
from trainer.advantages.base import ADVANTAGES
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.compose import load_recipe
from trainer.config import Config
from trainer.critic import Critic
from trainer.learner import Learner, TrainingBatch
from verifiers.errors import ConfigError
from verifiers.options import parse_options

OVERRIDES: dict[str, Any] = {
    "objective.advantage": {"kind": "gae"},
    "objective.zero_variance": {"drop": False},
    "critic": {"optim": {"lr": 3e-3, "grad_clip": 1e9}},
}


def make_critic(overrides: dict[str, Any] | None = None, sharp: bool = True) -> Critic:
    config = make_config(OVERRIDES | (overrides or {}))
    critic = Critic(config, model_setup(config))
    if sharp:
        sharpen(critic.trunk)
        sharpen(critic.head)
    return critic


def judged_batch(critic: Critic, included: list[bool] | None = None) -> TrainingBatch:
    """Returns that can be learnt, values as they are now."""
    batch = training_batch(random_trajectories(), included=included)
    batch.values = critic.values(batch.trajectories)
    batch.returns = [torch.linspace(0, 1, t.num_response_tokens) + t.sample for t in batch.trajectories]
    return batch


# ---- values ------------------------------------------------------


@pytest.mark.invariance
@pytest.mark.parametrize("max_tokens", [1, 25, 4096])
def test_values_are_those_of_the_exported_model_before_each_token(tmp_path: Path, max_tokens: int) -> None:
    critic = make_critic({"train.max_tokens_per_microbatch": max_tokens})
    critic.export_hf(tmp_path)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    trajectories = random_trajectories()
    for t, found in zip(trajectories, critic.values(trajectories), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([t.prompt_ids + t.response_ids])).logits[0, :, 0]
        torch.testing.assert_close(found, logits[len(t.prompt_ids) - 1 : -1], atol=1e-5, rtol=0)


def test_a_new_critic_is_the_policys_trunk_and_predicts_nothing() -> None:
    critic, learner = make_critic(sharp=False), make_learner()
    critic.start_from(learner.weights())
    for name, tensor in critic.trunk.state_dict().items():
        assert torch.equal(tensor, learner.model.model.state_dict()[name])
    assert all(not bool(v.any()) for v in critic.values(random_trajectories()))


def test_learning_leaves_the_policy_alone() -> None:
    critic, learner = make_critic(), make_learner()
    critic.start_from(learner.weights())
    before = {n: t.clone() for n, t in learner.model.state_dict().items()}
    critic.update(judged_batch(critic))
    assert all(torch.equal(t, before[n]) for n, t in learner.model.state_dict().items())


# ---- learning ----------------------------------------------------


def test_values_approach_the_returns() -> None:
    critic = make_critic({"critic": {"optim": {"lr": 3e-3, "grad_clip": 1e9}, "clip": None}})
    losses = [critic.update(judged_batch(critic))["loss"] for _ in range(30)]
    assert losses[-1] < 0.2 * losses[0]
    after = judged_batch(critic)
    error = torch.cat(after.values) - torch.cat(after.returns)
    assert float(error.square().mean()) < 0.2 * float(torch.cat(after.returns).var())


def test_the_loss_is_half_the_squared_error_over_the_tokens_that_take_part() -> None:
    critic = make_critic()
    batch = judged_batch(critic, included=[True] * 5 + [False] * 3)
    errors = torch.cat([v - r for v, r in zip(batch.values[:5], batch.returns[:5], strict=True)])
    assert critic.update(batch)["loss"] == pytest.approx(0.5 * float(errors.square().mean()), rel=1e-5)


def test_the_update_does_not_depend_on_micro_batches() -> None:
    after = []
    for max_tokens in (4096, 25):
        critic = make_critic({"train.max_tokens_per_microbatch": max_tokens, "optim.eps": 1e-3,
                              "critic": {"optim": {"lr": 3e-3, "eps": 1e-3, "grad_clip": 1e9}}})  # fmt: skip
        critic.update(judged_batch(critic))
        after.append(critic.weights())
    for name, tensor in after[0].items():
        torch.testing.assert_close(tensor, after[1][name], atol=1e-6, rtol=1e-5)


def test_a_value_that_left_its_clip_is_not_pushed_further() -> None:
    """Several passes: with a tiny clip the later ones are mostly clipped."""
    overrides = {"train.epochs_per_batch": 4, "critic": {"optim": {"lr": 1e-2, "grad_clip": 1e9}, "clip": 1e-3}}
    critic = make_critic(overrides)
    assert critic.update(judged_batch(critic))["value_clip_fraction"] > 0.3
    assert critic.optimizer_steps == 4


def test_a_return_that_is_not_finite_stops_before_the_weights_change() -> None:
    critic = make_critic()
    before = {n: t.clone() for n, t in critic.weights().items()}
    batch = judged_batch(critic)
    batch.returns[3][0] = float("nan")
    with pytest.raises(NonFiniteError):
        critic.update(batch)
    assert all(torch.equal(t, before[n]) for n, t in critic.weights().items())


def test_advantages_are_those_of_gae_on_the_critics_values_and_targets_their_returns() -> None:
    critic = make_critic()
    estimator = ADVANTAGES.get("gae")
    options = parse_options(estimator.options, {"whiten": False, "lam": 0.5})
    session = SimpleNamespace(config=critic.config, advantage=estimator, advantage_options=options, shapings=[],
                              critic=critic)  # fmt: skip
    r = rollouts([[7, 9, 8], [9, 8]], [True, False])
    batch, _ = weigh(session, r)  # type: ignore[arg-type]
    v = critic.values(r.trajectories)[0].tolist()
    last = 1 - v[2]
    middle = v[2] - v[1] + 0.5 * last
    assert batch.advantages[0].tolist() == pytest.approx([v[1] - v[0] + 0.5 * middle, middle, last], rel=1e-5)
    assert batch.returns[0].tolist() == pytest.approx((batch.advantages[0] + batch.values[0]).tolist(), rel=1e-5)


# ---- state -------------------------------------------------------


def test_a_restored_critic_continues_bit_for_bit(tmp_path: Path) -> None:
    learner, critic = make_learner(OVERRIDES), make_critic()
    critic.update(judged_batch(critic))
    path = save_checkpoint(tmp_path, 1, learner, tokenizer(), {"step": 1}, {}, {"critic": critic})
    assert (path / "critic" / "config.json").exists()
    other = make_critic(sharp=False)
    assert load_checkpoint(path, make_learner(OVERRIDES), {"critic": other}) == {"step": 1}
    batch = judged_batch(critic)
    assert critic.update(copy.deepcopy(batch)) == other.update(batch)
    assert all(torch.equal(t, other.weights()[n]) for n, t in critic.weights().items())


# ---- a shared trunk ----------------------------------------------

SHARED = {**OVERRIDES, "critic": {"trunk": "shared", "loss_coef": 0.5}}


def shared_batch(learner: Learner, included: list[bool] | None = None) -> TrainingBatch:
    batch = training_batch(random_trajectories(), included=included)
    batch.values = learner.values(batch.trajectories)
    batch.returns = [torch.linspace(0, 1, t.num_response_tokens) + t.sample for t in batch.trajectories]
    return batch


def sharp_head(learner: Learner) -> Learner:
    assert learner.value_head is not None
    sharpen(learner.value_head)
    return learner


def test_a_shared_critic_starts_at_zero_and_adds_its_loss_to_the_policys() -> None:
    learner, plain = make_learner(SHARED), make_learner()
    batch = shared_batch(learner)
    assert all(not bool(v.any()) for v in batch.values)
    alone = plain.update(training_batch(random_trajectories()))
    both = learner.update(batch)
    expected = 0.5 * float(torch.cat(batch.returns).square().mean())  # values of 0, nothing clipped
    assert both["value_loss"] == pytest.approx(expected, rel=1e-5)
    assert both["loss"] == pytest.approx(alone["loss"] + 0.5 * expected, rel=1e-5)


def test_the_values_of_a_shared_critic_approach_the_returns() -> None:
    learner = make_learner({**SHARED, "critic": {"trunk": "shared", "loss_coef": 1.0, "clip": None}})
    losses = []
    for _ in range(30):
        batch = shared_batch(learner)
        batch.advantages = [torch.zeros_like(a) for a in batch.advantages]
        losses.append(learner.update(batch)["value_loss"])
    assert losses[-1] < 0.3 * losses[0]


def test_the_update_with_a_shared_critic_does_not_depend_on_micro_batches() -> None:
    after = []
    for max_tokens in (4096, 25):
        learner = sharp_head(make_learner({**SHARED, "train.max_tokens_per_microbatch": max_tokens, "optim.eps": 1e-3}))
        learner.update(shared_batch(learner, included=[True] * 5 + [False] * 3))
        assert learner.value_head is not None
        after.append({**learner.weights(), **learner.value_head.state_dict()})
    for name, tensor in after[0].items():
        torch.testing.assert_close(tensor, after[1][name], atol=1e-6, rtol=1e-5)


def test_a_restored_shared_critic_continues_bit_for_bit(tmp_path: Path) -> None:
    learner = sharp_head(make_learner(SHARED))
    learner.update(shared_batch(learner))
    path = save_checkpoint(tmp_path, 1, learner, tokenizer(), {"step": 1}, {})
    other = make_learner(SHARED)
    load_checkpoint(path, other)
    batch = shared_batch(learner)
    assert learner.update(copy.deepcopy(batch)) == other.update(shared_batch(other))
    for mine, theirs in zip(learner.trainable(), other.trainable(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_critic_beside_an_adapter_is_a_full_model_that_starts_as_the_merged_policy() -> None:
    lora = {"model.lora": {"rank": 2, "alpha": 4.0}}
    learner, critic = make_learner(lora), make_critic(lora, sharp=False)
    learner.update(training_batch(random_trajectories()))
    critic.start_from(learner.weights())
    for name, tensor in critic.trunk.state_dict().items():
        assert torch.equal(tensor, learner.weights()[f"model.{name}"])
    losses = [critic.update(judged_batch(critic))["loss"] for _ in range(3)]
    assert losses[-1] < losses[0]


# ---- recipes -----------------------------------------------------


def test_a_critic_that_nothing_uses_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not use its values"):
        load_recipe("quickstart", ["critic={optim: {lr: 1e-4}}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"critic": {"optim": {"lr": 1e-3}, "warmup_steps": 10}}, "leaves no round"),
        ({"critic": {"trunk": "own"}}, "needed there"),
        ({"critic": {"trunk": "shared", "optim": {"lr": 1e-3}}}, "a shared trunk has the policy's"),
        ({"critic": {"trunk": "shared", "warmup_steps": 2}}, "would train the policy"),
    ],
)
def test_impossible_critics_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(OVERRIDES | overrides)


def test_gae_is_accepted_with_a_critic() -> None:
    config: Config = load_recipe("quickstart", ["objective=ppo"])
    assert config.critic is not None
    assert config.critic.optim.lr == config.optim.lr
