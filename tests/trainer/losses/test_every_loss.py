"""What holds for every policy loss with every reduction: splits, packing and order change nothing; the gradient is the
derivative; it ends where the formula says."""

import math

import pytest
import torch

from trainer.losses.base import LOSSES, LossInputs, sequence_mean
from trainer.losses.value import ValueLossOptions, value_loss
from trainer.objective import count_batch, sequence_weights
from verifiers.errors import ConfigError
from verifiers.options import parse_options

KINDS = ["cispo", "gmpo", "gspo", "ppo_clip", "reinforce", "sapo", "stable_reinforce"]
REDUCTIONS = [("token", None), ("sequence", None), ("sequence_sum", None), ("constant", 16)]
# bounds that random ratios of about 0.6 to 1.6 fall on both sides of
OPTIONS = {
    "gspo": {"clip_low": 0.05, "clip_high": 0.05},
    "cispo": {"min_ratio": 0.8, "max_ratio": 1.2},
    "ppo_clip": {"dual_clip": 1.3},
    "stable_reinforce": {"min_ratio": 0.7, "max_ratio": 1.4},
}


def test_every_loss_is_listed_here():
    assert LOSSES.names() == KINDS


def compute(kind, inputs, **options):
    entry = LOSSES.get(kind)
    return entry.compute(inputs, parse_options(entry.options, options))


def sequences(seed=0, with_tools=True):
    """Six sequences: dicts of [T_i] tensors in float64, with one advantage each."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for n in (3, 5, 1, 4, 2, 6):
        old = -torch.rand(n, generator=g, dtype=torch.float64) - 0.1
        mask = torch.rand(n, generator=g) > 0.25
        mask[0] = True
        out.append({
            "logp": old + 0.3 * torch.randn(n, generator=g, dtype=torch.float64),
            "old": old,
            "advantage": torch.randn(1, generator=g, dtype=torch.float64).expand(n),
            "mask": mask if with_tools else torch.ones(n, dtype=torch.bool),
        })  # fmt: skip
    return out


def micro_batch(chosen):
    segment = torch.cat([torch.full((len(s["logp"]),), i) for i, s in enumerate(chosen)])
    keys = ("logp", "old", "advantage")
    return LossInputs(
        *(torch.cat([s[k] for s in chosen]) for k in keys), segment, torch.cat([s["mask"] for s in chosen])
    )


def total_and_gradient(kind, batch, micro_batches, reduce, ranks=1):
    """(loss, gradient of each sequence) summed over micro-batches. With ranks, the sequences are dealt out to ranks
    that know each other's counts only."""
    length_N = torch.tensor([int(s["mask"].sum()) for s in batch])
    included_N = torch.ones(len(batch), dtype=torch.bool)
    shares = [[i for i in range(len(batch)) if i % ranks == r] for r in range(ranks)]
    counts = [count_batch(length_N[share], included_N[share]) for share in shares]
    everywhere = sum(counts[1:], counts[0])
    weight_N = torch.zeros(len(batch), dtype=torch.float64)
    for share in shares:
        weight_N[share] = sequence_weights(length_N[share], included_N[share], *reduce, counts=everywhere)
    total, gradient = 0.0, {}
    for index in micro_batches:
        chosen = [{**batch[i], "logp": batch[i]["logp"].clone().requires_grad_()} for i in index]
        inputs = micro_batch(chosen)
        loss_R, _ = compute(kind, inputs, **OPTIONS.get(kind, {}))
        weight_R = weight_N[index][inputs.segment_R] * inputs.mask_R
        value = (loss_R * weight_R).sum()
        value.backward()
        total += float(value.detach())
        gradient |= {i: s["logp"].grad for i, s in zip(index, chosen, strict=True)}
    return total, torch.cat([gradient[i] for i in range(len(batch))])


