"""Labels from votes: who votes for whom, what is the same answer, and what goes wrong without costing a reward."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from data.example import Example, Message
from prm.agreement import AgreementSource, Answer, TeacherOptions, moved, vote
from prm.signal import Kept, Signal
from rollout.packing import Packer
from rollout.trajectory import Finish
from tests.helpers import make_config, make_learner, random_trajectories, source_context
from tests.prm.pairs import asked, responses, views
from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.advantages.grpo import GrpoOptions
from trainer.combinations import check_objective
from trainer.loop import warn
from verifiers import Runner
from verifiers.errors import ConfigError, RunError
from verifiers.verdict import Status, Verdict


@pytest.fixture(scope="module")
def runner():
    with Runner("exact", {}) as shared:
        yield shared


def source(runner, version="I", context=None, **options):
    return AgreementSource(AgreementSource.Options(version=version, **options), context or source_context(runner))


def both(answers, other_answers, question="q", gold="3"):
    """(trajectories, examples) of one question: group 0 asks it, group 1 its paraphrase."""
    trajectories = responses(0, answers) + responses(1, other_answers)
    return trajectories, asked(trajectories, dict(enumerate(views(question, gold))))


def rewards(signal, count):
    values = signal.outcome_N.tolist()
    return values[:count], values[count:]


# ---- who votes for whom ------------------------------------------------


def test_each_side_is_paid_for_the_other_sides_vote(runner):
    signal = source(runner).score(*both([3, 3, 3, 4], [4, 4, 5, 4]))
    assert rewards(signal, 4) == ([0, 0, 0, 1], [0, 0, 0, 0])
    assert signal.labels["label"] == ["4"] * 4 + ["3"] * 4


def test_swapping_the_views_swaps_the_rewards(runner):
    a, b = [3, 3, None, 4], [4, 4, 5, 3]
    first, second = rewards(source(runner).score(*both(a, b)), 4)
    assert rewards(source(runner).score(*both(b, a)), 4) == (second, first)


def test_a_paraphrase_that_is_the_question_gives_the_rewards_of_a_majority_vote(runner):
    answers = [3, 4, 3, None]
    crossed = rewards(source(runner).score(*both(answers, answers)), 4)
    alone = rewards(source(runner, "majority").score(*both(answers, answers)), 4)
    assert crossed == alone == ([1, 0, 1, 0], [1, 0, 1, 0])


def test_the_order_of_samples_matters_in_a_tie_only(runner):
    a, b = [3, 4, 3, 5], [5, 3, 3, 4]
    before = Counter(zip(a, rewards(source(runner).score(*both(a, b)), 4)[0], strict=True))
    shuffled = [5, 3, 4, 3]
    after = Counter(zip(shuffled, rewards(source(runner).score(*both(shuffled, b[::-1])), 4)[0], strict=True))
    assert before == after
    assert vote([Answer("1"), Answer("2")]).key == "1"
    assert vote([Answer("2"), Answer("1")]).key == "2"


def test_a_side_without_answers_gives_zeros_to_the_other(runner):
    signal = source(runner).score(*both([3, 3, 3, 4], [None] * 4))
    assert rewards(signal, 4) == ([0] * 4, [0] * 4)
    assert signal.metrics["empty_answer_share"] == 0.5
    assert signal.metrics["empty_label_share"] == 0.5


def test_responses_without_an_answer_never_agree_on_having_none(runner):
    signal = source(runner, "majority").score(*both([None, None], [None, None]))
    assert signal.outcome_N.tolist() == [0, 0, 0, 0]


def test_views_are_found_by_their_pair_and_not_by_their_place(runner):
    """Trap: shuffling the sides for balance. The trapped form pairs the k-th group with the k-th."""
    questions = {0: views("a")[0], 1: views("b")[0], 2: views("b")[1], 3: views("a")[1]}
    answers = {0: [1, 1, 2], 1: [7, 7, 8], 2: [8, 8, 7], 3: [2, 2, 1]}
    trajectories = [t for group in (3, 0, 2, 1) for t in responses(group, answers[group])]
    trajectories = trajectories[::2] + trajectories[1::2]  # not even group by group
    signal = source(runner).score(trajectories, asked(trajectories, questions))
    found = {(t.group, t.sample): r for t, r in zip(trajectories, signal.outcome_N.tolist(), strict=True)}
    right = {0: "2", 1: "8", 2: "7", 3: "1"}
    assert found == {(g, s): float(str(a) == right[g]) for g in answers for s, a in enumerate(answers[g])}

    by_place = dict(zip((0, 1), (2, 3), strict=True))  # side lists in the order of the batch
    assert [vote([Answer(str(a)) for a in answers[by_place[g]]]).key for g in (0, 1)] != [right[0], right[1]]


def test_a_question_that_was_drawn_twice_is_paired_in_order(runner):
    first, second = views("a")
    trajectories = responses(0, [1, 1]) + responses(1, [2, 1, 2]) + responses(2, [5, 5]) + responses(3, [6, 5, 6])
    signal = source(runner).score(trajectories, asked(trajectories, {0: first, 1: second, 2: first, 3: second}))
    assert signal.labels["label"] == ["2"] * 2 + ["1"] * 3 + ["6"] * 2 + ["5"] * 3


def test_a_view_whose_partner_is_missing_stops_the_run(runner):
    trajectories = responses(0, [3, 3])
    with pytest.raises(RunError, match="not together"):
        source(runner).score(trajectories, asked(trajectories, {0: views()[0]}))


def test_each_sides_advantages_sum_to_zero_and_are_not_those_of_both_together(runner):
    """Trap: one uid for both sides. The trapped form pools them before the mean and the deviation are taken."""
    trajectories, examples = both([3, 3, 4, 4], [3, 3, 3, 5])
    signal = source(runner).score(trajectories, examples)
    length_N = torch.ones(8, dtype=torch.long)
    advantage = ADVANTAGES.get("grpo").compute
    group_N = torch.tensor([t.group for t in trajectories])
    own = advantage(AdvantageInputs(signal.outcome_N, group_N, length_N), GrpoOptions())
    assert own[:4].sum() == pytest.approx(0, abs=1e-6)
    assert own[4:].sum() == pytest.approx(0, abs=1e-6)
    pooled = advantage(AdvantageInputs(signal.outcome_N, torch.zeros(8, dtype=torch.long), length_N), GrpoOptions())
    assert abs(float(pooled[:4].sum())) > 0.5


# ---- what is the same answer -------------------------------------------


def test_equal_values_are_one_vote_and_the_published_code_counts_texts(runner):
    """Trap: raw strings. Three spellings of one half lose to two of 0.4."""
    trajectories, examples = both(["1/2", "0.5", "0.50", "0.4", "0.4"], ["0.5"] * 5)
    assert source(runner, "majority").score(trajectories, examples).outcome_N.tolist()[:5] == [1, 1, 1, 0, 0]
    by_text = source(runner, "majority", votes="boxed_text").score(trajectories, examples)
    assert by_text.outcome_N.tolist()[:5] == [0, 0, 0, 1, 1]


def test_mathematical_answers_are_compared_as_mathematics():
    with Runner("math", {}, workers=1, timeout_s=20) as runner:
        signal = source(runner).score(*both([r"\frac{1}{2}", "0.5", "x=1"], ["50\\%", r"\frac12", "2"]))
    assert rewards(signal, 3) == ([1, 1, 0], [1, 1, 0])


def test_the_gold_decides_nothing(runner):
    """Unboxed numbers are looked for where the gold is a number: reading against the gold would leak what it is."""
    trajectories, _ = both([3, 3, 4, None], [4, 4, 4, 3])
    for i, t in enumerate(trajectories[:4]):
        t.text = f"I think it is {3 + i % 2}"
    outcomes = [
        source(runner).score(trajectories, asked(trajectories, dict(enumerate(views("q", gold))))).outcome_N.tolist()
        for gold in ("3", "4", "three", None)
    ]
    assert all(outcome == outcomes[0] for outcome in outcomes)
    read = runner.verify([SimpleNamespace(response=trajectories[0].text, gold=g) for g in ("3", "three")])
    assert read[0].answer != read[1].answer  # the trapped form: answers read against the gold


def test_a_response_at_the_token_limit_has_no_vote_unless_it_is_read(runner):
    trajectories, examples = both([3, 3, 4], [4, 3, 3])
    trajectories[4].finish = trajectories[5].finish = Finish.LENGTH
    assert source(runner).score(trajectories, examples).labels["label"][0] == "4"
    assert source(runner, truncated="read").score(trajectories, examples).labels["label"][0] == "3"


def test_an_answer_form_that_the_verifier_cannot_read_is_refused_before_anything_runs():
    with Runner("exact", {"numeric": True}) as runner, pytest.raises(ConfigError, match="answer_like"):
        source(runner, answer_like="yes")


# ---- faults ------------------------------------------------------------


class Failing(Runner):
    """Cannot judge the responses that say so."""

    def verify(self, requests):
        fault = Verdict(None, Status.VERIFIER_FAULT, "crashed")
        verdicts = super().verify(requests)
        return [fault if "crash" in r.response else v for r, v in zip(requests, verdicts, strict=True)]


def test_what_we_could_not_read_is_not_judged_and_does_not_vote():
    with Failing("exact", {}) as runner:
        trajectories, examples = both([3, 3, 4], [4, 4, 3])
        trajectories[3].text = trajectories[4].text = "crash"
        signal = source(runner).score(trajectories, examples)
    assert [math.isnan(v) for v in signal.outcome_N.tolist()] == [False, False, False, True, True, False]
    assert signal.outcome_N.tolist()[:3] == [1, 1, 0]
    assert signal.metrics["fault_share"] == pytest.approx(1 / 3)


def test_a_label_that_was_lost_to_our_fault_is_no_zero():
    with Failing("exact", {}) as runner:
        trajectories, examples = both([3, 3], [4, 4])
        for t in trajectories[2:]:
            t.text = "crash"
        outcome_N = source(runner).score(trajectories, examples).outcome_N
    assert outcome_N.isnan().all()


# ---- what voting fails by ----------------------------------------------


def test_one_answer_to_everything_is_rewarded_and_shows_in_the_metrics(runner):
    """Trap: the fixed point of joint collapse. Reward 1 and no gradient, while all labels are wrong."""
    questions = {0: views("a", "1")[0], 1: views("a", "1")[1], 2: views("b", "2")[0], 3: views("b", "2")[1]}
    trajectories = [t for group in range(4) for t in responses(group, [7, 7, 7])]
    signal = source(runner).score(trajectories, asked(trajectories, questions))
    assert signal.outcome_N.tolist() == [1] * 12
    shown = signal.metrics
    assert (shown["label_share"], shown["vote_share"], shown["answer_entropy"]) == (1, 1, 0)
    assert shown["label_accuracy"] == 0

    notes = []
    session = SimpleNamespace(config=make_config(), display=SimpleNamespace(note=notes.append))
    warn(session, {"groups/trained": 1, "agreement/label_share": shown["label_share"]})
    warn(session, {"groups/trained": 1, "agreement/label_share": 0.5})
    assert len(notes) == 1
    assert "one answer for everything" in notes[0]


def test_a_paraphrase_with_another_answer_shows_as_wrong_labels_and_views_that_disagree(runner):
    """Trap: the label is wrong for good, and only a gold, or the other view, tells."""
    trajectories, examples = both([3, 3, 3], [8, 8, 8], gold="3")
    metrics = source(runner).score(trajectories, examples).metrics
    assert metrics["label_accuracy"] == 0.5
    assert metrics["views_agree_share"] == 0


def test_labels_are_compared_with_golds_where_there_are_golds(runner):
    trajectories, examples = both([3, 3, 4], [4, 4, 3], gold="4")
    signal = source(runner).score(trajectories, examples)
    assert signal.labels["label_is_right"] == [True] * 3 + [False] * 3
    assert "label_accuracy" not in source(runner, gold="ignore").score(trajectories, examples).metrics
    without = source(runner).score(*both([3, 3, 4], [4, 4, 3], gold=None))
    assert "label_accuracy" not in without.metrics
    assert without.labels["label_is_right"] == [None] * 6


# ---- the teacher -------------------------------------------------------


class Policy:
    """Stands for the policy's weights and its engine: the teacher answers as it is told."""

    def __init__(self, runner, answers):
        self.answers, self.calls, self.shift = answers, [], 0.0
        self.context = source_context(runner)
        self.context.policy_weights = self.weights
        self.context.generate_with = self.generate

    def weights(self):
        return {name: tensor + self.shift for name, tensor in self.start.items()}

    def generate(self, weights, prompts, samples, sampling, seed):
        self.calls.append((weights, [p.group for p in prompts], samples, sampling, seed))
        return [t for p in prompts for t in responses(p.group, self.answers[p.group][:samples])]


