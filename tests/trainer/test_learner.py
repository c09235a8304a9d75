"""The learner: what it computes does not depend on how it packs, splits or orders; and what reaches the weights."""

import copy
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from prm.optim import NonFiniteError, learning_rate
from rollout.engine import SamplingParams
from rollout.models import load_policy
from rollout.packing import pack
from rollout.torch_engine import TorchEngine
from tests.helpers import (
    CPU,
    EOS,
    VOCABULARY,
    forward_logits,
    make_config,
    make_double,
    make_learner,
    prompts,
    random_trajectories,
    sharpen,
    tokenizer,
    training_batch,
    trajectory,
    update_gradients,
)
from trainer.config import OptimConfig
from trainer.learner import Learner, TrainingBatch, split_by_group
from verifiers.errors import RunError

LORA = {"model.lora": {"rank": 4, "alpha": 8.0}}
TOLERANCE = {False: 1e-5, True: 1e-9}


def plain_twin(learner):
    """The same weights in an ordinary causal LM (SDPA: the eager attention rounds to float32)."""
    return plain_model(learner, next(learner.model.parameters()).dtype)


def plain_model(learner, dtype=torch.float32):
    config = copy.deepcopy(learner.policy.config)  # the learner's own must keep its packed attention
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    if dtype == torch.float64:
        make_double(model)
    model.load_state_dict(learner.weights())
    return model


def logp_alone(model, t, temperature=1.0):
    """Log-probs of one response with gradient, from a forward of this sequence alone."""
    ids = torch.tensor([t.prompt_ids + t.response_ids])
    logits = model(ids, use_cache=False).logits[0, len(t.prompt_ids) - 1 : -1] / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(t.response_ids)[:, None])[:, 0]


