"""`agreement`: labels without labels. A response is paid for giving the answer that others vote for (Co-Reward).

Who votes, by `version`:

    majority   the other samples of the same prompt: the baseline, known to collapse
    I          the samples of the question's paraphrase, and the other way round
    II         samples of a teacher, an average of past policies, for the same prompt
    III        samples of the teacher for the paraphrase

Paper: arXiv:2508.00410. Reference code: tmlr-group/Co-Reward 3a1049c9, tmlr-group/Co-rewarding 6c60ea45.

Shapes: N trajectories.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from data.example import Example
from data.pairs import PAIR
from prm.cotrained import CoTrained
from prm.signal import SOURCES, Kept, Signal, Source, SourceContext
from rollout.engine import Prompt, SamplingParams, derive_seed
from rollout.trajectory import Finish, Trajectory
from verifiers.errors import ConfigError, RunError
from verifiers.options import Options as BaseOptions
from verifiers.text import boxes
from verifiers.verdict import Status, Verdict, VerifyRequest

Version = Literal["majority", "I", "II", "III"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a response answers. key: equal keys are the same answer; None if it gives none. is_fault: we could not
    find out."""

    key: str | None
    is_fault: bool = False


@dataclass(frozen=True, slots=True)
class Vote:
    """key: the label; None if nobody gave an answer. first: the index among the voters of the first who gave it. count:
    how many did. is_fault: there is no label, and we could not read all that might have given one."""

    key: str | None
    first: int = 0
    count: int = 0
    is_fault: bool = False


@dataclass(slots=True)
class Ballot:
    """The samples that vote for one prompt, with what they answer and what comes of it."""

    example: Example
    texts: list[str]
    answers: list[Answer]
    vote: Vote


class TeacherOptions(BaseOptions):
    """The policy's share in the teacher falls from share_start to share_end by a cosine over the run; the teacher moves
    every interval_steps steps. The published code has 0.01 and 1e-5, the paper's text 0.01 and 1e-4. samples: votes a
    prompt; None: as many as the policy has samples. is_kl_reference: objective.kl pulls towards the teacher instead of
    the starting policy, as in the published code."""

    share_start: float = Field(default=0.01, ge=0, le=1)
    share_end: float = Field(default=1e-5, ge=0, le=1)
    interval_steps: int = Field(default=1, ge=1)
    samples: int | None = Field(default=None, ge=1)
    is_kl_reference: bool = False

    def share(self, step: int, total_steps: int) -> float:
        """At step 1, 2, ...; what it is worth at total_steps + 1 it keeps."""
        t = max(0, min(step - 1, total_steps))
        return self.share_end + 0.5 * (self.share_start - self.share_end) * (1 + math.cos(math.pi * t / total_steps))