def taught(runner, version, answers=None, **teacher):
    policy = Policy(runner, answers or {})
    made = source(runner, version, policy.context, teacher=TeacherOptions(**teacher))
    policy.start = {name: tensor.clone() for name, tensor in made.models()["teacher"].weights().items()}
    made.start_from(policy.start)
    return made, policy


def kept(step):
    return Kept([], [], torch.zeros(0), [], step)


def test_the_teacher_labels_the_same_prompt_in_two_and_the_other_view_in_three(runner):
    answers = {0: [5, 5, 6], 1: [6, 6, 5]}
    trajectories, examples = both([5, 6, 7], [5, 6, 7])
    for version, expected in (("II", [1, 0, 0, 0, 1, 0]), ("III", [0, 1, 0, 1, 0, 0])):
        made, policy = taught(runner, version, answers)
        assert made.score(trajectories, examples).outcome_N.tolist() == expected
        (_, groups, samples, sampling, _) = policy.calls[0]
        assert (groups, samples) == ([0, 1], 3)
        assert (sampling.temperature, sampling.max_response_tokens) == (1.0, 16)


def test_scoring_changes_nothing_so_that_a_step_can_be_thrown_away(runner):
    made, policy = taught(runner, "II", {0: [5, 5], 1: [6, 6]})
    trajectories, examples = both([5, 6], [5, 6])
    before = {n: t.clone() for n, t in made.models()["teacher"].weights().items()}
    first, second = (made.score(trajectories, examples).outcome_N.tolist() for _ in range(2))
    assert first == second
    assert policy.calls[0][4] == policy.calls[1][4]  # the same random streams
    assert all(torch.equal(t, before[n]) for n, t in made.models()["teacher"].weights().items())
    made.learn(kept(0), Signal.silent(0))
    made.score(trajectories, examples)
    assert policy.calls[2][4] != policy.calls[1][4]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 0.25), (0.5, 0.125)])
