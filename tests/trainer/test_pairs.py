"""data.views=both: the two views of a question are drawn, refilled, dropped, kept and put back together."""

from types import SimpleNamespace

import pytest
import torch

from data import Example, Message
from data.pairs import PAIR
from data.sampler import Sampler
from prm.agreement import AgreementSource
from prm.signal import Signal
from rollout.world import World
from tests.helpers import make_config, make_engine, tiny_model
from trainer.advantages.base import ADVANTAGES
from trainer.collect import collect, whole_pairs, with_other_views
from trainer.combinations import check_objective
from trainer.loop import LoopState
from trainer.preflight import check
from verifiers.errors import ConfigError, DataError

ORIGINALS = [Example(f"q{i}", (Message("user", str(i)),), "1", meta={PAIR: f"q{i}"}) for i in range(8)]
OTHERS = {e.id: Example(f"{e.id}/paraphrase", e.prompt, "1", meta=e.meta) for e in ORIGINALS}


class Told:
    """Pays what `outcome(example id, sample)` says."""

    phase = "judge"

    def __init__(self, outcome):
        self.outcome = outcome

    def score(self, trajectories, examples):
        values = [self.outcome(e.id, t.sample) for t, e in zip(trajectories, examples, strict=True)]
        return Signal(torch.tensor(values))


def gather(outcome, max_refills=0, oversample=1, put_back=False, drop=True, drop_truncated=False, state=None):
    config = make_config({
        "data.views": "both",
        "rollout.keep": {"oversample": oversample, "put_back_surplus": put_back, "drop_truncated": drop_truncated},
        "objective.zero_variance": {"drop": drop, "max_refills": max_refills},
    })  # fmt: skip
    every = [*ORIGINALS, *OTHERS.values()]
    session = SimpleNamespace(
        config=config,
        train_examples=ORIGINALS,
        prepared=SimpleNamespace(
            prompt_ids={e.id: [5, 6, 7 + i] for i, e in enumerate(every)}, views=lambda e: [e, OTHERS[e.id]]
        ),
        engine=make_engine(tiny_model(), max_rows=8),
        sources=[Told(outcome)],
        advantage=ADVANTAGES.get("grpo"),
        world=World(),
    )
    return collect(session, state or LoopState(Sampler(len(ORIGINALS), seed=0)))


def by_sample(name, sample):
    return float(sample)


def kept_ids(rollouts):
    return list(dict.fromkeys(rollouts.examples[i].id for i in rollouts.kept))


def assert_whole_pairs(rollouts):
    names = kept_ids(rollouts)
    assert names[1::2] == [f"{name}/paraphrase" for name in names[::2]]
    return names[::2]


def test_a_step_has_both_views_of_half_as_many_questions():
    rollouts = gather(by_sample)
    assert len(assert_whole_pairs(rollouts)) == 2
    assert sorted({t.group for t in rollouts.trajectories}) == [0, 1, 2, 3]
    assert [e.meta[PAIR] for e in rollouts.examples][::4] == kept_ids(rollouts)[::2]


def test_a_view_that_teaches_nothing_stays_with_one_that_does():
    rollouts = gather(lambda name, sample: float(sample and "paraphrase" not in name))
    assert len(assert_whole_pairs(rollouts)) == 2
    assert rollouts.flat_groups == 2


def test_a_question_both_views_of_which_teach_nothing_is_dropped_and_refilled():
    first = gather(by_sample)
    flat = kept_ids(first)[0]
    rollouts = gather(lambda name, sample: 0.0 if name.startswith(flat) else float(sample), max_refills=2)
    names = assert_whole_pairs(rollouts)
    assert flat not in names
    assert len(names) == 2
    assert rollouts.refills == 1


def test_a_view_that_nobody_could_judge_takes_its_other_view_along():
    lost = kept_ids(gather(by_sample))[0]
    rollouts = gather(lambda name, sample: float("nan") if name == lost else float(sample))
    assert lost not in kept_ids(rollouts)
    assert_whole_pairs(rollouts)
    assert rollouts.dropped["other_view"] == 1


def test_a_view_that_is_not_wanted_takes_its_other_view_along():
    """Groups with a response at the limit, of which some random responses are."""
    rollouts = gather(by_sample, drop_truncated=True, max_refills=3)
    assert rollouts.dropped["truncated"] > 0
    assert_whole_pairs(rollouts)