@pytest.mark.invariance
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduce", REDUCTIONS, ids=[r for r, _ in REDUCTIONS])
@pytest.mark.parametrize("micro_batches", [
    [[0], [1], [2], [3], [4], [5]],
    [[0, 1, 2], [3, 4, 5]],
    [[5, 4, 3, 2, 1, 0]],
    [[4, 1], [5], [0, 3, 2]],
], ids=["one-each", "halves", "reversed", "mixed"])  # fmt: skip
def test_split_packing_and_order_change_neither_loss_nor_gradient(kind, reduce, micro_batches):
    batch = sequences()
    loss, gradient = total_and_gradient(kind, batch, [list(range(6))], reduce)
    other_loss, other_gradient = total_and_gradient(kind, batch, micro_batches, reduce)
    assert other_loss == pytest.approx(loss, abs=1e-12)
    torch.testing.assert_close(other_gradient, gradient, atol=1e-12, rtol=0)


@pytest.mark.invariance
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduce", REDUCTIONS, ids=[r for r, _ in REDUCTIONS])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_share_their_counts_change_neither_loss_nor_gradient(kind, reduce, ranks):
    batch = sequences()
    loss, gradient = total_and_gradient(kind, batch, [list(range(6))], reduce)
    other_loss, other_gradient = total_and_gradient(kind, batch, [[0, 2, 4], [1, 3, 5]], reduce, ranks)
    assert other_loss == pytest.approx(loss, abs=1e-12)
    torch.testing.assert_close(other_gradient, gradient, atol=1e-12, rtol=0)


@pytest.mark.invariance
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduce", REDUCTIONS, ids=[r for r, _ in REDUCTIONS])
def test_tool_tokens_as_masked_tokens_or_left_out_are_the_same(kind, reduce):
    """The packed counterpart of padding: what is not the policy's may stand anywhere and hold anything."""
    batch = sequences()
    for s in batch:
        s["logp"] = torch.where(s["mask"], s["logp"], s["logp"] - 7)
    bare = [{k: v[s["mask"]] for k, v in s.items()} for s in batch]
    loss, gradient = total_and_gradient(kind, batch, [list(range(6))], reduce)
    bare_loss, bare_gradient = total_and_gradient(kind, bare, [list(range(6))], reduce)
    own = torch.cat([s["mask"] for s in batch])
    assert loss == pytest.approx(bare_loss, abs=1e-12)
    torch.testing.assert_close(gradient[own], bare_gradient, atol=1e-12, rtol=0)
    assert (gradient[~own] == 0).all()


# ---- gradients -----------------------------------------------------


def finite_difference(function, x, step=1e-6):
    out = torch.zeros_like(x)
    for k in range(len(x)):
        up, down = x.clone(), x.clone()
        up[k] += step
        down[k] -= step
        out[k] = (function(up) - function(down)) / (2 * step)
    return out