def test_a_share_of_none_freezes_the_teacher_and_of_all_copies_the_policy(runner, share, expected):
    made, policy = taught(runner, "II", share_start=share, share_end=share)
    policy.shift = 0.25
    assert made.learn(kept(0), Signal.silent(0)) == {"policy_share": share}
    now = made.models()["teacher"].weights()
    assert all(torch.allclose(now[n], t + expected, atol=1e-6) for n, t in policy.start.items())
    if share in (0.0, 1.0):
        assert all(torch.equal(now[n], (policy.weights() if share else policy.start)[n]) for n in now)


def test_the_teacher_moves_before_the_rounds_that_the_interval_divides(runner):
    made, policy = taught(runner, "II", share_start=1.0, share_end=1.0, interval_steps=3)
    moved_before = []
    for step in range(6):
        policy.shift = step + 1.0
        if made.learn(kept(step), Signal.silent(0)):
            moved_before.append(step + 2)  # rounds counted from 1
    assert moved_before == [3, 6]


def test_the_papers_schedule_keeps_99_percent_first_and_9999_at_the_end():
    paper = TeacherOptions(share_start=0.01, share_end=1e-4)
    assert 1 - paper.share(1, 100) == pytest.approx(0.99, rel=1e-12)
    assert 1 - paper.share(101, 100) == pytest.approx(0.9999, rel=1e-12)

    def circulating(k, total):  # trapped form: misses both of its ends
        return 1 - (0.9999 - 0.99) / 2 * (1 + math.cos(math.pi * k / total))

    assert circulating(0, 100) != pytest.approx(0.99, abs=1e-6)
    assert circulating(100, 100) != pytest.approx(0.9999, abs=1e-6)


