"""The implicit PRM: what the tokens get, what the model learns from outcomes, and that a checkpoint holds all of it."""

import copy
import math

import pytest
import torch

from data.example import Example, Message
from prm.implicit import EPS, ImplicitOptions, ImplicitSource, cross_entropy, log_ratio, process_rewards
from prm.signal import SOURCES, Kept
from rollout.engine import SamplingParams
from tests.helpers import (
    make_config,
    make_engine,
    make_learner,
    prompts,
    random_trajectories,
    sharpen,
    source_context,
    tokenizer,
)
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.compose import load_recipe
from verifiers.errors import ConfigError, RunError
from verifiers.options import parse_options
from verifiers.verdict import Status, Verdict

TRAJECTORIES = random_trajectories()
OUTCOMES = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.25, 0.0]
LEARNS = {"optim": {"lr": 1e-3, "grad_clip": 1e9}}


def make_source(overrides=None, started=True, **options):
    """Its models are those of `make_learner`."""
    config = make_config(overrides)
    values = LEARNS | options if options.get("update") != "none" else options
    source = ImplicitSource(parse_options(ImplicitOptions, values), source_context(None, config))
    if started:
        source.start_from(make_learner(overrides).weights())
    return source


def disturbed(source):
    """The PRM is no longer its reference."""
    sharpen(source.prm.causal_lm, seed=2, scale=0.05)
    return source


def kept(outcomes=OUTCOMES, trajectories=TRAJECTORIES):
    examples = [Example(f"example-{t.group}", (Message("user", "?"),), gold="1") for t in trajectories]
    return Kept(trajectories, examples, torch.tensor(outcomes), [], 0)


def ratios(source, trajectories=TRAJECTORIES):
    return log_ratio(source.prm.outputs(trajectories), source.reference_logp(trajectories))


def returns(rewards):
    return torch.cat([r.flip(0).cumsum(0).flip(0) for r in rewards])


def options(**values):
    return ImplicitOptions(**(LEARNS | values))


# ---- acceptance facts ----------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prm_that_is_its_reference_gives_no_reward_and_ln_2(dtype):
    """In half precision too: both log-probs come out of the same float32 arithmetic."""
    signal = make_source({"model.compute_dtype": dtype}).credit(kept())
    assert all(r.dtype == torch.float32 and not bool(r.any()) for r in signal.token_reward)
    assert signal.metrics["ce"] == pytest.approx(math.log(2), abs=1e-7)
    assert signal.outcome_N.tolist() == [0.0] * 8


def test_what_is_added_to_both_log_probs_changes_nothing():
    logp = [torch.randn(4, dtype=torch.float64), torch.randn(2, dtype=torch.float64)]
    reference = [torch.randn(4, dtype=torch.float64), torch.randn(2, dtype=torch.float64)]
    q = log_ratio(logp, reference)
    moved = log_ratio([a + 3 for a in logp], [b + 3 for b in reference])
    torch.testing.assert_close(torch.cat(process_rewards(q, options())[0]),
                               torch.cat(process_rewards(moved, options())[0]))  # fmt: skip
    label = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(cross_entropy(q, label, 0.5), cross_entropy(moved, label, 0.5))


def test_the_largest_return_is_one_and_the_scale_of_q_does_not_matter():
    q = [torch.tensor([0.5, -2.0, 0.25]), torch.tensor([1.0])]
    found, peak = process_rewards(q, options())
    assert peak == 1.75
    assert float(returns(found).abs().max()) == pytest.approx(peak / (peak + EPS))
    scaled, _ = process_rewards([3.0 * r for r in q], options())
    torch.testing.assert_close(torch.cat(scaled), torch.cat(found), rtol=1e-6, atol=0)
    assert torch.equal(torch.cat(found).sign(), torch.cat(q).sign())


def test_the_gradient_is_the_same_on_every_token_of_a_response():
    q_R = torch.randn(6, dtype=torch.float64).requires_grad_()
    label = torch.tensor([1.0, 0.3])
    (cross_entropy(q_R.split([4, 2]), label, 0.7).sum() / 2).backward()
    sums = torch.stack([part.sum() for part in q_R.detach().split([4, 2])])
    expected = 0.7 * ((0.7 * sums).sigmoid() - label) / 2
    torch.testing.assert_close(q_R.grad, expected.repeat_interleave(torch.tensor([4, 2])))


def test_before_and_after_agree_when_nothing_is_learnt():
    still = {"optim": {"lr": 0.0}}
    after, before = (disturbed(make_source(update=u, **still)).credit(kept()) for u in ("after", "before"))
    for a, b in zip(after.token_reward, before.token_reward, strict=True):
        assert torch.equal(a, b)
        assert bool(a.any())