def written_out(kind, logp, batch, options):
    """The per-token losses from the formulas alone, one Python float at a time; weights that the method takes as
    constants come from the log-probs of `batch`."""
    out, start = [], 0
    for s in batch:
        n = len(s["logp"])
        new, old, at = logp[start : start + n].tolist(), s["old"].tolist(), s["logp"].tolist()
        start += n
        a = float(s["advantage"][0])
        clip = lambda x, lo, hi: min(max(x, lo), hi)  # noqa: E731
        if kind in ("gspo", "gmpo"):
            if kind == "gspo":
                ratio = math.exp(sum(x - y for x, y in zip(new, old, strict=True)) / n)
                value = max(-a * ratio, -a * clip(ratio, 1 - options["clip_low"], 1 + options["clip_high"]))
            else:
                sign = (a > 0) - (a < 0)
                logs = [x - y for x, y in zip(new, old, strict=True)]
                value = -a * math.exp(sum(sign * min(sign * l, sign * clip(l, -0.4, 0.4)) for l in logs) / n)
            out += [value] * n
            continue
        for x, y, point in zip(new, old, at, strict=True):
            ratio = math.exp(x - y)
            if kind == "reinforce":
                out.append(-a * x)
            elif kind == "cispo":
                out.append(-clip(math.exp(point - y), options["min_ratio"], options["max_ratio"]) * a * x)
            elif kind == "sapo":
                tau = 1.0 if a > 0 else 1.05
                out.append(-a * 4 / tau / (1 + math.exp(-tau * (ratio - 1))))
            else:
                if kind == "stable_reinforce":
                    ratio = clip(ratio, options["min_ratio"], options["max_ratio"])
                value = max(-a * ratio, -a * clip(ratio, 0.8, 1.2))
                out.append(min(value, -a * options["dual_clip"]) if kind == "ppo_clip" and a < 0 else value)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduce", REDUCTIONS, ids=[r for r, _ in REDUCTIONS])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_value_and_gradient_are_those_of_the_written_formula(kind, reduce, seed):
    batch, options = sequences(seed, with_tools=False), OPTIONS.get(kind, {})
    lengths = torch.tensor([len(s["logp"]) for s in batch])
    weight_R = sequence_weights(lengths, torch.ones(6, dtype=torch.bool), *reduce).repeat_interleave(lengths)
    at = torch.cat([s["logp"] for s in batch])
    formula = lambda logp: float((written_out(kind, logp, batch, options) * weight_R).sum())  # noqa: E731
    loss, gradient = total_and_gradient(kind, batch, [list(range(6))], reduce)
    assert loss == pytest.approx(formula(at), abs=1e-12)
    torch.testing.assert_close(gradient, finite_difference(formula, at), atol=1e-7, rtol=1e-6)


def single(kind, ratio, advantage, **options):
    """(loss, gradient, diagnostics) of sequences of one token."""
    logp = torch.tensor(ratio, dtype=torch.float64).log().requires_grad_()
    inputs = LossInputs(logp, torch.zeros_like(logp), torch.tensor(advantage, dtype=torch.float64),
                        torch.arange(len(ratio)))  # fmt: skip
    loss_R, diagnostics = compute(kind, inputs, **options)
    (gradient,) = torch.autograd.grad(loss_R.sum(), logp)
    return loss_R.tolist(), gradient.tolist(), diagnostics


@pytest.mark.parametrize("kind", KINDS)
def test_at_ratio_one_every_loss_has_the_gradient_of_minus_the_advantage_and_clips_nothing(kind):
    _, gradient, diagnostics = single(kind, [1.0, 1.0, 1.0], [2.0, -3.0, 0.0])
    assert gradient == pytest.approx([-2.0, 3.0, 0.0])
    assert all(float(v.abs().max()) == 0 for name, v in diagnostics.items() if name != "entropy")


@pytest.mark.parametrize("kind", KINDS)
def test_without_advantage_there_is_neither_loss_nor_gradient(kind):
    loss, gradient, _ = single(kind, [0.01, 0.5, 1.0, 2.0, 50.0], [0.0] * 5)
    assert loss == pytest.approx([0.0] * 5, abs=0)
    assert gradient == pytest.approx([0.0] * 5, abs=0)


