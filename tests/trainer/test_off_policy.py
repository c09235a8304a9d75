"""Samples that are not exactly the policy's: several passes, stale rollouts, mismatch forms, and the KL as a reward."""

from types import SimpleNamespace

import pytest
import torch

from tests.helpers import (
    make_config,
    make_learner,
    random_trajectories,
    sharpen,
    training_batch,
    update_gradients,
    weigh,
)
from tests.trainer.test_weigh import rollouts
from trainer.advantages.base import ADVANTAGES
from trainer.learner import TrainingBatch
from trainer.objective import importance_weights, normalised_weights
from trainer.session import Session
from verifiers.errors import ConfigError
from verifiers.options import parse_options


def near_batch(included=None):
    """Samples of a policy close to that of `make_learner`: weights on both sides of 1, in every response."""
    batch = training_batch(random_trajectories(), included=included)
    generator = torch.Generator().manual_seed(3)
    for t, logp in zip(batch.trajectories, make_learner(double=True).logprobs(batch.trajectories), strict=True):
        noise = 0.6 * torch.randn(1, generator=generator) + 0.5 * torch.randn(len(logp), generator=generator)
        t.logp_sampled = (logp + noise).tolist()
    return batch


def log_ratios(learner, batch):
    """old - sampled of every response, before the update."""
    return [old - torch.tensor(t.logp_sampled) for old, t in zip(learner.logprobs(batch.trajectories),
                                                                 batch.trajectories, strict=True)]  # fmt: skip


def assert_same(a, b, tolerance=1e-9):
    assert a.keys() == b.keys()
    assert max(float(g.abs().max()) for g in a.values()) > 1e-4
    for name, gradient in a.items():
        torch.testing.assert_close(gradient, b[name], atol=tolerance, rtol=tolerance)


def written_out(learner, batch, weights, reduce="token"):
    """The gradient of plain REINFORCE, which is PPO's at ratio 1, with a weight on every token of [T_i]; a token of
    weight None is not in the loss."""
    twin = make_learner({"objective.loss": {"kind": "reinforce"}, "objective.reduce": reduce}, double=True)
    twin.model.load_state_dict(learner.model.state_dict())
    advantages = [a * w for a, w in zip(batch.advantages, weights, strict=True)]
    return update_gradients(twin, TrainingBatch(batch.trajectories, advantages, batch.included_N))[0]


# ---- passes over a batch -----------------------------------------


def test_every_epoch_takes_every_mini_batch_once():
    learner = make_learner({"train.epochs_per_batch": 3, "train.minibatches_per_step": 2})
    learner.update(training_batch(random_trajectories()))
    assert learner.optimizer_steps == 6
    assert learner.total_steps == 10 * 6


def test_the_second_pass_is_taken_against_the_policy_before_the_first():
    one, two = (make_learner({"train.epochs_per_batch": n, "optim.lr": 0.05}) for n in (1, 2))
    batch = training_batch(random_trajectories())
    assert one.update(batch)["approx_kl"] == 0.0
    assert abs(two.update(batch)["approx_kl"]) > 1e-3


# ---- stale rollouts ----------------------------------------------


def test_stale_rollouts_without_a_correction_are_refused():
    with pytest.raises(ConfigError, match=r"max_stale_steps=2 trains on samples of an older policy"):
        make_config({"train.max_stale_steps": 2})
    make_config({"train.max_stale_steps": 2, "objective.mismatch": {"kind": "truncated"}})


def test_the_engine_gets_new_weights_every_so_many_steps_and_the_metric_says_how_old_they_are():
    loaded = []
    session = SimpleNamespace(
        config=make_config({"train.max_stale_steps": 2, "objective.mismatch": {"kind": "truncated"}}),
        stale=None,
        ahead=None,
        learner=make_learner({"optim.lr": 0.01}),
        engine=SimpleNamespace(load_weights=lambda weights, version: loaded.append((version, weights))),
    )
    start = {n: t.clone() for n, t in session.learner.weights().items()}
    ages = []
    for step in range(7):
        Session.sync(session, step)  # type: ignore[arg-type]
        sampled = SimpleNamespace(trajectories=[SimpleNamespace(weights_version=loaded[-1][0])])
        ages.append(Session.staleness(session, step, sampled)["rollout/stale_steps"])  # type: ignore[arg-type]
        session.learner.update(training_batch(random_trajectories()))
    assert [version for version, _ in loaded] == [0, 0, 0, 3, 3, 3, 6]
    assert ages == [0, 1, 2, 0, 1, 2, 0]
    assert all(torch.equal(loaded[2][1][n], t) for n, t in start.items())  # a copy, not the weights being trained
    assert not all(torch.equal(loaded[3][1][n], t) for n, t in start.items())


def test_on_policy_runs_keep_no_copy_and_report_no_age():
    loaded = []
    engine = SimpleNamespace(load_weights=lambda weights, version: loaded.append(version))
    session = SimpleNamespace(config=make_config(), stale=None, ahead=None, learner=make_learner(), engine=engine)
    for step in range(3):
        Session.sync(session, step)  # type: ignore[arg-type]
    assert loaded == [0, 1, 2]
    assert session.stale is None
    assert Session.staleness(session, 3, SimpleNamespace()) == {}  # type: ignore[arg-type]