# ---- when it learns ------------------------------------------------


def test_after_pays_by_the_model_before_the_update_and_before_by_the_one_after_it():
    after, before = (disturbed(make_source(update=u, normalise="none")) for u in ("after", "before"))
    old = ratios(after)
    paid_after, paid_before = after.credit(kept()).token_reward, before.credit(kept()).token_reward
    new = ratios(after)
    torch.testing.assert_close(torch.cat(paid_after), torch.cat(old), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat(paid_before), torch.cat(new), atol=1e-6, rtol=0)
    assert float((torch.cat(old) - torch.cat(new)).abs().max()) > 1e-3


def test_right_responses_gain_and_wrong_ones_lose():
    """The sign: the algorithm's figure prints the cross-entropy without its minus."""
    source = make_source(beta=1.0)
    metrics = [source.credit(kept()).metrics for _ in range(12)]
    assert metrics[-1]["ce"] < 0.8 * metrics[0]["ce"]
    total = torch.stack([q.sum() for q in ratios(source)])
    assert total[0] > 0 > total[1]
    assert metrics[-1]["auc"] > 0.9


def test_soft_labels_are_met_half_way():
    source = make_source(beta=1.0, optim={"lr": 3e-3, "grad_clip": 1e9})
    for _ in range(60):
        signal = source.credit(kept([0.25] * 8))
    assert signal.metrics["probability_mean"] == pytest.approx(0.25, abs=0.05)


def test_the_update_does_not_depend_on_micro_batches():
    slow = {"optim": {"lr": 1e-3, "eps": 1e-3, "grad_clip": 1e9}}
    after = []
    for max_tokens in (4096, 25):
        source = disturbed(make_source({"train.max_tokens_per_microbatch": max_tokens}, **slow))
        after.append((torch.cat(source.credit(kept()).token_reward), source.prm.weights()))
    torch.testing.assert_close(after[0][0], after[1][0], atol=1e-6, rtol=1e-5)
    for name, tensor in after[0][1].items():
        torch.testing.assert_close(tensor, after[1][1][name], atol=1e-6, rtol=1e-5)


def test_a_static_prm_never_changes_and_starts_from_its_own_weights(tmp_path):
    trained = disturbed(make_source())
    trained.prm.export_hf(tmp_path)
    static = make_source(update="none", weights=str(tmp_path))
    first, second = static.credit(kept()), static.credit(kept())
    torch.testing.assert_close(torch.cat(ratios(static)), torch.cat(ratios(trained)), atol=1e-5, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(first.token_reward, second.token_reward, strict=True))
    assert "grad_norm" not in first.metrics


# ---- the reference -------------------------------------------------