@pytest.mark.parametrize(("kind", "options", "low", "high"), [
    ("ppo_clip", {"clip_low": 0.2, "clip_high": 0.28}, 0.8, 1.28),
    ("gspo", {"clip_low": 3e-4, "clip_high": 4e-4}, 1 - 3e-4, 1 + 4e-4),
    ("gmpo", {"clip_low": 0.4, "clip_high": 0.4}, math.exp(-0.4), math.exp(0.4)),
    ("stable_reinforce", {}, 0.8, 1.2),
])  # fmt: skip
def test_the_gradient_ends_where_the_ratio_went_too_far_in_the_direction_of_the_advantage(kind, options, low, high):
    eps = 1e-5
    ratio = [high + eps, high + eps, low - eps, low - eps, high - eps, low + eps]
    _, gradient, diagnostics = single(kind, ratio, [1.0, -1.0, 1.0, -1.0, 1.0, -1.0], **options)
    assert [g == 0 for g in gradient] == [True, False, False, True, False, False]
    assert diagnostics["clip_fraction"].tolist() == [1, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("kind", ["cispo", "sapo", "reinforce"])
def test_no_token_is_ever_dropped(kind):
    _, gradient, _ = single(kind, [0.05, 0.5, 2.0, 9.0, 0.05, 9.0], [1.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    assert all(g != 0 for g in gradient)


def test_dual_clip_ends_the_gradient_of_bad_tokens_above_it():
    _, gradient, _ = single("ppo_clip", [3.01, 2.99], [-1.0, -1.0], dual_clip=3.0)
    assert gradient == pytest.approx([0.0, 2.99])


def test_the_pre_clip_bounds_a_bad_token_at_its_bound_with_zero_gradient():
    """A<0 with rho >> 1 is what PPO's clip leaves open."""
    ratio = [math.exp(12), math.exp(-12)]
    loss, gradient, _ = single("stable_reinforce", ratio, [-1.0, 1.0])
    assert loss == pytest.approx([1000.0, -0.001])
    assert gradient == [0.0, 0.0]
    open_loss, open_gradient, _ = single("ppo_clip", ratio, [-1.0, 1.0])
    assert open_loss[0] == pytest.approx(math.exp(12)) == pytest.approx(open_gradient[0])


def test_without_extreme_ratios_the_pre_clip_is_ppo():
    ratio, advantage = [0.5, 0.9, 1.0, 1.1, 3.0], [1.0, -1.0, 1.0, -2.0, 0.5]
    ours, ppo = single("stable_reinforce", ratio, advantage), single("ppo_clip", ratio, advantage)
    assert ours[:2] == ppo[:2]


def test_raft_pp_is_raft_in_gradient_at_ratio_one():
    advantage = [1.0, 0.0, 1.0]
    assert single("ppo_clip", [1.0] * 3, advantage)[1] == single("reinforce", [1.0] * 3, advantage)[1]


def test_an_all_wrong_raft_batch_has_zero_gradient_under_the_token_mean():
    batch = [{**s, "advantage": torch.zeros_like(s["logp"])} for s in sequences()]
    loss, gradient = total_and_gradient("reinforce", batch, [list(range(6))], ("token", None))
    assert loss == 0
    assert (gradient == 0).all()


def test_gspo_with_ppos_bounds_hardly_ever_clips():
    """A mean of log-ratios is far closer to 0 than the log-ratios are."""
    g = torch.Generator().manual_seed(0)
    logp = 0.3 * torch.randn(64, 200, generator=g).flatten()
    inputs = LossInputs(logp, torch.zeros_like(logp), torch.ones_like(logp), torch.arange(64).repeat_interleave(200))
    wide = compute("gspo", inputs, clip_low=0.2, clip_high=0.2)[1]["clip_fraction"].mean()
    tiny = compute("gspo", inputs)[1]["clip_fraction"].mean()
    token = compute("ppo_clip", inputs)[1]["clip_fraction"].mean()
    assert wide == 0
    assert tiny > token > 0


def test_gspo_lets_tokens_of_a_sequence_have_advantages_of_their_own():
    logp = torch.tensor([0.1, -0.1], dtype=torch.float64, requires_grad=True)
    inputs = LossInputs(logp, torch.zeros(2).double(), torch.tensor([1.0, -2.0]).double(), torch.zeros(2).long())
    compute("gspo", inputs)[0].sum().backward()
    assert logp.grad.tolist() == pytest.approx([-1.0, 2.0])


def test_gmpo_takes_the_mean_advantage_of_the_policys_tokens():
    logp = torch.tensor([0.1, -0.3, 9.0], dtype=torch.float64, requires_grad=True)
    inputs = LossInputs(logp, torch.zeros(3).double(), torch.tensor([1.0, 2.0, 50.0]).double(), torch.zeros(3).long(),
                        torch.tensor([True, True, False]))  # fmt: skip
    loss_R, _ = compute("gmpo", inputs)
    assert loss_R.tolist() == pytest.approx([-1.5 * math.exp(-0.1)] * 3)


@pytest.mark.parametrize("kind", KINDS)
def test_absurd_log_ratios_stay_finite_in_float32(kind):
    logp = torch.tensor([500.0, -500.0], requires_grad=True)
    inputs = LossInputs(logp, torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.arange(2))
    loss_R, _ = compute(kind, inputs)
    loss_R.sum().backward()
    assert torch.isfinite(loss_R).all()
    assert torch.isfinite(logp.grad).all()


def test_sequence_mean_by_hand():
    value, segment = torch.tensor([1.0, 3.0, 100.0, 5.0, 9.0]), torch.tensor([0, 0, 0, 1, 2])
    own = torch.tensor([True, True, False, True, False])
    assert sequence_mean(value, segment, own).tolist() == [2.0, 2.0, 2.0, 5.0, 0.0]
    assert sequence_mean(value[:0], segment[:0]).shape == (0,)


@pytest.mark.parametrize(("kind", "options", "match"), [
    ("cispo", {"min_ratio": 1.0, "max_ratio": 1.0}, "reinforce"),
    ("cispo", {"max_ratio": 0.28}, "max_ratio"),
    ("cispo", {"min_ratio": 1.2}, "min_ratio"),
    ("gspo", {"clip_low": 1.0}, "clip_low"),
    ("sapo", {"tau_positive": 0.0}, "tau_positive"),
    ("stable_reinforce", {"max_ratio": 1.0}, "max_ratio"),
    ("reinforce", {"clip_low": 0.2}, "clip_low"),
])  # fmt: skip
def test_wrong_options_are_refused(kind, options, match):
    with pytest.raises(ConfigError, match=match):
        parse_options(LOSSES.get(kind).options, options, "objective.loss")


# ---- the critic's loss ---------------------------------------------


def test_the_value_loss_and_its_gradient_are_those_of_the_written_formula():
    g = torch.Generator().manual_seed(0)
    value, old, target = (torch.randn(40, generator=g, dtype=torch.float64) for _ in range(3))
    clip = 0.5

    def formula(x):
        return sum(
            0.5 * max((v - r) ** 2, (min(max(v, o - clip), o + clip) - r) ** 2)
            for v, o, r in zip(x.tolist(), old.tolist(), target.tolist(), strict=True)
        )

    value.requires_grad_()
    loss_R, diagnostics = value_loss(value, old, target, ValueLossOptions(clip=clip))
    loss_R.sum().backward()
    assert loss_R.sum().item() == pytest.approx(formula(value.detach()))
    torch.testing.assert_close(value.grad, finite_difference(formula, value.detach()), atol=1e-7, rtol=1e-6)
    clipped = diagnostics["value_clip_fraction"].bool()
    assert clipped.any()
    assert (value.grad[clipped] == 0).all()


def test_the_value_loss_without_a_clip_is_half_the_squared_error():
    value = torch.tensor([1.0, 9.0])
    loss_R, diagnostics = value_loss(value, torch.zeros(2), torch.tensor([0.0, 1.0]), ValueLossOptions(clip=None))
    assert loss_R.tolist() == [0.5, 32.0]
    assert diagnostics["value_clip_fraction"].tolist() == [0.0, 0.0]


def test_a_value_that_has_not_moved_is_not_clipped():
    value, target = torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([4.0, 0.0])
    loss_R, _ = value_loss(value, value.detach().clone(), target, ValueLossOptions(clip=0.1))
    loss_R.sum().backward()
    assert value.grad.tolist() == [-3.0, -2.0]