def assert_same_gradients(a, b, tolerance):
    assert a.keys() == b.keys()
    assert a, "no gradient at all"
    assert max(float(g.abs().max()) for g in a.values()) > 1e-4
    for name, gradient in a.items():
        torch.testing.assert_close(gradient, b[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


# ---- log-probs ------------------------------------------------------------------------------------------------------


@pytest.mark.invariance
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("max_tokens", [1, 25, 4096])
def test_packed_log_probs_equal_unpacked_ones(double, temperature, max_tokens):
    overrides = {"rollout.temperature": temperature, "train.max_tokens_per_microbatch": max_tokens}
    learner = make_learner(overrides, double=double)
    trajectories = random_trajectories()
    twin = plain_twin(learner)
    for t, found in zip(trajectories, learner.logprobs(trajectories), strict=True):
        torch.testing.assert_close(found, logp_alone(twin, t, temperature).detach(), atol=TOLERANCE[double], rtol=0)


@pytest.mark.invariance
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_packed_gradients_equal_unpacked_ones(double):
    """PPO at ratio 1 has the gradient of -A logp: written out here without packing, chunks or the loss code."""
    learner = make_learner(double=double)
    batch = training_batch(random_trajectories())
    found, _ = update_gradients(learner, batch)
    twin = plain_twin(learner)
    tokens = sum(t.num_response_tokens for t in batch.trajectories)
    for t, advantage in zip(batch.trajectories, batch.advantages, strict=True):
        (-(advantage * logp_alone(twin, t)).sum() / tokens).backward()
    assert_same_gradients(found, {n: p.grad for n, p in twin.named_parameters()}, TOLERANCE[double])


@pytest.mark.invariance
def test_gradient_checkpointing_changes_nothing():
    batch = training_batch(random_trajectories())
    plain, _ = update_gradients(make_learner(), batch)
    checkpointed, _ = update_gradients(make_learner({"model.gradient_checkpointing": True}), batch)
    assert_same_gradients(plain, checkpointed, 1e-6)


@pytest.mark.invariance
def test_tied_embeddings_get_the_gradient_of_both_uses():
    learner = make_learner({"model.scratch": make_config().model.scratch.model_dump() | {"tie_embeddings": True}})
    batch = training_batch(random_trajectories())
    found, _ = update_gradients(learner, batch)
    assert "lm_head.weight" not in found
    twin = plain_twin(learner)
    twin.tie_weights()
    tokens = sum(t.num_response_tokens for t in batch.trajectories)
    for t, advantage in zip(batch.trajectories, batch.advantages, strict=True):
        (-(advantage * logp_alone(twin, t)).sum() / tokens).backward()
    assert_same_gradients(found, {n: p.grad for n, p in twin.named_parameters()}, 1e-5)


# ---- invariance of the objective ---------------------------------

REDUCE = {"token": {}, "sequence": {}, "constant": {"objective.constant_tokens": 16}}
KL = {"no kl": {}} | {k: {"objective.kl": {"coef": 0.3, "estimator": k}} for k in ("k1", "k2", "k3")}
MISMATCH = {"no mismatch": {}} | {
    level: {"objective.mismatch": {"kind": "truncated", "level": level, "cap": 1.5}} for level in ("token", "sequence")
}


def split_learner(overrides, parts, double):
    """The budget that makes first-fit decreasing use `parts` micro-batches of the standard trajectories."""
    trajectories = random_trajectories()
    for max_tokens in range(300, 0, -1):
        if len(pack(trajectories, max_tokens)) == parts:
            learner = make_learner(overrides | {"train.max_tokens_per_microbatch": max_tokens}, double=double)
            if learner.reference is not None:  # a reference that differs from the policy, or every KL is zero
                sharpen(learner.reference, seed=11, scale=0.1)
            return learner
    raise AssertionError(f"no budget gives {parts} micro-batches")


@pytest.mark.invariance
@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize("kl", KL)
@pytest.mark.parametrize("mismatch", MISMATCH)
def test_the_gradient_does_not_depend_on_micro_batches_or_order(reduce, kl, mismatch):
    overrides = {"objective.reduce": reduce} | REDUCE[reduce] | KL[kl] | MISMATCH[mismatch]
    batch = training_batch(random_trajectories(), included=[True] * 5 + [False] + [True] * 2)
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    shuffled = TrainingBatch([batch.trajectories[i] for i in order], [batch.advantages[i] for i in order],
                             batch.included_N[order])  # fmt: skip
    whole, metrics = update_gradients(split_learner(overrides, 1, double=True), batch)
    for parts in (2, 4):
        learner = split_learner(overrides, parts, double=True)
        for variant in (batch, shuffled):
            found, other = update_gradients(learner, variant)
            assert_same_gradients(whole, found, 1e-9)
            assert other == pytest.approx(metrics, rel=1e-5, abs=1e-7)


@pytest.mark.invariance
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_the_gradient_does_not_depend_on_micro_batches_in_float32(parts):
    overrides = {"objective.reduce": "sequence"} | KL["k3"] | MISMATCH["token"]
    batch = training_batch(random_trajectories())
    whole, _ = update_gradients(split_learner(overrides, 1, double=False), batch)
    found, _ = update_gradients(split_learner(overrides, parts, double=False), batch)
    assert_same_gradients(whole, found, 1e-5)


@pytest.mark.invariance
@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize("kl", ["no kl", "k1", "k2", "k3"])
@pytest.mark.parametrize("mismatch", MISMATCH)
def test_the_gradient_is_that_of_the_objective_written_out(reduce, kl, mismatch):
    """An independent statement of the whole objective, one sequence at a time."""
    overrides = {"objective.reduce": reduce} | REDUCE[reduce] | KL[kl] | MISMATCH[mismatch]
    learner = split_learner(overrides, 2, double=True)
    batch = training_batch(random_trajectories())
    found, metrics = update_gradients(learner, batch)
    twin = plain_twin(learner)
    reference = learner.reference_logprobs(batch.trajectories) if learner.reference is not None else None
    tokens, sequences = sum(t.num_response_tokens for t in batch.trajectories), len(batch.trajectories)
    total = 0.0
    for i, (t, advantage) in enumerate(zip(batch.trajectories, batch.advantages, strict=True)):
        logp = logp_alone(twin, t)
        gap = logp.detach() - torch.tensor(t.logp_sampled)
        weight = {"no mismatch": torch.ones_like(gap), "token": gap.exp().clamp(max=1.5),
                  "sequence": gap.sum().exp().clamp(max=1.5)}[mismatch]  # fmt: skip
        loss = -advantage.double() * weight * (logp - logp.detach()).exp()
        if reference is not None:
            d = logp - reference[i]
            loss = loss + 0.3 * {"k1": d, "k2": d**2 / 2, "k3": (-d).exp() + d - 1}[kl]
        divisor = {"token": tokens, "sequence": t.num_response_tokens * sequences, "constant": 16 * sequences}[reduce]
        part = loss.sum() / divisor
        part.backward()
        total += float(part.detach())
    assert_same_gradients(found, {n: p.grad for n, p in twin.named_parameters()}, 1e-9)
    assert metrics["loss"] == pytest.approx(total, abs=1e-6)


@pytest.mark.invariance
def test_an_excluded_trajectory_has_no_influence_at_all():
    everyone = random_trajectories()
    kept = [i for i in range(8) if i not in (1, 4)]
    with_excluded = training_batch(everyone, included=[i in kept for i in range(8)])
    with_excluded.advantages[1] *= 1e6
    without = TrainingBatch(
        [everyone[i] for i in kept], [with_excluded.advantages[i] for i in kept], torch.ones(6).bool()
    )
    for reduce in REDUCE:
        learner = make_learner({"objective.reduce": reduce} | REDUCE[reduce], double=True)
        a, metrics_a = update_gradients(learner, with_excluded)
        b, metrics_b = update_gradients(learner, without)
        assert_same_gradients(a, b, 1e-9)
        assert metrics_a == pytest.approx(metrics_b, rel=1e-6)


def test_diagnostics_are_token_means_over_the_included():
    learner = make_learner()
    batch = training_batch(random_trajectories(), included=[True] * 6 + [False] * 2)
    _, metrics = update_gradients(learner, batch)
    logp = torch.cat(learner.logprobs(batch.trajectories)[:6])
    sampled = torch.cat([torch.tensor(t.logp_sampled) for t in batch.trajectories[:6]])
    logits = torch.cat(
        [forward_logits(plain_twin(learner), t.prompt_ids, t.response_ids) for t in batch.trajectories[:6]]
    )
    assert metrics["logprob_gap"] == pytest.approx(float((logp - sampled).abs().mean()), rel=1e-5)
    assert metrics["entropy"] == pytest.approx(
        float(torch.distributions.Categorical(logits=logits).entropy().mean()), rel=1e-4
    )
    assert metrics["clip_fraction"] == 0.0
    assert metrics["mismatch_weight"] == 1.0


# ---- several optimizer steps on one batch ------------------------


def test_old_log_probs_are_those_before_the_update_in_every_mini_batch():
    """approx_kl is old - new: zero in the first mini-batch, not in the second."""
    learner = make_learner({"train.minibatches_per_step": 2, "optim.lr": 0.05})
    seen = []
    original = learner._optimizer_step

    def record(*arguments):
        seen.append(original(*arguments))
        return seen[-1]

    learner._optimizer_step = record
    learner.update(training_batch(random_trajectories()))
    assert len(seen) == 2
    assert seen[0]["approx_kl"] == 0.0
    assert abs(seen[1]["approx_kl"]) > 1e-3
    assert learner.optimizer_steps == 2


def test_the_second_mini_batch_sees_clipped_ratios():
    learner = make_learner({"train.minibatches_per_step": 2, "optim.lr": 0.2})
    metrics = learner.update(training_batch(random_trajectories()))
    assert 0 < metrics["clip_fraction"] <= 0.5  # the mean of both; the first has none


def test_a_mini_batch_whose_trajectories_are_all_excluded_is_no_accident():
    for included in ([True] * 4 + [False] * 4, [False] * 4 + [True] * 4):
        learner = make_learner({"train.minibatches_per_step": 2})
        metrics = learner.update(training_batch(random_trajectories(), included=included))
        assert metrics["entropy"] > 0
        assert math.isfinite(metrics["loss"])


def test_a_batch_without_trajectories_changes_nothing():
    learner = make_learner()
    before = {n: t.clone() for n, t in learner.weights().items()}
    assert learner.update(TrainingBatch([], [], torch.ones(0, dtype=torch.bool))) == {}
    assert all(torch.equal(t, before[n]) for n, t in learner.weights().items())


def test_mini_batches_hold_whole_groups_in_order_and_everyone_once():
    trajectories = [trajectory([1], [2], group=g) for g in (4, 4, 9, 9, 9, 1, 7)]
    assert split_by_group(trajectories, 2) == [[0, 1, 2, 3, 4], [5, 6]]
    assert split_by_group(trajectories, 4) == [[0, 1], [2, 3, 4], [5], [6]]
    interleaved = [trajectory([1], [2], group=g) for g in (0, 1, 0, 1)]
    assert split_by_group(interleaved, 2) == [[0, 2], [1, 3]]
    assert sorted(i for part in split_by_group(trajectories, 3) for i in part) == list(range(7))


# ---- alarms ------------------------------------------------------


def assert_untouched(learner, before):
    for name, parameter in learner.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert learner.optimizer_steps == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(value):
    learner = make_learner({"train.max_tokens_per_microbatch": 25})
    before = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
    batch = training_batch(random_trajectories())
    batch.advantages[6][0] = value
    with pytest.raises(NonFiniteError) as caught:
        learner.update(batch)
    assert 6 in caught.value.sequences
    assert len(caught.value.sequences) < 8
    assert isinstance(caught.value, RunError)
    assert_untouched(learner, before)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change():
    learner = make_learner()
    before = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
    learner.model.model.norm.weight.register_hook(lambda g: g * math.nan)
    with pytest.raises(NonFiniteError, match="gradient norm"):
        learner.update(training_batch(random_trajectories()))
    assert_untouched(learner, before)


def test_an_engine_log_prob_of_minus_infinity_is_no_reason_to_stop_when_weights_are_truncated():
    learner = make_learner(MISMATCH["token"])
    batch = training_batch(random_trajectories())
    batch.trajectories[0].logp_sampled[0] = -1e4
    metrics = learner.update(batch)
    assert math.isfinite(metrics["loss"])
    assert metrics["mismatch_weight"] <= 1.5


# ---- optimizer ---------------------------------------------------


def test_the_learning_rate_warms_up_linearly_and_stays():
    optim = OptimConfig(lr=2.0, warmup_steps=4)
    assert [learning_rate(optim, s, 100) for s in (0, 1, 3, 4, 50, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0, 2.0]


def test_the_cosine_falls_to_its_floor_and_stays_there():
    optim = OptimConfig(lr=2.0, warmup_steps=10, schedule="cosine", min_lr_ratio=0.1)
    assert learning_rate(optim, 10, 110) == pytest.approx(2.0)
    assert learning_rate(optim, 60, 110) == pytest.approx(0.5 * (2.0 + 0.2))
    assert learning_rate(optim, 35, 110) == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(optim, 110, 110) == pytest.approx(0.2)
    assert learning_rate(optim, 500, 110) == pytest.approx(0.2)
    assert learning_rate(OptimConfig(lr=1.0, schedule="cosine"), 0, 0) == 1.0


def test_every_optimizer_step_uses_the_scheduled_learning_rate():
    learner = make_learner({"optim.warmup_steps": 4, "optim.lr": 4e-3})
    rates = [learner.update(training_batch(random_trajectories()))["lr"] for _ in range(5)]
    assert rates == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 4e-3])


def test_learning_rate_zero_leaves_the_weights_bit_for_bit():
    learner = make_learner({"optim.lr": 0.0, "optim.weight_decay": 0.1})
    before = {n: t.clone() for n, t in learner.weights().items()}
    metrics = learner.update(training_batch(random_trajectories()))
    assert metrics["grad_norm"] > 0
    assert all(torch.equal(t, before[n]) for n, t in learner.weights().items())


def test_the_gradient_is_clipped_to_its_norm_and_the_norm_before_is_reported():
    batch = training_batch(random_trajectories())
    free, free_metrics = update_gradients(make_learner(), batch)
    clipped, metrics = update_gradients(make_learner({"optim.grad_clip": 0.01}), batch)
    norm = torch.cat([g.flatten() for g in clipped.values()]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)
    assert metrics["grad_norm"] == pytest.approx(free_metrics["grad_norm"])
    ratio = 0.01 / metrics["grad_norm"]
    torch.testing.assert_close(clipped["lm_head.weight"], free["lm_head.weight"] * ratio, rtol=1e-3, atol=1e-7)


def test_only_matrices_decay():
    learner = make_learner({"optim.weight_decay": 0.5})
    decays = {g["weight_decay"]: {p.ndim for p in g["params"]} for g in learner.optimizer.param_groups}
    assert decays == {0.5: {2}, 0.0: {1}}


def test_raising_a_response_by_its_advantage_raises_its_probability():
    learner = make_learner({"optim.lr": 3e-3})
    trajectories = random_trajectories()
    before = [float(x.sum()) for x in learner.logprobs(trajectories)]
    signs = [1.0 if i % 2 else -1.0 for i in range(8)]
    advantages = [torch.full((t.num_response_tokens,), s) for t, s in zip(trajectories, signs, strict=True)]
    for _ in range(10):
        learner.update(TrainingBatch(trajectories, advantages, torch.ones(8).bool()))
    after = [float(x.sum()) for x in learner.logprobs(trajectories)]
    up = sum(a - b for a, b, s in zip(after, before, signs, strict=True) if s > 0)
    down = sum(a - b for a, b, s in zip(after, before, signs, strict=True) if s < 0)
    assert up > 0 > down


def test_supervised_steps_lower_the_loss_which_is_the_token_mean():
    learner = make_learner()
    demonstrations = random_trajectories()
    expected = -float(torch.cat(learner.logprobs(demonstrations)).mean())
    losses = [learner.supervised_step(demonstrations)["loss"] for _ in range(15)]
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < 0.7 * losses[0]


# ---- reference ---------------------------------------------------


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_the_reference_is_the_policy_as_it_was_when_it_was_frozen(lora):
    learner = make_learner(KL["k3"] | {"optim.lr": 0.05} | (lora and {"model.lora": LORA["model.lora"]}))
    if lora:  # with LoRA the reference is the base model: start from an adapter that does nothing
        for name, p in learner.model.named_parameters():
            if "lora_B" in name:
                p.data.zero_()
    trajectories = random_trajectories()
    start = learner.logprobs(trajectories)
    for _ in range(3):
        learner.update(training_batch(trajectories))
    for found, expected in zip(learner.reference_logprobs(trajectories), start, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    moved = torch.cat(learner.logprobs(trajectories)) - torch.cat(start)
    assert moved.abs().max() > 1e-2


def test_no_reference_is_kept_without_a_kl_term():
    assert make_learner().reference is None
    assert make_learner(KL["k1"]).reference is not None


def test_a_large_kl_coefficient_holds_the_policy_back():
    def distance(coef):
        learner = make_learner({"objective.kl": {"coef": coef, "estimator": "k3"}, "optim.lr": 3e-3})
        trajectories = random_trajectories()
        start = torch.cat(learner.logprobs(trajectories))
        for _ in range(10):
            learner.update(training_batch(trajectories))
        return float((torch.cat(learner.logprobs(trajectories)) - start).abs().mean())

    assert distance(100.0) < 0.5 * distance(1e-6)


# ---- LoRA -----------------------------------------------------------------------------------------------------------


def lora_learner():
    return make_learner(LORA)  # sharpened: lora_B is not zero


@pytest.mark.invariance
def test_merged_lora_weights_equal_the_adapter_forward():
    learner = lora_learner()
    merged = plain_model(learner)
    trajectories = random_trajectories()
    for t, found in zip(trajectories, learner.logprobs(trajectories), strict=True):
        torch.testing.assert_close(found, logp_alone(merged, t).detach(), atol=1e-5, rtol=0)
    with learner.model.disable_adapter():
        base = learner.logprobs(trajectories)
    assert (torch.cat(base) - torch.cat(learner.logprobs(trajectories))).abs().max() > 1e-2


def test_merging_leaves_the_adapter_and_its_base_alone():
    learner = lora_learner()
    before = {n: t.clone() for n, t in learner.model.state_dict().items()}
    learner.weights()
    assert all(torch.equal(t, before[n]) for n, t in learner.model.state_dict().items())


def test_lora_trains_the_adapter_only():
    learner = lora_learner()
    before = {n: t.clone() for n, t in learner.model.state_dict().items()}
    learner.update(training_batch(random_trajectories()))
    changed = {n for n, t in learner.model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert all("lora_" in n for n in changed)


@pytest.mark.invariance
@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_the_engine_samples_from_the_learners_weights(lora):
    learner = make_learner(lora)
    learner.update(training_batch(random_trajectories()))
    engine = TorchEngine(
        learner.policy.config,
        tokenizer(),
        [EOS],
        dtype=torch.float32,
        device=CPU,
        max_prompt_tokens=16,
        max_response_tokens=16,
        max_rows=8,
    )
    engine.load_weights(learner.weights(), 1)
    trajectories = engine.generate(prompts([5, 9]), 4, SamplingParams(16), seed=0)
    for t, logp in zip(trajectories, learner.logprobs(trajectories), strict=True):
        torch.testing.assert_close(torch.tensor(t.logp_sampled), logp, atol=1e-4, rtol=0)


# ---- precision ---------------------------------------------------


def test_bfloat16_compute_keeps_float32_master_weights_and_stays_close():
    exact = make_learner()
    half = make_learner({"model.compute_dtype": "bfloat16"})
    trajectories = random_trajectories()
    gap = torch.cat(half.logprobs(trajectories)) - torch.cat(exact.logprobs(trajectories))
    assert 0 < gap.abs().mean() < 0.05
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    found, _ = update_gradients(half, training_batch(trajectories))
    expected, _ = update_gradients(exact, training_batch(trajectories))
    flat = [torch.cat([g[n].flatten() for n in expected]) for g in (found, expected)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99


def test_bfloat16_master_weights_train_too():
    learner = make_learner({"model.compute_dtype": "bfloat16", "model.master_dtype": "bfloat16"})
    assert {p.dtype for p in learner.model.parameters()} == {torch.bfloat16}
    demonstrations = random_trajectories()
    losses = [learner.supervised_step(demonstrations)["loss"] for _ in range(10)]
    assert losses[-1] < losses[0]


# ---- state -------------------------------------------------------


def test_a_state_of_another_model_is_refused():
    state = make_learner(LORA).state_dict()
    with pytest.raises(RunError, match="other parameters"):
        make_learner().load_state_dict(state)


def test_vocabulary_of_the_helpers_is_the_tokenizers():
    config = make_config()
    assert load_policy(config.model, 0, CPU).config.vocab_size == VOCABULARY == len(tokenizer())
    assert isinstance(make_learner(), Learner)
