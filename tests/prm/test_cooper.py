"""Cooper: which pairs are made, what is minimised, what is measured, and that a bad assistant costs nothing."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from data.example import Example
from prm.cooper import pair_loss, pick_positives, shortcuts
from prm.judge.base import Judge, JudgeReply, JudgeRequest, ReplyStatus
from prm.judge.corrupt import CorruptJudge, corrupted
from prm.reward_model import scores_of
from prm.signal import SOURCES, Kept
from rollout.packing import TokenIds
from tests.helpers import make_config
from tests.prm.test_step_scorer import answered, chain, context
from verifiers.errors import ConfigError
from verifiers.options import Options, parse_options
from verifiers.runner import Runner
from verifiers.verdict import Status, Verdict

VECTORS = json.loads((Path(__file__).parent.parent / "golden" / "cooper.json").read_text())
CORRUPT = {"kind": "corrupt"}
SCRIPTED = "tests.prm.test_cooper:Scripted"


class Scripted(Judge):
    """Says `script` try by try, to every request: a text, or a status."""

    class Options(Options):
        script: list[str]

    def __init__(self, options: Any):
        self.script, self.asked = options.script, list[JudgeRequest]()

    @classmethod
    def from_context(cls, options, context):
        return cls(options)

    def ask(self, requests):
        self.asked += requests
        failures = {str(s) for s in ReplyStatus}
        said = [self.script[r.sample] for r in requests]
        return [JudgeReply(None, ReplyStatus(s)) if s in failures else JudgeReply(s, ReplyStatus.OK) for s in said]

    def state_dict(self):
        return {"asked": len(self.asked)}


def scripted(*script: str) -> dict[str, Any]:
    return {"kind": SCRIPTED, "script": list(script)}


@pytest.fixture(scope="module")
def runner():
    with Runner("exact", {"marker": "#", "numeric": True}) as made:
        yield made


def cooper(runner: Runner, assistant: dict[str, Any] = CORRUPT, **options: Any) -> Any:
    cls = SOURCES.get("cooper")
    given = {"assistant": assistant, "optim": {"lr": 3e-3}, **options}
    made = cls(parse_options(cls.Options, given, "sources.0"), context(runner, chain(12)))
    made.start_from(made.scorer.model.causal_lm.state_dict())
    with torch.no_grad():
        made.scorer.model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return made


def wrong_answer(example: Example) -> str:
    return f"#{(int(example.gold) + 1) % 5}"


def kept_groups(rights: list[list[bool]], step: int = 0, verdicts: bool = True) -> Kept:
    """One group a list; a right response is the demonstration, a wrong one answers directly."""
    examples = chain(len(rights))
    trajectories, asked, judged = [], [], []
    for g, (example, samples) in enumerate(zip(examples, rights, strict=True)):
        for s, right in enumerate(samples):
            assert example.solution is not None
            trajectories.append(answered(example, example.solution if right else wrong_answer(example), g, s))
            asked.append(example)
            judged.append(Verdict(float(right), Status.CORRECT if right else Status.WRONG, answer="0"))
    return Kept(trajectories, asked, torch.zeros(len(asked)), judged if verdicts else [], step)


def learn(made: Any, kept: Kept) -> dict[str, float]:
    return made.learn(kept, made.score(kept.trajectories, kept.examples))


def weights(made: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.scorer.model.parameters()]).clone()


# ---- the loss ------------------------------------------------------


def loss(positive: list[float], negative: list[float], valid: list[float]) -> float:
    return float(pair_loss(*(torch.tensor(v, dtype=torch.float64) for v in (positive, negative, valid))))


@pytest.mark.parametrize("record", [v for v in VECTORS if v["method"] == "cooper.rm_loss"])
def test_the_loss_is_the_reference_s(record):
    i = record["inputs"]
    assert loss(i["pos_logit"], i["neg_logit"], i["valid"]) == pytest.approx(record["outputs"], abs=2e-6)


def test_equal_logits_cost_ln_2_and_swapped_ones_their_difference_more():
    assert loss([0.7], [0.7], [1]) == pytest.approx(math.log(2), abs=1e-6)
    assert loss([2], [0], [1]) == pytest.approx(0.126928, abs=2e-6)
    assert loss([0], [2], [1]) == pytest.approx(2.126928, abs=4e-6)


def test_a_batch_of_masked_pairs_costs_0_and_has_no_gradient_and_no_nan():
    positive = torch.tensor([1.0, math.inf], requires_grad=True)
    value = pair_loss(positive, torch.tensor([math.nan, 0.0]), torch.zeros(2))
    (gradient,) = torch.autograd.grad(value, positive)
    assert float(value.detach()) == 0
    assert gradient.tolist() == [0, 0]


def test_a_constant_added_to_both_logits_changes_nothing():
    assert loss([2.5, -1], [0.5, 0], [1, 1]) == pytest.approx(loss([102.5, 99], [100.5, 100], [1, 1]), abs=1e-9)


def test_masked_pairs_have_no_effect_on_the_gradient():
    def gradient(other: float) -> list[float]:
        positive = torch.tensor([1.0, other], requires_grad=True)
        return torch.autograd.grad(pair_loss(positive, torch.zeros(2), torch.tensor([1.0, 0.0])), positive)[0].tolist()

    assert gradient(5.0) == gradient(-70.0)
    assert gradient(5.0)[1] == 0


def test_masks_of_another_rank_are_refused():
    positive, valid = torch.tensor([2.0, 0.0]), torch.tensor([[1.0], [0.0]])
    trapped = -(logsigmoid(positive) * valid).sum() / (valid.sum() + 1e-6)  # (B,) against (B, 1): B x B
    assert float(trapped) != pytest.approx(loss([2, 0], [0, 0], [1, 0]), abs=1e-3)
    with pytest.raises(ValueError, match="shapes differ"):
        pair_loss(positive, torch.zeros(2), valid)


def mean_of_micro_batch_means(positive: torch.Tensor, negative: torch.Tensor, valid: torch.Tensor) -> float:
    """The reference: each micro-batch of two is a masked mean of its own, all weigh the same."""
    parts = [pair_loss(positive[i : i + 2], negative[i : i + 2], valid[i : i + 2]) for i in range(0, len(valid), 2)]
    return float(torch.stack(parts).mean())


def test_the_mean_is_over_the_valid_pairs_of_the_whole_step():
    positive, negative, valid = torch.tensor([2.0, 0, 0, 5]), torch.zeros(4), torch.tensor([1.0, 1, 0, 0])
    expected = float(-logsigmoid(torch.tensor([2.0, 0.0])).mean())
    assert float(pair_loss(positive, negative, valid)) == pytest.approx(expected, abs=1e-5)
    assert mean_of_micro_batch_means(positive, negative, valid) == pytest.approx(expected / 2, abs=1e-5)  # diluted


def test_the_step_does_not_depend_on_the_micro_batches(runner):
    kept = kept_groups([[True, False], [False, True], [True, True]])
    found = []
    for tokens in (1, 10_000):
        made = cooper(runner)
        made.scorer.model.setup.packer._packed.clear()
        object.__setattr__(made.scorer.model.setup, "max_tokens_per_microbatch", tokens)
        found.append((learn(made, kept)["loss"], weights(made)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)


# ---- positives -----------------------------------------------------


@pytest.mark.parametrize("record", [v for v in VECTORS if v["method"] == "cooper.positive_selection"])
def test_the_first_positive_is_the_reference_s(record):
    groups, scores = record["inputs"]["uid"], record["inputs"]["rule_based_scores"]
    found = pick_positives([ord(g) for g in groups], scores)
    expected = {ord(g): o["picked_row"] if o["has_positive"] else None for g, o in record["outputs"].items()}
    assert found == expected


def test_groups_come_in_their_order_and_a_random_positive_depends_on_its_own_group_alone():
    groups, scores = [7, 7, 7, 2, 2, 2], [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    assert list(pick_positives(groups, scores)) == [7, 2]
    alone = [pick_positives(groups[:3], scores[:3], seed)[7] for seed in range(20)]
    assert alone == [pick_positives(groups, scores, seed)[7] for seed in range(20)]
    assert set(alone) == {0, 1}


def test_a_response_that_could_not_be_judged_is_no_positive():
    assert pick_positives([0, 0], [None, 0.5]) == {0: None}


def test_a_group_without_a_right_response_makes_no_pair(runner):
    made = cooper(runner, scripted("#9"))
    metrics = learn(made, kept_groups([[True, False], [False, False]]))
    assert metrics["pairs/valid"] == 1
    assert metrics["pairs/no_positive"] == 1
    assert [r.id for r in made.assistant.asked] == ["cooper/0/0"]


def test_without_a_rule_source_the_verifier_is_asked(runner):
    assert learn(cooper(runner), kept_groups([[True, False]], verdicts=False))["pairs/valid"] == 1


# ---- negatives -----------------------------------------------------


def test_the_assistant_sees_problem_and_right_response_and_may_write_that_much(runner):
    made = cooper(runner, scripted("#9"), extra_tokens=7)
    kept = kept_groups([[False, True]])
    learn(made, kept)
    (request,) = made.assistant.asked
    system, user = request.messages
    assert (system["role"], user["role"]) == ("system", "user")
    assert kept.examples[0].question in user["content"]
    assert kept.trajectories[1].text in user["content"]
    assert request.max_tokens == len(kept.trajectories[1].text.split()) + 7
    assert request.temperature == 0.7


def test_braces_in_a_problem_are_text(runner):
    made = cooper(runner, scripted("#9"))
    kept = kept_groups([[True]])
    kept.trajectories[0].text = "{question} {response} \\frac{1}{2}\n" + kept.trajectories[0].text
    learn(made, kept)
    assert "{question} {response} \\frac{1}{2}" in made.assistant.asked[0].messages[1]["content"]


def accepted_by_the_reference(negative_answer: str | None, positive_answer: str) -> bool:
    """It compares with the parse of the positive: what cannot be parsed is "not equal"."""
    return negative_answer != positive_answer


def test_a_negative_that_cannot_be_parsed_is_refused_and_asked_for_again(runner):
    assert accepted_by_the_reference(None, "4")  # the trap
    made = cooper(runner, scripted("I would rather not say.", "#9", "#9"))
    metrics = learn(made, kept_groups([[True, False]]))
    assert metrics["negatives/unparsed"] == 1
    assert metrics["negatives/asks"] == 2
    assert metrics["pairs/valid"] == 1


def test_a_negative_that_is_right_is_refused(runner):
    example = chain(1)[0]
    metrics = learn(cooper(runner, scripted(f"by luck #{example.gold}", "#9", "#9")), kept_groups([[True, False]]))
    assert metrics["negatives/agreed"] == 1
    assert metrics["pairs/valid"] == 1


@pytest.mark.parametrize(
    ("script", "outcome", "count"),
    [
        (["unreachable"] * 3, "no_reply", "failed"),
        (["no answer here"] * 3, "refused", "unparsed"),
        (["refused", "nothing", "timeout"], "refused", "unparsed"),
    ],
)
def test_an_assistant_that_fails_leaves_the_model_as_it_is(runner, script, outcome, count):
    made = cooper(runner, scripted(*script), optim={"lr": 3e-3, "weight_decay": 0.1})
    before = weights(made)
    metrics = learn(made, kept_groups([[True, False], [True, True]]))
    assert torch.equal(weights(made), before)
    assert made.scorer.model.optimizer_steps == 0
    assert metrics[f"pairs/{outcome}"] == 2
    assert metrics["pairs/valid"] == 0
    assert metrics["negatives/asks"] == 6
    assert metrics[f"negatives/{count}"] > 0
    assert "loss" not in metrics


def test_an_endpoint_that_is_down_leaves_the_model_as_it_is(runner):
    down = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m", "max_attempts": 1}
    made = cooper(runner, down, tries=2)
    before = weights(made)
    metrics = learn(made, kept_groups([[True, False]]))
    made.close()
    assert torch.equal(weights(made), before)
    assert metrics["pairs/no_reply"] == 1
    assert metrics["negatives/failed"] == 2
    assert made.state_dict()["assistant"]["calls"] == 2


def test_a_local_model_can_be_the_assistant_and_its_nonsense_is_refused(runner):
    model = make_config().model.model_dump()
    made = cooper(runner, {"kind": "local", "model": model, "max_prompt_tokens": 600}, extra_tokens=8)
    metrics = learn(made, kept_groups([[True, False]]))
    assert metrics["pairs/valid"] == 0
    assert metrics["negatives/asks"] == 3
    assert metrics["negatives/tokens"] > 0


def test_no_positive_in_any_group_leaves_the_model_as_it_is_and_asks_nobody(runner):
    made = cooper(runner, scripted("#9"))
    before = weights(made)
    metrics = learn(made, kept_groups([[False, False], [False, False]]))
    assert torch.equal(weights(made), before)
    assert metrics["pairs/no_positive"] == 2
    assert made.assistant.asked == []


def test_nothing_kept_teaches_nothing(runner):
    assert cooper(runner).learn(Kept([], [], torch.zeros(0), [], 0), None) == {}  # type: ignore[arg-type]


def test_a_pair_that_does_not_fit_is_masked_and_counted(runner):
    long = "1" * 300 + "#9"
    metrics = learn(cooper(runner, scripted(long), max_tokens=200, answer_chars=250), kept_groups([[True, False]]))
    assert metrics["pairs/too_long"] == 1
    assert metrics["pairs/valid"] == 0


# ---- learning ------------------------------------------------------


def test_the_margin_of_the_same_pairs_rises(runner):
    made, kept = cooper(runner, scripted("#9"), positive="first"), kept_groups([[True, False], [True, False]])
    first = learn(made, kept)
    assert learn(made, kept)["margin"] > first["margin"]
    assert first["lr"] == 3e-3


def test_the_rewards_of_a_step_are_those_of_before_its_learning_and_the_next_step_sees_the_new_weights(runner):
    made, kept = cooper(runner), kept_groups([[True, False]])
    signal = made.score(kept.trajectories, kept.examples)
    made.learn(kept, signal)
    sequences = [s for s in made.scorer.encode(kept.trajectories, kept.examples) if isinstance(s, TokenIds)]
    now = made.score(kept.trajectories, kept.examples).outcome_N
    assert not torch.equal(now, signal.outcome_N)
    torch.testing.assert_close(now, torch.tensor(scores_of(made.scorer.model, sequences)).sigmoid())


def test_options_without_an_optimizer_or_a_known_assistant_are_refused(runner):
    with pytest.raises(ConfigError, match="optim"):
        cooper(runner, optim=None)
    with pytest.raises(ConfigError, match="assistant"):
        cooper(runner, {"kind": "nobody"})


# ---- shortcuts -----------------------------------------------------

RIGHT, WRONG = Status.CORRECT, Status.WRONG


def test_shortcuts_tell_policy_made_from_assistant_made_wrong_responses():
    found = shortcuts(torch.tensor([2.0, 3.0, 4.0, -1.0]), [RIGHT, WRONG, WRONG, WRONG], torch.tensor([5, 5, 5, 5]),
                      [-9.0, -9.0])  # fmt: skip
    assert found["accuracy_right"] == 1
    assert found["accuracy_policy_wrong"] == pytest.approx(1 / 3)
    assert found["accuracy_assistant_wrong"] == 1
    assert found["style_gap"] > 0.5
    assert found["auc"] == pytest.approx(1 / 3)


def test_a_model_that_goes_by_length_shows_in_the_correlation():
    length = torch.tensor([3, 9, 4, 12])
    found = shortcuts(length.float(), [RIGHT, RIGHT, WRONG, WRONG], length, [])
    assert found["length_correlation"] == pytest.approx(1)
    assert "style_gap" not in found
    assert "accuracy_assistant_wrong" not in found


def test_faults_and_responses_without_a_score_count_nowhere():
    found = shortcuts(torch.tensor([1.0, math.nan]), [Status.VERIFIER_FAULT, RIGHT], torch.tensor([1, 2]), [])
    assert found == {}


# ---- the generator form of the assistant ---------------------------


def test_a_corrupted_response_is_wrong_and_every_later_line_follows_from_its_error():

    wrong = 0
    for example in chain(40, max_operands=5):
        assert example.solution is not None
        made = corrupted(example, example.solution, "anywhere", random.Random(example.id))
        assert made != example.solution
        assert len(made.splitlines()) == len(example.solution.splitlines())
        wrong += not made.endswith(f"#{example.gold}")
    assert wrong >= 30  # an error may cancel out; the rule then refuses the negative


def test_what_cannot_be_followed_has_its_answer_changed():

    example = chain(1)[0]
    made = corrupted(example, f"let me think #{example.gold}", "anywhere", random.Random(0))
    assert made.startswith("let me think #")
    assert not made.endswith(f"#{example.gold}")
    assert corrupted(example, "no answer", "answer", random.Random(0)) == "no answer"


def test_the_generator_answers_for_chain_alone_and_by_request_and_try():
    judge = CorruptJudge(CorruptJudge.Options(), seed=1)
    example = chain(1)[0]
    meta = {"example": example, "response": example.solution}
    said = [judge.ask([JudgeRequest("a", [], sample=s, meta=meta)])[0].text for s in (0, 0, 1, 2, 3, 4)]
    assert said[0] == said[1]
    assert len(set(said)) > 1
    assert judge.ask([JudgeRequest("a", [])])[0].status is ReplyStatus.NO_ORACLE
    down = CorruptJudge(CorruptJudge.Options(failure_rate=1.0))
    assert down.ask([JudgeRequest("a", [], meta=meta)])[0].status is ReplyStatus.UNREACHABLE
    lazy = CorruptJudge(CorruptJudge.Options(useless_rate=1.0))
    assert lazy.ask([JudgeRequest("a", [], meta=meta)])[0].text == example.solution