def test_surplus_questions_are_put_back_once_and_come_next_with_both_views():
    state = LoopState(Sampler(len(ORIGINALS), seed=0))
    rollouts = gather(by_sample, oversample=2, put_back=True, state=state)
    drawn = list(dict.fromkeys(e.meta[PAIR] for e in rollouts.examples))
    trained = assert_whole_pairs(rollouts)
    assert trained == drawn[:2]
    waiting = [ORIGINALS[i].id for i in state.sampler.state_dict()["put_back"]]
    assert waiting == drawn[2:]
    again = gather(by_sample, oversample=2, put_back=True, state=state)
    assert [e.meta[PAIR] for e in again.examples][::4][:2] == waiting


def test_pair_helpers_tell_views_by_their_groups():
    trajectories = [SimpleNamespace(group=g) for g in (0, 1, 4, 6, 7)]
    groups = [[0], [2], [3], [4]]
    assert whole_pairs(trajectories, groups) == ([[3], [4]], 2)
    assert with_other_views(trajectories, [[0]], [[0], [1], [3]]) == [[0], [1]]


# ---- before compute ----------------------------------------------------


def test_a_version_that_compares_views_needs_them():
    source = {"kind": "agreement", "version": "I"}
    with pytest.raises(ConfigError, match=r"data\.views=both"):
        check_objective(make_config({"sources": [source]}))
    check_objective(make_config({"sources": [source], "data.views": "both"}))
    check_objective(make_config({"sources": [source | {"version": "majority"}]}))


def test_a_vote_cannot_have_a_greedy_baseline():
    config = make_config({
        "sources": [{"kind": "agreement", "version": "majority"}],
        "objective": {"advantage": {"kind": "remax"}, "loss": {"kind": "reinforce"}, "zero_variance": {"drop": False}},
    })  # fmt: skip
    with pytest.raises(ConfigError, match="always agrees with itself"):
        check_objective(config)
    assert AgreementSource.judges == "groups"


def test_an_odd_number_of_prompts_cannot_be_pairs():
    with pytest.raises(ConfigError, match="make it even"):
        make_config({"data.views": "both", "rollout.prompts_per_step": 3})


def prepared(tmp_path, **overrides):
    data = {"kind": "chain", "count": 60, "min_operands": 3, "max_operands": 3, "part": "train"}
    return check(make_config({"data.train": data, "data.views": "both", "run.dir": str(tmp_path),
                              "verifier": {"kind": "exact", "marker": "#"}} | overrides))  # fmt: skip


def test_preflight_says_how_many_pairs_there_are_and_why_not_more(tmp_path):
    (line,) = [line for line in prepared(tmp_path).lines if line.startswith("data.views=both")]
    assert "pairs; left out" in line
    assert "without a paraphrase" in line
    assert "on the other side of the split" in line


def test_a_batch_of_more_questions_than_there_are_pairs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="questions"):
        prepared(tmp_path, **{"rollout.prompts_per_step": 200})


def test_a_paraphrase_that_an_evaluation_set_asks_is_refused(tmp_path):
    train, held = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_text('{"prompt": "1+1", "gold": "2", "paraphrase": "one and one"}\n')
    held.write_text('{"prompt": "one and one", "gold": "2"}\n')
    part = {"kind": "jsonl", "path": str(train), "meta_fields": ["paraphrase"]}
    evals = [{"name": "held", "source": {"kind": "jsonl", "path": str(held)}}]
    with pytest.raises(DataError, match="evaluation examples ask the same"):
        prepared(tmp_path, **{"data.train": part, "data.eval": evals, "rollout.prompts_per_step": 2,
                              "verifier": {"kind": "exact"}})  # fmt: skip


def test_data_without_gold_answers_can_be_voted_on(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "1+1", "paraphrase": "one and one"}\n')
    part = {"kind": "jsonl", "path": str(file), "gold_field": None, "meta_fields": ["paraphrase"]}
    report = prepared(tmp_path, **{"data.train": part, "rollout.prompts_per_step": 2, "verifier": {"kind": "exact"}})
    assert report.lines[0].startswith("data.train: 1 examples, 1 golds have no reference")