# ---- mismatch ----------------------------------------------------


def correction(**options):
    return {"objective.mismatch": options}


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize(("kind", "outside"), [("truncated", "truncate"), ("zeroed", "zero")])
@pytest.mark.parametrize("normalise", ["none", "token", "sequence"])
def test_weights_multiply_the_loss_of_their_token(level, kind, outside, normalise):
    batch = near_batch([True] * 6 + [False] * 2)
    learner = make_learner(correction(kind=kind, level=level, cap=1.6, floor=0.4, normalise=normalise), double=True)
    ratios = log_ratios(learner, batch)
    lengths = [len(r) for r in ratios]
    segment = torch.arange(8).repeat_interleave(torch.tensor(lengths))
    weights = importance_weights(torch.cat(ratios), segment, level, outside, 1.6, 0.4)
    if normalise != "none":  # over the trajectories that take part
        weights = normalised_weights(weights, segment, normalise, segment < 6)
    expected = written_out(learner, batch, weights.split(lengths))
    assert_same(update_gradients(learner, batch)[0], expected)


@pytest.mark.parametrize("reduce", ["token", "sequence", "sequence_sum"])
@pytest.mark.parametrize("level", ["token", "sequence_mean"])
def test_what_is_rejected_leaves_the_loss_and_its_counts(reduce, level):
    options = {"level": level, "statistic": "k1", "upper": 1.8, "lower": 0.5}
    batch = near_batch()
    learner = make_learner(correction(kind="none", rejection=options) | {"objective.reduce": reduce}, double=True)
    ratios = log_ratios(learner, batch)
    value = ratios if level == "token" else [r.mean().expand(len(r)) for r in ratios]
    keep = [((-v).exp() >= 0.5) & ((-v).exp() <= 1.8) for v in value]
    kept, total = sum(int(k.sum()) for k in keep), sum(len(k) for k in keep)
    assert 0 < kept < total
    found, metrics = update_gradients(learner, batch)
    assert metrics["rejected_share"] == pytest.approx(1 - kept / total)

    # the same divided by what is left: rescale the plain reduction's weights
    alive = sum(bool(k.any()) for k in keep)
    scale = {"token": lambda k: total / kept, "sequence": lambda k: len(k) / max(1, int(k.sum())) * 8 / alive,
             "sequence_sum": lambda k: 8 / alive}[reduce]  # fmt: skip
    expected = written_out(learner, batch, [k.double() * scale(k) for k in keep], reduce)
    assert_same(found, expected)


@pytest.mark.invariance
@pytest.mark.parametrize("loss", ["ppo_clip", "gspo", "gmpo"])
def test_corrections_of_the_whole_batch_do_not_depend_on_micro_batches(loss):
    rejection = {"level": "token", "statistic": "k3", "upper": 0.3}
    overrides = correction(kind="truncated", normalise="token", rejection=rejection)
    overrides |= {"objective.loss": {"kind": loss}, "objective.reduce": "sequence"}
    batch = near_batch()
    whole, one = update_gradients(make_learner(overrides, double=True), batch)
    split = make_learner(overrides | {"train.max_tokens_per_microbatch": 30}, double=True)
    found, several = update_gradients(split, batch)
    assert_same(whole, found)
    assert several == pytest.approx(one, rel=1e-5, abs=1e-7)


def test_bypass_takes_the_ratio_against_the_engine_and_no_weight():
    """On-policy for the learner, so without bypass no token would be clipped."""
    batch = near_batch()
    learner = make_learner(correction(kind="bypass"), double=True)
    ratios = [r.exp() for r in log_ratios(learner, batch)]
    weights = []
    for ratio, advantage in zip(ratios, batch.advantages, strict=True):
        clipped = ((advantage > 0) & (ratio > 1.2)) | ((advantage < 0) & (ratio < 0.8))
        weights.append(torch.where(clipped, 0.0, ratio))
    assert any(bool((w == 0).any()) for w in weights)
    found, metrics = update_gradients(learner, batch)
    assert_same(found, written_out(learner, batch, weights))
    assert metrics["mismatch_weight"] == 1.0
    assert metrics["clip_fraction"] > 0


def test_diagnostics_are_taken_before_the_cap_hides_anything():
    batch = near_batch()
    learner = make_learner(correction(kind="truncated", cap=0.01), double=True)
    ratio = torch.cat(log_ratios(learner, batch))
    _, metrics = update_gradients(learner, batch)
    assert metrics["mismatch_weight"] <= 0.01
    assert metrics["mismatch_ratio"] == pytest.approx(float(ratio.exp().mean()), rel=1e-5)
    assert metrics["mismatch_kl"] == pytest.approx(float((ratio.exp() - 1 - ratio).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "bypass", "normalise": "token"}, "kind=bypass has no weights"),
        ({"kind": "none", "floor": 0.5}, "kind=none has no weights"),
        ({"kind": "truncated", "floor": 2.0}, "must be below cap"),
    ],
)
def test_mismatch_keys_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_config(correction(**options))


