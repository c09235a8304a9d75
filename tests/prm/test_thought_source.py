"""The source `thoughts`: what a judge said becomes labels, and whatever went wrong becomes plain GRPO."""

import json
from types import SimpleNamespace

import pytest
import torch

from data import load_examples
from data.example import Example, Message
from prm import tp_grpo
from prm.judge.base import ReplyStatus
from prm.signal import SOURCES, Kept
from prm.tp_grpo import ThoughtSource
from rollout.trajectory import Finish
from rollout.world import World
from tests.helpers import CPU, EOS, tokenizer, trajectory
from tests.prm.test_judge_openai import BAD, SLOW, ServerProcess
from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.advantages.grpo import GrpoOptions
from trainer.advantages.tp_grpo import TpGrpoOptions
from verifiers.errors import ConfigError
from verifiers.options import parse_options

SCRIPTED = "tests.prm.test_judge_source:Scripted"
RIGHT = "a\nb\nc\n#4"  # three steps of thinking, and the answer


@pytest.fixture
def source():
    made = []

    def make(*script, judge=None, **options):
        part = judge or {"kind": SCRIPTED, "script": list(script)}
        values = {"judge": part, "answer": "last_step", "steps": {"separator": "line"}, **options}
        context = SimpleNamespace(runner=None, tokenizer=tokenizer(), device=CPU, seed=0, world=World())
        made.append(ThoughtSource(parse_options(ThoughtSource.Options, values), context))
        return made[-1]

    yield make
    for one in made:
        one.close()


def response(text, group=0, sample=0, **fields):
    ids = [*tokenizer()(text, add_special_tokens=False)["input_ids"], EOS]
    return trajectory([1], ids, group, sample, text=text, **fields)


def kept_of(*rows, step=0):
    """rows: (text, right) or (text, right, group, question)."""
    trajectories, examples, outcomes = [], [], []
    for i, (text, right, *more) in enumerate(rows):
        group, question = more or (0, "q")
        trajectories.append(text if not isinstance(text, str) else response(text, group, i))
        examples.append(Example(f"e{group}", (Message("user", question),), gold="4"))
        outcomes.append(float(right))
    return Kept(trajectories, examples, torch.tensor(outcomes), [], step)


def key_text(trajectory, label_T):
    """The characters of key tokens; the others as dots."""
    return "".join(c if key else "." for c, key in zip(trajectory.text, label_T.tolist(), strict=False))


def judged(source, *rows):
    kept = kept_of(*rows)
    signal = source.credit(kept)
    assert [len(label) for label in signal.token_label] == [t.num_response_tokens for t in kept.trajectories]
    shown = [key_text(t, label) for t, label in zip(kept.trajectories, signal.token_label, strict=True)]
    return shown, signal


WRONG_2 = json.dumps([{"reflection_step": 3, "error_interval": [1, 2], "wrong_steps": [2]}])


# ---- labels ------------------------------------------------------


def test_in_a_right_solution_the_wrong_steps_are_not_key_and_in_a_wrong_one_the_unmatched(source):
    shown, signal = judged(source(WRONG_2, "[1, 3]"), (RIGHT, 1), ("a\nb\nc\n#5", 0))
    assert shown == ["a\n..c\n#4", "a\n..c\n#5"]
    assert signal.labels["step_is_key"] == [[True, False, True, True]] * 2
    assert torch.equal(signal.outcome_N, torch.zeros(2))
    assert all(label[-1] == 1 for label in signal.token_label)  # the end of sequence belongs to the answer


def test_nothing_wrong_is_all_key_and_nothing_matched_leaves_the_answer(source):
    shown, _ = judged(source("[]", "[]"), (RIGHT, 1), ("a\nb\nc\n#5", 0))
    assert shown == [RIGHT, "......#5"]