def test_the_share_belongs_to_the_policy_and_not_to_the_teacher():
    """Trap: paper and code write the same letter for opposite things."""
    teacher, policy = {"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}
    assert moved(teacher, policy, 0.01)["w"].item() == pytest.approx(0.01)


def test_a_teacher_of_a_version_without_one_is_refused():
    with pytest.raises(ValueError, match="has no teacher"):
        AgreementSource.Options(version="I", teacher=TeacherOptions())


def test_the_teacher_is_kept_in_float32_so_that_small_shares_count(runner):
    config = make_config({"model.master_dtype": "bfloat16", "model.compute_dtype": "bfloat16"})
    made = source(runner, "II", source_context(runner, config))
    assert made.models()["teacher"].weights()["model.norm.weight"].dtype == torch.float32


def test_a_version_without_a_teacher_has_no_model(runner):
    assert source(runner, "I").models() == {}


def test_both_views_need_not_be_of_equal_size_to_be_learnt_from_in_full():
    """Trap: sides cut into different numbers of micro-batches, and then zipped. There are no sides here: all sequences
    are packed together, and each comes once."""
    trajectories = random_trajectories(groups=4, samples=3)
    sides = [[t for t in trajectories if t.group % 2 == side] for side in (0, 1)]
    sides[1] = [*sides[1], *random_trajectories(groups=6, samples=3, seed=9)[9:]]
    packed = Packer().pack([*sides[0], *sides[1]], 24, torch.device("cpu"))
    seen = [i for batch in packed for i in batch.sequence_index]
    assert sorted(seen) == list(range(len(sides[0]) + len(sides[1])))
    cut = [Packer().pack(side, 24, torch.device("cpu")) for side in sides]
    zipped = sum(len(b.sequence_index) for pair in zip(*cut, strict=False) for b in pair)  # the trapped form
    assert zipped < len(seen)


def test_an_example_of_ones_own_needs_no_pair_for_a_vote_of_its_own(runner):
    example = Example("q", (Message("user", "q"),), "3")
    trajectories = responses(0, [3, 3, 4])
    assert source(runner, "majority").score(trajectories, [example] * 3).outcome_N.tolist() == [1, 1, 0]


def test_the_teacher_may_be_what_the_kl_pulls_towards(runner):
    """As published: the reference is the moving teacher, not the starting policy."""
    for is_kl_reference in (True, False):
        learner = make_learner({"objective.kl.coef": 0.1})
        made, policy = taught(runner, "II", share_start=0.5, share_end=0.5, is_kl_reference=is_kl_reference)
        policy.context.move_reference = learner.move_reference
        before = {name: tensor.clone() for name, tensor in learner.reference.model.state_dict().items()}
        policy.shift = 1.0
        made.learn(kept(0), Signal.silent(0))
        now, teacher = learner.reference.model.state_dict(), made.models()["teacher"].weights()
        expected = teacher if is_kl_reference else before
        assert all(torch.equal(now[name], expected[name]) for name in now)


def test_a_teacher_cannot_be_the_reference_of_a_kl_that_is_not_there():
    source = {"kind": "agreement", "version": "II", "teacher": {"is_kl_reference": True}}
    with pytest.raises(ConfigError, match="none that could move"):
        check_objective(make_config({"sources": [source]}))
    check_objective(make_config({"sources": [source], "objective.kl.coef": 0.1}))