def test_bypass_needs_a_loss_with_a_ratio():
    with pytest.raises(ConfigError, match="corrects through the loss's ratio"):
        make_config(correction(kind="bypass") | {"objective.loss": {"kind": "reinforce"}})


# ---- KL as a reward, and its controller --------------------------

KL = {"coef": 0.3, "estimator": "k1", "place": "reward"}


def kl_session(advantage, **kl):
    overrides = {"objective.kl": KL | kl, "objective.advantage": {"kind": advantage}}
    learner = make_learner(overrides, double=True)
    sharpen(learner.reference, seed=11, scale=0.1)
    estimator = ADVANTAGES.get(advantage)
    return SimpleNamespace(config=learner.config, advantage=estimator, shapings=[], learner=learner, critic=None,
                           advantage_options=parse_options(estimator.options, {}))  # fmt: skip


def kl_of(session, r):
    """k1 of every kept response."""
    pairs = zip(
        session.learner.logprobs(r.trajectories), session.learner.reference_logprobs(r.trajectories), strict=True
    )
    return [old - reference for old, reference in pairs]


def test_the_kl_of_a_response_is_taken_from_its_outcome():
    s, r = kl_session("dr_grpo"), rollouts([[7, 9, 8], [9, 8]], [True, False])
    batch, metrics = weigh(s, r)
    kl = kl_of(s, r)
    rewards = torch.stack([1 - 0.3 * kl[0].sum(), -0.3 * kl[1].sum()])
    centred = rewards - rewards.mean()
    assert [float(a[0]) for a in batch.advantages] == pytest.approx(centred.tolist(), rel=1e-5)
    assert metrics["policy/kl_reference"] == pytest.approx(float(torch.cat(kl).mean()), rel=1e-5)
    for old, found in zip(batch.old, s.learner.logprobs(r.trajectories), strict=True):
        assert torch.equal(old, found)


def test_estimators_with_token_rewards_get_the_kl_on_its_token():
    s, r = kl_session("reinforce_pp"), rollouts([[7, 9, 8], [9, 8]], [True, False])
    batch, _ = weigh(s, r)
    returns = [(-0.3 * k).flip(0).cumsum(0).flip(0) for k in kl_of(s, r)]
    flat = torch.cat([returns[0] + 1, returns[1]])
    expected = (flat - flat.mean()) / (flat.var() + 1e-8).sqrt()
    torch.testing.assert_close(torch.cat(batch.advantages).double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_a_kl_in_the_reward_is_not_in_the_loss_as_well():
    s, r = kl_session("dr_grpo"), rollouts([[7, 9, 8], [9, 8]], [True, False])
    batch, _ = weigh(s, r)
    _, metrics = update_gradients(s.learner, batch)
    assert "kl_reference" not in metrics


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_the_controller_raises_the_coefficient_above_its_target_and_a_checkpoint_keeps_it(place):
    controller = {"target": 1e-6, "horizon_trajectories": 10}
    s = kl_session("dr_grpo", place=place, controller=controller, estimator="k3")
    r = rollouts([[7, 9, 8], [9, 8]], [True, False])
    used = []
    for _ in range(2):
        batch, metrics = weigh(s, r)
        used.append((metrics | {f"policy/{k}": v for k, v in s.learner.update(batch).items()})["policy/kl_coef"])
    assert used == pytest.approx([0.3, 0.3 * 1.04])  # 20 % at most, times 2 of 10 trajectories
    other = make_learner({"objective.kl": s.config.objective.kl.model_dump()}, double=True)
    other.load_state_dict(s.learner.state_dict())
    assert other.kl_coef == s.learner.kl_coef == pytest.approx(0.3 * 1.04**2)


def test_below_the_target_the_coefficient_falls():
    s = kl_session("dr_grpo", controller={"target": 1e6, "horizon_trajectories": 10}, estimator="k3")
    weigh(s, rollouts([[7, 9, 8], [9, 8]], [True, False]))
    assert s.learner.kl_coef == pytest.approx(0.3 * 0.96)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"place": "reward"}, r"do nothing with objective\.kl\.coef=0"),
        ({"controller": {"target": 0.1, "horizon_trajectories": 10}}, r"do nothing with objective\.kl\.coef=0"),
        ({"coef": 0.1, "place": "reward", "gradient": "ratio"}, "is for place=loss"),
    ],
)
def test_kl_keys_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_config({"objective.kl": options})


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_straight_through_gradients_are_those_of_k2_whatever_the_value(estimator):
    batch = training_batch(random_trajectories())

    def gradients(**kl):
        learner = make_learner({"objective.kl": {"coef": 0.3, **kl}}, double=True)
        sharpen(learner.reference, seed=11, scale=0.1)
        return update_gradients(learner, batch)

    plain, _ = gradients(estimator="k2")
    found, metrics = gradients(estimator=estimator, gradient="reverse_kl")
    assert_same(plain, found)
    assert metrics["kl_reference"] == pytest.approx(gradients(estimator=estimator)[1]["kl_reference"], rel=1e-6)