def test_the_two_protocols_see_the_problem_the_numbered_steps_and_the_answer(source):
    s = source("[]", "[]")
    judged(s, (RIGHT, 1, 0, "the problem"), ("a\nb\nc\n#5", 0, 0, "the problem"))
    right, wrong = (r.messages[0]["content"] for r in s.judge.asked)
    for content, answer in ((right, "#4"), (wrong, "#5")):
        assert f"[1] a\n[2] b\n[3] c\n[4, final answer] {answer}" in content
        assert "<problem>\nthe problem\n</problem>" in content
        assert "Do not solve the problem yourself" in content
    assert all(part in right for part in ("known to be right", "relies on a wrong conclusion", "reflection_step"))
    assert "known to be wrong" in wrong
    assert "reflection_step" not in wrong


def test_the_thinking_ends_at_its_tag(source):
    s = source(WRONG_2, steps={"separator": "blank_line"}, answer="after_think")
    shown, _ = judged(s, ("a\nx\n\nb\n\nc</think>\n4", 1), ("no tag", 0))
    assert shown[0] == "a\nx\n\n...c</think>\n4"


def test_a_splitter_says_where_steps_begin(source):
    s = source(WRONG_2, splitter={"kind": SCRIPTED, "script": ['["So", "then", "Wait"]', '["So", "never"]', "?", "?"]},
               answer="after_think")  # fmt: skip
    shown, signal = judged(s, ("So a, then b. Wait, c</think>4", 1), ("So a</think>5", 0))
    assert shown == ["So a, ........Wait, c</think>4", "So a</think>5"]
    assert signal.metrics["unjudged/bad_split_share"] == 0.5
    assert "</think>" not in s.splitter.asked[0].messages[0]["content"]
    assert [r.sample for r in s.splitter.asked] == [0, 0, 1, 2]


# ---- who is asked about ------------------------------------------


def test_groups_without_a_right_response_and_answers_without_thinking_are_not_asked_about(source):
    s = source("[]")
    shown, signal = judged(s, ("a\n#5", 0, 1, "q"), ("b\n#6", 0, 1, "q"), (RIGHT, 1, 2, "q"), ("#5", 0, 2, "q"))
    assert len(s.judge.asked) == 1
    assert shown == ["a\n#5", "b\n#6", RIGHT, "#5"]
    assert signal.metrics["judged_share"] == 0.25
    assert signal.metrics["unjudged/not_needed_share"] == 0.5
    assert signal.metrics["unjudged/no_steps_share"] == 0.25


def test_a_response_that_never_answers_has_no_process_reward(source):
    s = source("[]")
    cut = response("a\nb", finish=Finish.LENGTH)
    shown, signal = judged(s, (cut, 0), ("", 0), (RIGHT, 1))
    assert shown == ["a\nb", "", RIGHT]
    assert signal.metrics["unjudged/no_answer_share"] == pytest.approx(2 / 3)


def test_on_request_only_what_has_a_process_reward_takes_part(source):
    rows = [(RIGHT, 1), (RIGHT, 1), ("a\nb\nc\n#5", 0), ("#5", 0)]
    _, signal = judged(source(WRONG_2, "[]", "[1]", only_with_process_reward=True), *rows)
    assert signal.included_N.tolist() == [True, False, True, False]
    _, signal = judged(source(WRONG_2, "[]", "[1]"), *rows)
    assert signal.included_N is None


# ---- failures ----------------------------------------------------


def test_what_cannot_be_read_or_was_cut_off_is_asked_again_as_another_sample(source):
    s = source("hm", "[9]", "[1]", "truncated", "[2]", WRONG_2)
    shown, signal = judged(s, (RIGHT, 1), ("a\nb\n#5", 0), ("a\nb\n#6", 0))
    assert shown == ["a\n..c\n#4", "..b\n#5", "a\n..#6"]
    assert [r.sample for r in s.judge.asked] == [0, 0, 0, 1, 1, 2]
    assert [r.temperature for r in s.judge.asked] == [0.0] * 3 + [0.7] * 3
    assert signal.metrics["asks_per_trajectory"] == 2.0
    assert signal.metrics["judged_share"] == 1.0