@SOURCES.register("agreement")
class AgreementSource(Source):
    """outcome = 1 if the response gives the answer that its voters gave most often (of equals, the one given first),
    else 0; 0 for all where no voter gave one. A response whose answer we could not read is not judged, and has no vote.

    The gold answers decide nothing: responses are read against `answer_like`. Where there are golds, metrics say how
    often the labels are right. Labels: ``label`` and ``answer`` of each trajectory; ``label_is_right``, None where
    nobody knows.
    """

    judges = "groups"

    class Options(BaseOptions):
        """votes: which answers are the same. ``equivalent``: those of one canonical form (the recipe's verifier);
        ``boxed_text``: what stands in the last box, to the letter, as in the published code. answer_like: an answer of
        the task's form (0, or A for a choice), by which the verifier knows how to read a response. truncated: whether a
        response that hit the token limit has no answer, or is read. gold: whether labels are compared with golds."""

        version: Version
        votes: Literal["equivalent", "boxed_text"] = "equivalent"
        answer_like: str = "0"
        truncated: Literal["no_answer", "read"] = "no_answer"
        gold: Literal["measure", "ignore"] = "measure"
        teacher: TeacherOptions | None = None

        @model_validator(mode="after")
        def _teacher_of_the_versions_that_have_one(self) -> Self:
            if self.teacher is not None and not self.has_teacher:
                raise ValueError(f"version={self.version} has no teacher: drop the key, or set version=II or III")
            return self

        @property
        def has_teacher(self) -> bool:
            return self.version in ("II", "III")

        @property
        def crosses(self) -> bool:
            return self.version in ("I", "III")

    @classmethod
    def needs_both_views(cls, options: AgreementSource.Options) -> bool:
        return options.crosses

    def __init__(self, options: AgreementSource.Options, context: SourceContext):
        super().__init__(options, context)
        self.teacher: CoTrained | None = None
        self.schedule = options.teacher or TeacherOptions()
        self.steps_done = 0
        if options.has_teacher:  # in float32: a share of 1e-5 is lost in a shorter mantissa
            model = context.models.model.model_copy(update={"master_dtype": "float32"})
            self.teacher = CoTrained(replace(context.models, model=model), "lm", None)
        if options.votes == "equivalent":
            self._check_that_answers_can_be_read()

    def _check_that_answers_can_be_read(self) -> None:
        runner, like = self.context.runner, self.options.answer_like
        meta = self.context.train_examples[0].meta if self.context.train_examples else {}
        (verdict,) = runner.verify([VerifyRequest("", like, meta, "answer_like")])
        if verdict.status is Status.BAD_GOLD:
            raise ConfigError(
                f"The verifier '{runner.kind}' cannot read {like!r} as an answer: {verdict.evidence}",
                where="answer_like of the source agreement",
                fix="give an answer of the form that this task has (any value), or votes=boxed_text",
            )

    # ---- judging -------------------------------------------------------

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        """All groups of a batch together: a group's other view must be among them."""
        own = self._ballots(trajectories, {t.group: e for t, e in zip(trajectories, examples, strict=True)})
        voters = own if self.teacher is None else self._ask_teacher(trajectories, own)
        if self.options.crosses:
            voters = {group: voters[other] for group, other in other_views(own).items()}
        labels = {group: ballot.vote for group, ballot in voters.items()}
        answers = [answer for ballot in own.values() for answer in ballot.answers]
        order = {group: iter(ballot.answers) for group, ballot in own.items()}
        answer_of = [next(order[t.group]) for t in trajectories]
        right = self._are_right(voters, own)
        return Signal(
            torch.tensor([
                outcome(answer, labels[t.group]) for answer, t in zip(answer_of, trajectories, strict=True)
            ]),
            labels={
                "label": [labels[t.group].key for t in trajectories],
                "answer": [answer.key for answer in answer_of],
                "label_is_right": [right.get(t.group) for t in trajectories],
            },
            metrics=health(answers, list(voters.values()), list(right.values())) | views_metric(own),
        )  # fmt: skip

    def _ballots(self, trajectories: Sequence[Trajectory], examples: Mapping[int, Example]) -> dict[int, Ballot]:
        """By group. examples: by group."""
        ballots: dict[int, Ballot] = {}
        asked = [examples[t.group] for t in trajectories]
        for trajectory, answer in zip(trajectories, self._read(trajectories, asked), strict=True):
            empty = Ballot(examples[trajectory.group], [], [], Vote(None))
            ballot = ballots.setdefault(trajectory.group, empty)
            ballot.texts.append(trajectory.text)
            ballot.answers.append(answer)
        for ballot in ballots.values():
            ballot.vote = vote(ballot.answers)
        return ballots

    def _read(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> list[Answer]:
        is_read = [self.options.truncated == "read" or t.finish != Finish.LENGTH for t in trajectories]
        wanted = [(t, e) for t, e, wanted in zip(trajectories, examples, is_read, strict=True) if wanted]
        if self.options.votes == "boxed_text":
            found = iter([Answer(last_boxed(t.text)) for t, _ in wanted])
        else:
            like = self.options.answer_like
            verdicts = self._verify([VerifyRequest(t.text, like, e.meta, e.id) for t, e in wanted])
            found = iter([Answer(v.answer, v.is_fault) for v in verdicts])
        return [next(found) if wanted else Answer(None) for wanted in is_read]

    def _are_right(self, voters: Mapping[int, Ballot], own: Mapping[int, Ballot]) -> dict[int, bool]:
        """Whether the label of a group is the gold answer, where both are known: the first response that gave the label
        is judged in its stead."""
        if self.options.gold == "ignore":
            return {}
        asked = {
            group: VerifyRequest(ballot.texts[ballot.vote.first], own[group].example.gold, own[group].example.meta,
                                 own[group].example.id)
            for group, ballot in voters.items()
            if ballot.vote.key is not None and own[group].example.gold is not None
        }  # fmt: skip
        verdicts = zip(asked, self._verify(list(asked.values())), strict=True)
        return {group: v.status is Status.CORRECT for group, v in verdicts if not v.is_fault}

    def _verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        return self.context.world.shared_work(requests, self.context.runner.verify)

    # ---- the teacher ---------------------------------------------------

    def _ask_teacher(self, trajectories: Sequence[Trajectory], own: Mapping[int, Ballot]) -> dict[int, Ballot]:
        """The teacher's ballot for each group's prompt."""
        assert self.teacher is not None
        assert self.context.generate_with is not None
        prompts = {t.group: Prompt(t.example_id, t.group, t.prompt_ids) for t in trajectories}
        samples = self.schedule.samples or max(len(ballot.answers) for ballot in own.values())
        sampling = SamplingParams(
            self.context.max_response_tokens, self.context.models.temperature, stop=self.context.stop
        )
        seed = derive_seed(self.context.seed, "agreement/teacher", self.steps_done)
        answers = self.context.generate_with(self.teacher.weights(), list(prompts.values()), samples, sampling, seed)
        return self._ballots(answers, {group: ballot.example for group, ballot in own.items()})

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        if self.teacher is not None:
            self.teacher.start_from(weights)

    def learn(self, kept: Kept, signal: Signal) -> dict[str, float]:
        """Move the teacher towards the policy, for the rollouts of the next step: the published code does it just
        before the teacher answers, when the weights are the same."""
        self.steps_done = kept.step + 1
        step = kept.step + 2  # the one that comes, counted from 1
        if self.teacher is None or step % self.schedule.interval_steps:
            return {}
        share = self.schedule.share(step, self.context.models.total_steps)
        weights = moved(self.teacher.weights(), self.context.policy_weights(), share)
        self.teacher.start_from(weights)
        if self.schedule.is_kl_reference:
            assert self.context.move_reference is not None
            self.context.move_reference(weights)
        return {"policy_share": share}

    @classmethod
    def planned_models(cls, options: AgreementSource.Options) -> dict[str, Literal["trained", "frozen"]]:
        return {"teacher": "frozen"} if options.has_teacher else {}

    def models(self) -> dict[str, CoTrained]:
        return {} if self.teacher is None else {"teacher": self.teacher}

    def state_dict(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps_done = int(state["steps_done"])


# ---- votes -------------------------------------------------------------


def vote(answers: Sequence[Answer]) -> Vote:
    """The answer that was given most often; of equals, the one given first."""
    counts = Counter(a.key for a in answers if a.key is not None)
    if not counts:
        return Vote(None, is_fault=any(a.is_fault for a in answers))
    key, count = counts.most_common(1)[0]
    return Vote(key, next(i for i, a in enumerate(answers) if a.key == key), count)


def outcome(answer: Answer, label: Vote) -> float:
    """NaN where we could not judge."""
    if answer.is_fault or label.is_fault:
        return math.nan
    return float(label.key is not None and answer.key == label.key)


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{}``, to the letter; None without one, or if it is blank or never closed."""
    found = boxes(text)
    if not found or found[-1].content is None:
        return None
    content = text[found[-1].content]
    return content if content.strip() else None


def other_views(ballots: Mapping[int, Ballot]) -> dict[int, int]:
    """The group of the other view of each group's question. Raises `RunError` if it is not in the batch.

    By the pair's id, never by position; a question that was drawn twice has its views paired in order.
    """
    views: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for group, ballot in sorted(ballots.items()):
        views[ballot.example.meta.get(PAIR, "")][ballot.example.id].append(group)
    others: dict[int, int] = {}
    for pair, groups in views.items():
        sides = list(groups.values())
        if not pair or len(sides) != 2 or len(sides[0]) != len(sides[1]):
            raise RunError(
                f"The views of the question {pair or next(iter(groups))!r} are not together in the batch.",
                where="the source agreement",
                why="without the other view there is nobody to label a response",
                fix="data.views=both; groups of one question must not be separated",
            )
        others |= dict(zip(sides[0], sides[1], strict=True)) | dict(zip(sides[1], sides[0], strict=True))
    return others


def moved(teacher: Mapping[str, Tensor], policy: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) teacher + share policy, by name. Exactly the teacher with a share of 0, and the policy with 1."""
    return {name: old.lerp(policy[name].detach().to(old), share) for name, old in teacher.items()}


# ---- health ------------------------------------------------------------


def health(answers: Sequence[Answer], ballots: Sequence[Ballot], right: Sequence[bool]) -> dict[str, float]:
    """What voting is known to fail by. answers: of the policy; ballots: of the voters of each group; right: of the
    labels that could be compared with a gold.

    vote_share: of a prompt's voters, those who gave its label. answer_entropy: of a prompt's votes, in nats.
    label_share: of the labels of the batch, those that are the most common one.
    """
    labels = Counter(b.vote.key for b in ballots if b.vote.key is not None)
    metrics = {
        "empty_answer_share": _share([a.key is None and not a.is_fault for a in answers]),
        "fault_share": _share([a.is_fault for a in answers]),
        "empty_label_share": _share([b.vote.key is None for b in ballots]),
        "vote_share": sum(b.vote.count / len(b.answers) for b in ballots) / len(ballots),
        "answer_entropy": sum(entropy(b.answers) for b in ballots) / len(ballots),
    }
    if labels:
        metrics["label_share"] = max(labels.values()) / labels.total()
    return metrics | ({"label_accuracy": _share(right)} if right else {})


def views_metric(own: Mapping[int, Ballot]) -> dict[str, float]:
    """How often the policy votes for the same on both views; {} where there is one view, or nothing to compare."""
    votes: dict[str, list[str | None]] = defaultdict(list)
    for ballot in own.values():
        votes[ballot.example.meta.get(PAIR, "")].append(ballot.vote.key)
    pairs = [keys for pair, keys in votes.items() if pair and len(keys) == 2 and None not in keys]
    return {"views_agree_share": _share([first == second for first, second in pairs])} if pairs else {}


def entropy(answers: Sequence[Answer]) -> float:
    """Of the answers given, in nats; 0 if there are none."""
    counts = Counter(a.key for a in answers if a.key is not None)
    total = counts.total()
    return -sum(c / total * math.log(c / total) for c in counts.values()) if total else 0.0


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
