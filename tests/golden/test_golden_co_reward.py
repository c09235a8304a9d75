"""Votes, labels, advantages and the teacher's schedule against the released code of Co-Reward and Co-rewarding-II."""

import pytest
import torch

from data.pairs import PAIR
from prm.agreement import AgreementSource, Answer, TeacherOptions, last_boxed, vote
from tests.golden.vectors import CLOSE, each
from tests.helpers import source_context
from tests.prm.pairs import asked, responses, views
from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.advantages.grpo import GrpoOptions
from verifiers import Runner

pytestmark = pytest.mark.golden


def of(method):
    return each("co_reward", keep=lambda r: r["method"] == f"co_reward.{method}")


def raw(answers):
    return [Answer(None if a is None or not a.strip() else a) for a in answers]


@pytest.mark.parametrize("r", of("majority_vote"))
def test_the_vote_is_the_released_one(r):
    assert (vote(raw(r["inputs"]["answers"])).key or "") == r["outputs"]


@pytest.mark.parametrize("r", of("extract_answer"))
def test_the_boxed_text_is_the_released_one(r):
    assert (last_boxed(r["inputs"]["text"]) or "") == r["outputs"]


@pytest.mark.parametrize("r", of("cross_label"))
def test_rewards_and_advantages_of_each_side_are_the_released_ones(r):
    i, out = r["inputs"], r["outputs"]
    questions = list(dict.fromkeys(i["uid"]))
    by_group = {2 * q + side: views(name)[side] for q, name in enumerate(questions) for side in (0, 1)}
    trajectories, places = [], []  # places: (side, row) of each trajectory
    for side, name in enumerate(("answers_original", "answers_rephrased")):
        for q, question in enumerate(questions):
            rows = [k for k, uid in enumerate(i["uid"]) if uid == question]
            trajectories += responses(
                2 * q + side, [i[name][k] for k in rows], [i["response_lengths"][k] for k in rows]
            )
            places += [(side, k) for k in rows]
    with Runner("exact", {}) as runner:
        source = AgreementSource(AgreementSource.Options(version="I", votes="boxed_text"), source_context(runner))
        signal = source.score(trajectories, asked(trajectories, by_group))

    length_N = torch.tensor([t.num_response_tokens for t in trajectories])
    group_N = torch.tensor([t.group for t in trajectories])
    inputs = AdvantageInputs(signal.outcome_N, group_N, length_N)
    advantages = ADVANTAGES.get("grpo").compute(inputs, GrpoOptions()).split(length_N.tolist())
    for k, (side, row) in enumerate(places):
        name = ("original", "rephrased")[side]
        n = int(length_N[k])
        expected = out[f"reward_{name}"][row]
        assert expected == [0.0] * (n - 1) + [float(signal.outcome_N[k])] + [0.0] * (i["max_response_length"] - n)
        torch.testing.assert_close(advantages[k].float(), torch.tensor(out[f"adv_{name}"][row][:n]), **CLOSE)
    assert {e.meta[PAIR] for e in by_group.values()} == set(questions)


@pytest.mark.parametrize("r", each("co_rewarding_ii"))
def test_the_policys_share_in_the_teacher_follows_the_released_schedule(r):
    i = r["inputs"]
    schedule = TeacherOptions(share_start=i["alpha_start"], share_end=i["alpha_end"])
    for step, share in r["outputs"].items():
        assert schedule.share(int(step), i["total_steps"]) == pytest.approx(share, rel=1e-12)