def test_a_malformed_judgement_is_given_up_after_two_further_tries(source):
    s = source(*["All steps are wrong."] * 6)
    shown, signal = judged(s, (RIGHT, 1), ("a\nb\nc\n#5", 0))
    assert shown == [RIGHT, "a\nb\nc\n#5"]  # never as if all were wrong
    assert len(s.judge.asked) == 6
    assert signal.metrics["unjudged/malformed_judgement_share"] == 1.0
    assert signal.metrics["asks_per_trajectory"] == 3.0
    assert signal.labels["step_is_key"] == [None, None]


@pytest.mark.parametrize("status", [s for s in ReplyStatus if s is not ReplyStatus.OK])
def test_no_failure_of_the_judge_is_a_judgement_and_each_is_counted_by_its_cause(source, status):
    shown, signal = judged(source(status, "[]", malformed_retries=0), (RIGHT, 1), ("a\nb\nc\n#5", 0))
    assert shown == [RIGHT, "......#5"]
    assert signal.metrics[f"unjudged/{status}_share"] == 0.5
    assert signal.metrics["judged_share"] == 0.5
    assert sum(v for k, v in signal.metrics.items() if k.startswith("unjudged/")) == 0.5


def test_a_judge_over_http_that_fails_in_every_way_leaves_grpo(source, monkeypatch):
    """A real server in another process: statuses, garbage, refusals, resets, and then it dies in mid-batch."""
    for name in ("RIGHT_SOLUTION", "WRONG_SOLUTION"):
        monkeypatch.setattr(tp_grpo, name, "{question}")  # what the server is told to do
    server = ServerProcess()
    part = {"kind": "openai", "base_url": server.url + "/v1", "model": "m", "backoff_s": 0.001, "max_attempts": 1}
    try:
        causes = [*BAD, "say gibberish", "say [1]", "say [2, 4]"]
        rows = [(f"a\nb\n#{i}", i == 0, 0, what) for i, what in enumerate(causes)]
        kept = kept_of(*rows)
        signal = source(judge=part).credit(kept)
        late = source(judge=part | {"timeout_s": 0.3}).credit(kept_of((RIGHT, 1, 0, SLOW[0]), (RIGHT, 0, 0, SLOW[1])))
    finally:
        server.stop()
    dead = source(judge=part).credit(kept)
    assert [bool(label.all()) for label in signal.token_label] == [True] * (len(BAD) + 1) + [False, True]
    assert signal.labels["step_is_key"][-3:] == [None, [True, False, True], None]
    assert late.metrics["unjudged/timeout_share"] == 1.0
    assert dead.metrics["unjudged/unreachable_share"] == 1.0
    for failed in (late, dead):
        assert failed.metrics["judged_share"] == 0.0
        assert all(bool(label.all()) for label in failed.token_label)
    inputs = AdvantageInputs(
        kept.outcome_N, kept.group_N, kept.length_N, token_label_R=torch.cat(dead.token_label), correct_N=kept.correct_N
    )
    plain = ADVANTAGES.get("grpo").compute(inputs, GrpoOptions())
    assert torch.equal(ADVANTAGES.get("tp_grpo").compute(inputs, TpGrpoOptions()), plain)


def test_a_server_that_dies_in_mid_batch_costs_only_what_it_did_not_answer(source, monkeypatch):
    monkeypatch.setattr(tp_grpo, "RIGHT_SOLUTION", "{question}")
    server = ServerProcess(2)
    part = {"kind": "openai", "base_url": server.url + "/v1", "model": "m", "backoff_s": 0.001, "max_attempts": 2,
            "max_concurrency": 1}  # fmt: skip
    try:
        rows = [(RIGHT, 1, 0, f"say {WRONG_2[:-1]} {' ' * i}]") for i in range(4)]
        signal = source(judge=part).credit(kept_of(*rows))
    finally:
        server.stop()
    assert [bool(label.all()) for label in signal.token_label] == [False, False, True, True]
    assert signal.metrics["unjudged/unreachable_share"] == 0.5