def test_the_frozen_reference_stays_what_the_policy_was():
    source = make_source()
    before = [r.clone() for r in source.reference_logp(TRAJECTORIES)]
    for _ in range(3):
        source.credit(kept())
    assert all(torch.equal(a, b) for a, b in zip(before, source.reference_logp(TRAJECTORIES), strict=True))
    assert not any(p.requires_grad for p in source.reference.parameters())
    policy = make_learner().logprobs(TRAJECTORIES)
    torch.testing.assert_close(torch.cat(before), torch.cat(policy), atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_moving_reference_is_the_engines_policy_at_the_prms_temperature(temperature):
    overrides = {"rollout.temperature": temperature}
    learner, source = make_learner(overrides), make_source(overrides, reference="moving")
    engine = make_engine(learner.model)
    found = engine.generate(prompts([3, 5]), 2, SamplingParams(16, temperature), seed=1)
    reference = source.reference_logp(found)
    assert {r.dtype for r in reference} == {torch.float32}
    torch.testing.assert_close(torch.cat(source.prm.outputs(found)), torch.cat(reference), atol=1e-4, rtol=0)
    assert list(source.models()) == ["prm"]


# ---- the whole batch -----------------------------------------------


def test_the_last_token_keeps_its_reward():
    """verl's recipe fills all but the last."""
    source = disturbed(make_source())
    q, rewards = ratios(source), source.credit(kept()).token_reward
    assert all(float(r[-1]) != 0 for r in rewards)
    assert [len(r) for r in rewards] == [t.num_response_tokens for t in TRAJECTORIES] == [len(x) for x in q]


def test_one_number_divides_the_whole_batch():
    """Not one for every part of it, as the repository has for every rank."""
    source = disturbed(make_source({"train.max_tokens_per_microbatch": 25}))
    q = ratios(source)
    rewards = source.credit(kept()).token_reward
    factor = torch.cat(q) / torch.cat(rewards)
    torch.testing.assert_close(factor, factor[:1].expand_as(factor), rtol=1e-3, atol=0)
    peaks = [float(r.flip(0).cumsum(0).abs().max()) for r in rewards]
    assert max(peaks) == pytest.approx(1.0, abs=1e-4)
    assert min(peaks) < 0.9


def test_whole_puts_the_sum_on_the_last_token():
    q = [torch.tensor([0.5, -2.0, 0.25]), torch.tensor([1.0])]
    found, _ = process_rewards(q, options(granularity="whole", normalise="none"))
    assert [r.tolist() for r in found] == [[0.0, 0.0, -1.25], [1.0]]
    found, peak = process_rewards(q, options(granularity="whole", normalise="none", scale="beta", beta=2.0))
    assert [r.tolist() for r in found] == [[0.0, 0.0, -2.5], [2.0]]
    assert peak == 2.5


# ---- labels and options --------------------------------------------


def test_an_outcome_that_is_no_probability_is_refused_and_the_verdict_can_serve():
    with pytest.raises(RunError, match="is -1; the label") as caught:
        make_source().credit(kept([1.0, -1.0] * 4))
    assert "label: correct" in str(caught.value)
    source = make_source(label="correct")
    judged = kept([1.0, -1.0] * 4)
    assert source.labels(judged).tolist() == [1.0, 0.0] * 4
    verdicts = [Verdict(0.5, Status.WRONG, "")] * 8
    judged = Kept(judged.trajectories, judged.examples, judged.outcome_N, verdicts, 0)
    assert source.labels(judged).tolist() == [0.0] * 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "optim is needed"),
        ({"update": "none", "optim": {"lr": 1e-3}, "weights": "x"}, "optim is needed"),
        ({"update": "none"}, "needs weights"),
        ({"optim": {"lr": 1e-3}, "scale": "beta"}, "beta cancels"),
        ({"optim": {"lr": 1e-3}, "beta": 0.0}, "beta"),
    ],
)
def test_options_that_would_do_nothing_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_options(ImplicitOptions, values)


def test_it_is_a_credit_source_of_that_name():
    assert SOURCES.get("implicit") is ImplicitSource
    assert ImplicitSource.phase == "credit"


# ---- state ---------------------------------------------------------


@pytest.mark.parametrize("reference", ["frozen", "moving"])
def test_a_restored_source_continues_bit_for_bit(tmp_path, reference):
    source = make_source(reference=reference)
    for _ in range(2):
        source.credit(kept())

    def folders(of):
        return {f"sources/implicit/{name}": model for name, model in of.models().items()}

    path = save_checkpoint(tmp_path, 1, make_learner(), tokenizer(), {"step": 1}, {}, folders(source))
    restored = make_source(reference=reference, started=False)
    assert load_checkpoint(path, make_learner(), folders(restored)) == {"step": 1}
    a, b = source.credit(copy.deepcopy(kept())), restored.credit(kept())
    assert a.metrics == b.metrics
    assert all(torch.equal(x, y) for x, y in zip(a.token_reward, b.token_reward, strict=True))
    assert all(torch.equal(t, restored.prm.weights()[n]) for n, t in source.prm.weights().items())


# ---- recipes -------------------------------------------------------


def test_token_rewards_that_the_estimator_ignores_are_refused():
    with pytest.raises(ConfigError, match="'implicit' rewards single tokens"):
        load_recipe("prime_chain", ["objective=grpo"])
    load_recipe("prime_chain", ["objective.advantage={kind: prime_grpo}"])
    streams = "objective.advantage={kind: multi_stream, gammas: [1.0, 1.0]}"
    load_recipe("prime_chain", [streams, "objective.zero_variance.drop=false"])


def test_a_moving_reference_needs_log_probs_that_the_engine_gives():
    moving = ["sources.1.reference=moving", "rollout.top_p=0.9", "objective.mismatch.kind=truncated"]
    load_recipe("prime_chain", moving)
    with pytest.raises(ConfigError, match="reference=moving"):
        load_recipe("prime_chain", [*moving, "rollout.temperature=0.8"])


def test_the_papers_settings():
    config = load_recipe("prime_math")
    source = parse_options(ImplicitOptions, config.sources[1].options)
    assert (source.beta, source.update, source.optim.lr, source.optim.grad_clip) == (0.05, "after", 1e-6, 10.0)
    assert (config.rollout.prompts_per_step, config.rollout.samples_per_prompt, config.optim.lr) == (256, 4, 5e-7)
    band = config.rollout.keep.pass_rate
    assert (band.low, band.high, band.strict) == (0.2, 0.8, False)
    assert config.objective.kl.coef == 0
