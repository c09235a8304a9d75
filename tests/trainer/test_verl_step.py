"""A step of verl's queue through the recipe's rewards, and the loss that verl's workers call, against the recipe's own
learner. None of this needs verl: its two helpers for padding are stood in for."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from data.example import Example, Message
from prm.cotrained import CoTrained
from prm.implicit import cross_entropy
from prm.signal import SOURCES, Signal, Source
from prm.step_scorer import Orm
from rollout.trajectory import Finish, Trajectory
from tests.helpers import (
    EOS,
    make_config,
    make_learner,
    model_setup,
    random_trajectories,
    sharpen,
    source_context,
)
from trainer.config import Config
from trainer.critic import Critic
from trainer.learner import Learner
from trainer.losses.value import ValueLossOptions
from trainer.objective import needs_reference
from trainer.verl.dataset import RecipeDataset, write_examples
from trainer.verl.step import (
    Row,
    Step,
    Weighed,
    example_fields,
    example_of,
    in_the_order_of_rows,
    minibatches,
    trajectory_of,
    verdict_fields,
    verdict_of,
)
from trainer.verl.worker_losses import (
    BEFORE,
    CORRECTION,
    LABEL,
    REFERENCE,
    SHARE,
    VALUE_WEIGHT,
    WEIGHT,
    ImplicitLoss,
    PolicyLossOfRecipe,
    ValueLossOfRecipe,
    means,
)
from verifiers.errors import RunError
from verifiers.runner import Runner
from verifiers.verdict import Status, Verdict

pytestmark = pytest.mark.unit

RIGHT, WRONG = Verdict(1.0, Status.CORRECT), Verdict(0.0, Status.WRONG)
FAULT = Verdict(None, Status.VERIFIER_FAULT, "it crashed")


def rows_of(trajectories: list[Trajectory], verdicts: list[Verdict], learner: Learner) -> list[Row]:
    example = Example("e", (Message("user", "1+1="),), "2")
    old = learner.logprobs(trajectories)
    reference = learner.reference_logprobs(trajectories) if needs_reference(learner.config.objective.kl) else old
    return [Row(t, example, v, o, r) for t, v, o, r in zip(trajectories, verdicts, old, reference, strict=True)]


def through_the_step(config: Config, rows: list[Row], minibatch: list[int] | None = None) -> tuple[Weighed, Any]:
    step = Step(config)
    index, kept, _ = step.keep(rows, step.judge(rows), 0)
    scores = torch.tensor([v.score for v in kept.verdicts])
    batch, _ = step.advantages(rows, kept, index, [Signal(scores, labels={"verdict": kept.verdicts})])
    return in_the_order_of_rows(rows, index, batch, minibatch or [0] * len(rows), config.objective), batch


# ---- what stands in for verl's tensors ---------------------------


class Padded(dict):
    """As a TensorDict: `select`, `to_padded_tensor`."""

    def select(self, *names: str) -> Padded:
        return Padded({name: self[name] for name in names})

    def to_padded_tensor(self) -> Padded:
        return Padded({
            name: torch.nn.utils.rnn.pad_sequence(value, batch_first=True) if isinstance(value, list) else value
            for name, value in self.items()
        })  # fmt: skip


class Metric:
    def __init__(self, value: Tensor, aggregation: str):
        self.value, self.aggregation = float(value), aggregation


@pytest.fixture(autouse=True)
def _helpers_of_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    padding, metric = ModuleType("verl.workers.utils.padding"), ModuleType("verl.utils.metric")
    padding.no_padding_2_padding = lambda values, _: torch.nn.utils.rnn.pad_sequence(values, batch_first=True)  # type: ignore
    metric.Metric, metric.AggregationType = Metric, SimpleNamespace(SUM="sum")  # type: ignore
    for name, module in (("verl.workers.utils.padding", padding), ("verl.utils.metric", metric)):
        for part in (name.rsplit(".", i)[0] for i in (3, 2, 1)):
            if part not in sys.modules:
                monkeypatch.setitem(sys.modules, part, ModuleType(part))
        monkeypatch.setitem(sys.modules, name, module)


def in_verls_workers(config: Config, rows: list[Row], weighed: Weighed, logp: list[Tensor], ranks: int = 1) -> Any:
    """(the loss that verl's engine sums and averages over ranks, metrics), from micro-batches of two on each rank."""
    loss = pickle.loads(pickle.dumps(PolicyLossOfRecipe(config.objective)))
    total, metrics = torch.zeros(()), dict[str, float]()
    for start in range(0, len(rows), 2):
        own = slice(start, start + 2)
        data = Padded({
            BEFORE: weighed.before[own], WEIGHT: weighed.weights[own], CORRECTION: weighed.corrections[own],
            "advantages": weighed.advantages[own], "response_mask": [torch.ones(len(o.old)) for o in rows[own]],
            "ref_log_prob": [row.reference for row in rows[own]], "dp_size": ranks,
        })  # fmt: skip
        part, found = loss(model_output={"log_probs": logp[own]}, data=data)
        total = total + part / ranks
        for name, value in found.items():
            metrics["actor/" + name] = metrics.get("actor/" + name, 0.0) + value.value / ranks
    return total, means(metrics)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo, constant": {"objective.advantage.kind": "dr_grpo", "objective.reduce": "constant",
                          "objective.constant_tokens": 16},
    "gspo": {"objective.loss.kind": "gspo", "objective.reduce": "sequence"},
    "KL in the loss": {"objective.kl": {"coef": 0.3, "estimator": "k3"}},
    "KL in the reward": {"objective.kl": {"coef": 0.3, "estimator": "k1", "place": "reward"}},
    "mismatch": {"objective.mismatch": {"kind": "truncated", "cap": 1.1, "normalise": "token"}},
    "bypass": {"objective.mismatch": {"kind": "bypass"}, "train.epochs_per_batch": 2},
    "rejection": {"objective.mismatch": {"rejection": {"level": "token", "statistic": "k1", "upper": 1.05}}},
    "length mask": {"objective.overlong": {"kind": "mask"}},
    "soft length penalty": {"objective.overlong": {"kind": "soft", "buffer_tokens": 8}},
}  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_in_verls_workers_is_the_learners(name: str, ranks: int) -> None:
    learner = make_learner(OBJECTIVES[name] | {"optim": {"lr": 0.0, "grad_clip": 1e9}})
    config = learner.config
    trajectories = random_trajectories(4, 2)
    trajectories[1].finish = Finish.LENGTH
    verdicts = [RIGHT, WRONG, WRONG, RIGHT, RIGHT, RIGHT, WRONG, RIGHT]  # the third group is flat
    rows = rows_of(trajectories, verdicts, learner)
    weighed, batch = through_the_step(config, rows)
    assert weighed.kept == [0, 1, 2, 3, 6, 7]
    assert not any(w.any() for w in weighed.weights[4:6])

    found, metrics = in_verls_workers(config, rows, weighed, [row.old for row in rows], ranks)
    ours = learner.update(batch)
    assert float(found) == pytest.approx(ours["loss"], rel=1e-5, abs=1e-7)
    for name_of in ("clip_fraction", "approx_kl", "kl_reference"):
        if name_of in ours:
            assert metrics[f"actor/{name_of}"] == pytest.approx(ours[name_of], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_value_loss_in_verls_workers_is_the_critics(ranks: int) -> None:
    learner = make_learner({
        "critic": {"optim": {"lr": 0.0, "grad_clip": 1e9}, "clip": 0.1}, "objective.overlong": {"kind": "mask"},
        "objective.advantage": {"kind": "gae", "lam": 0.9}, "objective.zero_variance.drop": False,
    })  # fmt: skip
    config = learner.config
    critic = Critic(config, model_setup(config))
    assert critic.head is not None
    sharpen(critic.head)
    trajectories = random_trajectories(3, 2)
    trajectories[1].finish = Finish.LENGTH
    rows = rows_of(trajectories, [RIGHT, WRONG, WRONG, RIGHT, RIGHT, RIGHT], learner)
    now = critic.values(trajectories)
    for row, value in zip(rows, now, strict=True):
        row.values = value + 0.3  # before an earlier pass: some of the new values are clipped
    weighed, batch = through_the_step(config, rows)
    assert not weighed.value_weights[1].any()

    loss = pickle.loads(pickle.dumps(ValueLossOfRecipe(ValueLossOptions(clip=0.1))))
    total, clipped = 0.0, 0.0
    for start in range(0, len(rows), 2):
        own = slice(start, start + 2)
        data = Padded({
            "values": [row.values for row in rows[own]], "returns": weighed.returns[own], "dp_size": ranks,
            VALUE_WEIGHT: weighed.value_weights[own], "response_mask": [torch.ones(len(r.old)) for r in rows[own]],
        })  # fmt: skip
        part, found = loss(model_output={"values": now[own]}, data=data)
        total += float(part) / ranks
        clipped += found["value_clip_fraction"].value / ranks
    ours = critic.update(batch)
    assert total == pytest.approx(ours["loss"], rel=1e-5)
    assert clipped == pytest.approx(ours["value_clip_fraction"], rel=1e-5)
    assert 0 < clipped < 1


def test_a_response_that_could_not_be_judged_leaves_its_group_and_the_loss() -> None:
    learner = make_learner({"alarms": {"max_fault_share": 0.5}})
    rows = rows_of(random_trajectories(2, 3), [RIGHT, WRONG, FAULT, WRONG, WRONG, RIGHT], learner)
    weighed, _ = through_the_step(learner.config, rows)
    assert weighed.kept == [0, 1, 3, 4, 5]
    assert not weighed.weights[2].any()
    assert float(weighed.advantages[0][0]) == pytest.approx(0.5**0.5, rel=1e-4)  # of a group of two: 1 and 0


def test_too_many_faults_stop_the_run() -> None:
    learner = make_learner()
    rows = rows_of(random_trajectories(2, 2), [RIGHT, WRONG, FAULT, RIGHT], learner)
    step = Step(learner.config)
    said = step.judge(rows)
    with pytest.raises(RunError, match=r"(?s)25\.0%.*it crashed"):
        step.keep(rows, said, 0)


def test_what_a_judging_model_says_is_added_by_its_weight(tmp_path: Path) -> None:
    learner = make_learner(
        {"sources": [{"kind": "rule"}, {"kind": "orm", "path": "p", "role": "outcome", "weight": 0.5}]}
    )
    scorer = CoTrained(model_setup(learner.config), "scalar", None, read="after")
    assert scorer.head is not None
    sharpen(scorer.head)
    scorer.export_hf(tmp_path)
    orm = Orm(Orm.Options(path=str(tmp_path), role="outcome"), source_context(cast(Runner, None), learner.config))
    orm.start_from({})
    rows = rows_of(random_trajectories(2, 2), [RIGHT, WRONG, WRONG, WRONG], learner)
    step = Step(learner.config, [cast(Source, SOURCES.get("rule")), orm])
    index, kept, _ = step.keep(rows, step.judge(rows), 0)
    score_N = orm.score([row.trajectory for row in rows], []).outcome_N
    assert index == [0, 1, 2, 3]  # the second group is not flat any more
    torch.testing.assert_close(kept.outcome_N, torch.tensor([1.0, 0, 0, 0]) + 0.5 * score_N)


def test_weights_of_every_optimizer_step_are_over_its_own_tokens() -> None:
    learner = make_learner()
    rows = rows_of(random_trajectories(4, 2), [RIGHT, WRONG] * 4, learner)
    weighed, _ = through_the_step(learner.config, rows, [0, 0, 0, 0, 1, 1, 1, 1])
    for part in (slice(0, 4), slice(4, 8)):
        assert float(torch.cat(weighed.weights[part]).sum()) == pytest.approx(1.0, rel=1e-5)


def test_rows_are_dealt_to_ranks_and_optimizer_steps_as_verl_does() -> None:
    assert minibatches(8, 1, 4) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert minibatches(8, 2, 4) == [0, 0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_implicit_loss_is_the_mean_cross_entropy_of_the_kept(ranks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logp = [torch.randn(n, generator=generator) for n in (3, 5, 2)]
    reference = [torch.randn(n, generator=generator) for n in (3, 5, 2)]
    label, kept = [1.0, 0.0, 1.0], [0, 2]
    data = Padded({
        REFERENCE: reference, "response_mask": [torch.ones(len(x)) for x in logp], "dp_size": ranks,
        LABEL: [torch.full((len(x),), a) for x, a in zip(logp, label, strict=True)],
        SHARE: [torch.full((len(x),), 0.5 * (i in kept)) for i, x in enumerate(logp)],
    })  # fmt: skip
    loss = pickle.loads(pickle.dumps(ImplicitLoss(0.7)))
    found, _ = loss(model_output={"log_probs": logp}, data=data)
    q = [logp[i] - reference[i] for i in kept]
    expected = cross_entropy(q, torch.tensor([1.0, 1.0]), 0.7).mean()
    assert float(found) / ranks == pytest.approx(float(expected), rel=1e-6)


def test_examples_and_verdicts_survive_the_way_through_verl() -> None:
    example = Example("e", (Message("system", "s"), Message("user", "u")), {"tests": [1, None]}, None, {"modulus": 5})
    fields = json.loads(json.dumps(example_fields(example, [4, 5])))
    assert example_of(fields) == example
    assert fields["prompt_ids"] == [4, 5]
    for verdict in (RIGHT, FAULT):
        assert verdict_of(json.loads(json.dumps(verdict_fields(verdict)))) == verdict
    assert verdict_fields(FAULT)["score"] == 0.0  # verl's metrics cannot hold a NaN


def test_the_data_set_gives_verl_its_fields_and_keeps_the_example_whole(tmp_path: Path) -> None:
    example = Example("e", (Message("user", "u"),), [[1, None], {"a": "ä"}], None, {"tests": ["\u2028"]})
    file = tmp_path / "train.jsonl"
    write_examples([example] * 2, {"e": [4, 5]}, file, name="chain", evaluation=True)
    rows = RecipeDataset(str(file), tokenizer=None, config=None)
    assert len(rows) == 2
    row = rows[1]
    assert (row["data_source"], row["index"], row["extra_info"]["evaluation"]) == ("chain", 1, True)
    fields = json.loads(row["extra_info"]["example"])
    assert example_of(fields) == example
    assert fields["prompt_ids"] == [4, 5]


def test_a_response_without_an_end_of_sequence_was_cut_off() -> None:
    fields = {"example_id": "e", "prompt_ids": [5]}
    decode = lambda ids: " ".join(map(str, ids))  # noqa: E731
    config = make_config()
    ended = trajectory_of(fields, [7, 8, EOS], config, [EOS], decode, logp_sampled=[-1.0, -2.0, -3.0])
    assert (ended.finish, ended.text, ended.logp_model) == (Finish.STOP, "7 8", [-1.0, -2.0, -3.0])
    cut = trajectory_of(fields, [7, 8], config, [EOS], decode)
    assert (cut.finish, cut.text) == (Finish.LENGTH, "7 8")