def test_the_budget_of_the_judge_is_in_the_state(source):
    first = source("[]")
    judged(first, (RIGHT, 1))
    second = source()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.judge.spent == 1


# ---- the oracle --------------------------------------------------


def chain_rows():
    """Responses to 2+3*4-1 (left to right, modulo 5): 0*4-1, 0-1, 4."""
    example = next(e for e in load_examples("chain", CHAIN, key="data.train") if e.meta["expression"] == "2+3*4-1")
    texts = {
        "right": ("0*4-1\n0-1\n#4", 1),
        "right by luck": ("0*4-1\n3-1\n#4", 1),
        "wrong from the second line": ("0*4-1\n2-1\n#1", 0),
        "wrong in the answer": ("0*4-1\n0-1\n#3", 0),
    }
    trajectories = [response(text, 0, i) for i, (text, _) in enumerate(texts.values())]
    outcome = torch.tensor([float(right) for _, right in texts.values()])
    return Kept(trajectories, [example] * len(texts), outcome, [], 0)


CHAIN = {"count": 16_875, "min_operands": 4, "max_operands": 4, "modulus": 5}


def test_the_generators_oracle_finds_the_lines_in_which_the_answer_is_lost(source):
    kept = chain_rows()
    signal = source(judge={"kind": "oracle"}).credit(kept)
    assert signal.labels["step_is_key"] == [
        [True, True, True], [True, False, True], [False, True, True], [False, False, True],
    ]  # fmt: skip
    assert signal.metrics["oracle_agreement"] == 1.0
    assert signal.metrics["judged_share"] == 1.0
    assert signal.metrics["steps_per_response"] == 3.0
    assert signal.metrics["wrong_thought_share"] == 0.25  # 1 of 1 + 3
    assert signal.metrics["unmatched_thought_share"] == 0.5  # 2 of 2 + 2


def test_an_oracle_that_errs_errs_in_each_step_at_its_rate(source):
    kept = chain_rows()
    s = source(judge={"kind": "oracle", "error_rate": 0.3})
    agreement = [
        s.credit(Kept(kept.trajectories, kept.examples, kept.outcome_N, [], step)).metrics["oracle_agreement"]
        for step in range(150)
    ]  # 1200 steps
    assert sum(agreement) / len(agreement) == pytest.approx(0.7, abs=0.05)
    always = source(judge={"kind": "oracle", "error_rate": 1.0}).credit(kept)
    assert always.metrics["oracle_agreement"] == 0.0
    assert all(label[-1] == 1 for label in always.token_label)


def test_what_an_oracle_says_does_not_depend_on_the_company(source):
    kept = chain_rows()
    together = source(judge={"kind": "oracle", "error_rate": 0.5}).credit(kept).token_label
    alone = Kept(kept.trajectories[:2], kept.examples[:2], kept.outcome_N[:2], [], 0)
    apart = source(judge={"kind": "oracle", "error_rate": 0.5}).credit(alone).token_label
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=False))


def test_examples_without_an_oracle_are_grpo(source):
    _, signal = judged(source(judge={"kind": "oracle"}), (RIGHT, 1))
    assert signal.metrics["unjudged/no_oracle_share"] == 1.0
    assert "oracle_agreement" not in signal.metrics


def test_it_is_registered_and_its_typos_are_caught():
    assert SOURCES.get("thoughts") is ThoughtSource
    with pytest.raises(ConfigError, match="judge"):
        parse_options(ThoughtSource.Options, {"judge": {"kind": "orakel"}})
    with pytest.raises(ConfigError, match="error_rat"):
        parse_options(ThoughtSource.Options, {"judge": {"kind": "oracle", "error_rat": 0.1}})
    with pytest.raises(ConfigError, match="splitter"):
        parse_options(ThoughtSource.Options, {"judge": {"kind": "oracle"}, "splitter": {"kind": "orakel"}})
