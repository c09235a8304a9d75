"""From rewards to advantages: shaping, dense rewards and streams as the estimators get them."""

from types import SimpleNamespace

import pytest
import torch

from data.example import Example, Message
from prm.signal import Signal
from tests.helpers import make_config, trajectory, weigh
from trainer.advantages.base import ADVANTAGES
from trainer.collect import Rollouts
from trainer.shaping.base import SHAPINGS
from verifiers.options import parse_options
from verifiers.verdict import Status, Verdict


def rollouts(responses, correct, dense=None):
    """Samples of one prompt, judged by the rule source; `dense` are token rewards of the same source."""
    trajectories = [trajectory([5, 6], ids, 0, s) for s, ids in enumerate(responses)]
    verdicts = [Verdict(float(c), Status.CORRECT if c else Status.WRONG, "") for c in correct]
    reward = torch.tensor([float(c) for c in correct])
    token_reward = None if dense is None else [torch.tensor(d) for d in dense]
    examples = [Example("q", (Message("user", "?"),), gold="1") for _ in trajectories]
    signal = Signal(reward, token_reward, labels={"verdict": verdicts})
    return Rollouts(trajectories, examples, [signal], reward, list(range(len(responses))), 0, 1, 0)


def session(advantage="dr_grpo", shaping=(), sources=None, **options):
    shaping = list(shaping)
    config = make_config({
        "objective.advantage": {"kind": advantage, **options},
        "objective.shaping": shaping,
        "sources": sources or [{"kind": "rule"}],
    })  # fmt: skip
    estimator = ADVANTAGES.get(advantage)
    parts = [(SHAPINGS.get(p.kind), p) for p in config.objective.shaping]
    return SimpleNamespace(
        config=config,
        advantage=estimator,
        critic=None,
        advantage_options=parse_options(estimator.options, options),
        shapings=[(made, parse_options(made.options, part.options)) for made, part in parts],
    )


def test_cosine_replaces_the_outcome_before_the_statistics():
    """Limit 16 without a margin: right answers get 2 at length 0 and 1 at the limit, wrong ones -10 and 0."""
    s = session(shaping=[{"kind": "cosine", "margin_tokens": 0}])
    r = rollouts([[7] * 8, [7] * 8], [True, False])
    batch, metrics = weigh(s, r)
    assert [a[0].item() for a in batch.advantages] == pytest.approx([3.25, -3.25])  # 1.5 and -5 around -1.75
    assert metrics["reward/shaped_mean"] == pytest.approx(-1.75)
    assert r.reward_N.tolist() == [1.0, 0.0]  # the record keeps the outcome


def test_shapings_apply_in_the_order_of_the_recipe():
    """cosine replaces what stands before it, and adds nothing to what comes after."""
    sparse = {"kind": "repetition", "form": "sparse", "ngram_tokens": 1, "penalty": -1.0}
    cosine = {"kind": "cosine", "margin_tokens": 0}
    r = rollouts([[7] * 8, [7] * 8], [True, False])
    _, after = weigh(session(shaping=[cosine, sparse]), r)
    _, before = weigh(session(shaping=[sparse, cosine]), r)
    assert after["reward/shaped_mean"] == pytest.approx(-1.75 - 7 / 8)
    assert before["reward/shaped_mean"] == pytest.approx(-1.75)


def test_a_dense_penalty_reaches_the_rewards_to_go_on_its_tokens():
    """No repetition before the third token: the return of the first row is 1 - 0.5 from the start, 1 at the end."""
    s = session("multi_stream", [{"kind": "repetition", "ngram_tokens": 1, "penalty": -0.5}], gammas=[1.0, 1.0])
    batch, _ = weigh(s, rollouts([[7, 8, 7, 9], [7, 8]], [True, False]))
    assert batch.advantages[0].tolist() == [0.5, 0.5, 0.5, 1.0]
    assert batch.advantages[1].tolist() == [0.0, 0.0]


def test_every_source_and_every_shaping_is_a_stream_with_its_own_discount():
    s = session("multi_stream", [{"kind": "repetition", "ngram_tokens": 1, "penalty": -0.5}],
                [{"kind": "rule", "weight": 2.0}], gammas=[1.0, 0.5])  # fmt: skip
    batch, _ = weigh(s, rollouts([[7, 8, 7]], [True], dense=[[0.25, 0.0, 0.0]]))
    # source: 2 at the last token and 0.5 on the first; penalty: -0.5 at the third token, halved twice on the way back
    assert batch.advantages[0].tolist() == [2.5 - 0.125, 2.0 - 0.25, 2.0 - 0.5]


def test_without_shaping_nothing_is_reported_and_the_outcome_is_the_reward():
    batch, metrics = weigh(session(), rollouts([[7], [7, 8]], [True, False]))
    assert metrics == {}
    assert [a.tolist() for a in batch.advantages] == [[0.5], [-0.5, -0.5]]
