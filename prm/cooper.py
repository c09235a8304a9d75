"""`cooper`: a VerifyRM that goes on learning beside the policy, so that what fools it stops paying.

    r = sigmoid(s(q, ref, o))                                            for each response o, as `verify_rm`
    L = sum_j v_j * -log sigmoid(s(q, ref, o+_j) - s(q, ref, o-_j)) / (sum_j v_j + 1e-6)        after the policy's step

One pair a prompt: o+ is a response that the *rule* verifier marks right; o- is an assistant's rewriting of it into a
wrong solution, accepted only if the rule can read its answer and refutes it. v_j = 0 where there is no such pair. The
mean is over the valid pairs of the whole step. Without a valid pair the model stays as it is.

Paper: arXiv:2508.05613. Reference: ZJU-REAL/cooper a7e0c385 (`CollaborateDataGenerator`, `update_reward`). Not copied
from it: its micro-batches are averaged whatever number of valid pairs they hold; a negative that cannot be parsed
passes as wrong; an over-long completion loses its answer; groups come in the order of a set.

Shapes: N trajectories; B prompts, one pair each.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn.functional import logsigmoid

from data.example import Example
from prm.bench.ranking import auc, correlation
from prm.judge.base import JudgeReply, JudgeRequest, build_judge, judge_options
from prm.reward_model import loss_of_scores
from prm.rule import judge_all
from prm.signal import SOURCES, Kept, Signal, SourceContext
from prm.verify_source import VerifyOptions, VerifyRmSource, VerifyScorer
from rollout.engine import derive_seed
from rollout.packing import TokenIds
from rollout.trajectory import Trajectory
from verifiers.verdict import Status, Verdict, VerifyRequest

EPS = 1e-6
SYSTEM = (
    "You write wrong solutions for training a verifier. Given a problem and a correct solution, write a solution that "
    "is thoroughly wrong and misleading, but plausible: its reasoning contains errors, and its final answer differs "
    "from the correct one. Keep about the same length, form and style; it must look like an honest attempt."
)
USER = (
    "Problem:\n{question}\n\nCorrect solution:\n{response}\n\nWrite the solution process and the answer, nothing else."
)

# what became of a prompt's pair
VALID, NO_POSITIVE, REFUSED, NO_REPLY, TOO_LONG = "valid", "no_positive", "refused", "no_reply", "too_long"
OUTCOMES = (VALID, NO_POSITIVE, REFUSED, NO_REPLY, TOO_LONG)


class CooperOptions(VerifyOptions):
    """optim: of the reward model, for `train` and beside the policy. assistant: a judge ``{kind: openai | local |
    corrupt, ...}`` that writes the negatives. positive: which right response of a group (the paper's, or the code's
    first). tries: how often it is asked for a negative that the rule refutes. extra_tokens: what a negative may have
    beyond one token a word of the positive, up to max_reply_tokens."""

    assistant: dict[str, Any]
    positive: Literal["random", "first"] = "random"
    tries: int = Field(default=3, ge=1)
    temperature: float = Field(default=0.7, gt=0)
    extra_tokens: int = Field(default=500, ge=0)
    max_reply_tokens: int = Field(default=1024, ge=1)

    @field_validator("assistant")
    @classmethod
    def _is_a_judge(cls, part: dict[str, Any]) -> dict[str, Any]:
        judge_options(part, "assistant")
        return part

    @model_validator(mode="after")
    def _learns(self) -> CooperOptions:
        if self.optim is None:
            raise ValueError("optim is needed: cooper's reward model learns; a frozen one is the kind verify_rm")
        return self


@dataclass(frozen=True, slots=True)
class Written:
    """What the assistant made of one positive. text: None unless accepted. unparsed, agreed, faults: negatives that the
    rule could not read, found right after all, or could not judge. failed: asks without a reply. The rest: as in
    `JudgeReply.counts`."""

    text: str | None = None
    asks: int = 0
    failed: int = 0
    unparsed: int = 0
    agreed: int = 0
    faults: int = 0
    cached: int = 0
    tokens: int = 0

    @property
    def outcome(self) -> str:
        if self.text is not None:
            return VALID
        return NO_REPLY if self.failed == self.asks else REFUSED


@SOURCES.register("cooper")
class Cooper(VerifyRmSource):
    """Scores as `verify_rm`; learns from the kept groups after the policy's update.

    Who is right is the verdict of a rule source in the recipe (which may have weight 0); without one the recipe's
    verifier is asked. Metrics beside those of `verify_rm`: ``pairs/...`` (what became of each prompt's pair, and of the
    negatives that were written), ``loss``, ``margin`` (mean s+ - s-, before the step), ``grad_norm``, ``lr`` of rounds
    with a valid pair; and what shows a shortcut (`shortcuts`).
    """

    class Options(CooperOptions):
        pass

    def __init__(self, options: Cooper.Options, context: SourceContext):
        super(VerifyRmSource, self).__init__(options, context)
        self.scorer = VerifyScorer(options, context, "cooper", options.optim)
        self.assistant = build_judge(options.assistant, context, "assistant")

    def learn(self, kept: Kept, signal: Signal) -> dict[str, float]:
        if not kept.trajectories:
            return {}
        verdicts = kept.verdicts or judge_all(self.context, kept.trajectories, kept.examples)
        positives = self._positives(kept, verdicts)
        chosen = [i for i in positives.values() if i is not None]
        written = dict(zip(chosen, self._negatives(kept, chosen), strict=True))
        pairs = {i: self._encoded(kept, i, w.text) for i, w in written.items() if w.text is not None}
        valid = [pair for pair in pairs.values() if pair is not None]
        outcomes = Counter(
            NO_POSITIVE if i is None else TOO_LONG if i in pairs and pairs[i] is None else written[i].outcome
            for i in positives.values()
        )
        metrics = _counts(outcomes, list(written.values()))
        logit_N = torch.tensor(signal.labels["verify_logit"])
        made: list[float] = []
        if valid:
            learnt, made = self._step(valid)
            metrics |= learnt
        status = [v.status for v in verdicts]
        return metrics | shortcuts(logit_N, status, kept.length_N, made)

    # ---- pairs ---------------------------------------------------------

    def _positives(self, kept: Kept, verdicts: Sequence[Verdict]) -> dict[int, int | None]:
        score_N = [v.score for v in verdicts]
        groups = kept.group_N.tolist()
        if self.options.positive == "first":
            return pick_positives(groups, score_N)
        return pick_positives(groups, score_N, derive_seed(self.context.seed, "cooper", "positive", kept.step))

    def _negatives(self, kept: Kept, chosen: Sequence[int]) -> list[Written]:
        """One for each chosen trajectory. Replies are asked for together, try by try."""
        out = [Written() for _ in chosen]
        for attempt in range(self.options.tries):
            open_ = [k for k, w in enumerate(out) if w.text is None]
            if not open_:
                break
            requests = [
                self._request(kept.trajectories[chosen[k]], kept.examples[chosen[k]], kept.step, attempt) for k in open_
            ]
            share = self.context.world.shared_work
            replies = share(requests, self.assistant.ask)
            asked = [
                _to_judge(reply.text, kept.examples[chosen[k]])
                for k, reply in zip(open_, replies, strict=True) if reply.text is not None
            ]  # fmt: skip
            verdicts = iter(share(asked, self.context.runner.verify))
            for k, reply in zip(open_, replies, strict=True):
                out[k] = heard(out[k], reply, None if reply.text is None else next(verdicts))
        return out

    def _request(self, positive: Trajectory, example: Example, step: int, attempt: int) -> JudgeRequest:
        words = len(positive.text.split())
        user = USER.format(question=example.question, response=positive.text)
        return JudgeRequest(
            id=f"cooper/{step}/{positive.group}",
            messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}],
            max_tokens=min(words + self.options.extra_tokens, self.options.max_reply_tokens),
            temperature=self.options.temperature,
            sample=attempt,
            meta={"example": example, "response": positive.text},
        )

    def _encoded(self, kept: Kept, index: int, negative: str) -> tuple[TokenIds, TokenIds] | None:
        """The pair as the model reads it; None if one of the two does not fit."""
        example = kept.examples[index]
        positive = self.scorer.encode_text(example, kept.trajectories[index].text)
        wrong = self.scorer.encode_text(example, negative)
        return None if positive is None or wrong is None else (positive, wrong)

    def _step(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> tuple[dict[str, float], list[float]]:
        """One optimizer step on the mean over the pairs; (metrics, logits of the negatives before it)."""
        count, model = len(pairs), self.scorer.model
        sequences = [positive for positive, _ in pairs] + [negative for _, negative in pairs]
        before: list[Tensor] = []

        def loss(score_N: Tensor) -> tuple[Tensor, dict[str, float]]:
            before.append(score_N.detach())
            return pair_loss(score_N[:count], score_N[count:], torch.ones_like(score_N[:count])), {}

        done = model.step(sequences, loss_of_scores(model, sequences, loss), "Cooper's reward model")
        positive_B, negative_B = before[0][:count], before[0][count:]
        margin_B = positive_B - negative_B
        metrics = {"margin": float(margin_B.mean()), "pair_accuracy": float((margin_B > 0).double().mean())}
        return metrics | {name: done[name] for name in ("loss", "grad_norm", "lr")}, negative_B.tolist()

    # ---- state ---------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"assistant": self.assistant.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.assistant.load_state_dict(state["assistant"])

    def close(self) -> None:
        self.assistant.close()


def pair_loss(positive_B: Tensor, negative_B: Tensor, valid_B: Tensor) -> Tensor:
    """The masked mean of -log sigmoid(s+ - s-) over all pairs of a step. A masked pair has no gradient, whatever its
    logits are. Raises ValueError for shapes that would broadcast: (B,) with (B, 1) makes B x B pairs."""
    if not positive_B.shape == negative_B.shape == valid_B.shape:
        raise ValueError(f"shapes differ: {tuple(positive_B.shape)}, {tuple(negative_B.shape)}, {tuple(valid_B.shape)}")
    is_valid = valid_B > 0
    margin_B = torch.where(is_valid, positive_B, 0.0) - torch.where(is_valid, negative_B, 0.0)
    return -(logsigmoid(margin_B) * valid_B).sum() / (valid_B.sum() + EPS)


def pick_positives(
    groups: Sequence[int], score_N: Sequence[float | None], seed: int | None = None
) -> dict[int, int | None]:
    """{group: index of one response whose rule score is exactly 1, None if there is none}, in the order of the groups;
    the first of them, or with a seed any, whatever the other groups hold."""
    right: dict[int, list[int]] = {}
    for i, (group, score) in enumerate(zip(groups, score_N, strict=True)):
        right.setdefault(group, []).extend([i] if score == 1 else [])
    if seed is None:
        return {group: index[0] if index else None for group, index in right.items()}
    return {g: random.Random(derive_seed(seed, g)).choice(index) if index else None for g, index in right.items()}


def _to_judge(negative: str, example: Example) -> VerifyRequest:
    return VerifyRequest(negative, example.gold, example.meta, example.id)


def heard(before: Written, reply: JudgeReply, verdict: Verdict | None) -> Written:
    """`before` with one more reply. It is accepted only if the rule read an answer in it, and a wrong one."""
    counts = {name: getattr(before, name) + value for name, value in reply.counts.items()}
    if verdict is None:
        return replace(before, failed=before.failed + 1, **counts)
    if verdict.status is Status.WRONG and verdict.answer is not None:
        return replace(before, text=reply.text, **counts)
    if verdict.is_fault:
        return replace(before, faults=before.faults + 1, **counts)
    if verdict.status is Status.CORRECT:
        return replace(before, agreed=before.agreed + 1, **counts)
    return replace(before, unparsed=before.unparsed + 1, **counts)


def _counts(outcomes: Counter[str], written: Sequence[Written]) -> dict[str, float]:
    names = ("asks", "failed", "unparsed", "agreed", "faults", "cached", "tokens")
    made = {f"negatives/{name}": float(sum(getattr(w, name) for w in written)) for name in names}
    return {f"pairs/{name}": float(outcomes[name]) for name in OUTCOMES} | made


def shortcuts(
    logit_N: Tensor, status: Sequence[Status], length_N: Tensor, assistant_made: Sequence[float]
) -> dict[str, float]:
    """What the model goes by, measured on responses it has not learnt from. Each is there only where it is defined.

    accuracy_right, accuracy_policy_wrong: of the policy's right and wrong responses; auc: how well it tells these.
    length_correlation: of logit and length, over right and over wrong ones (mean of the two).
    accuracy_assistant_wrong: of the assistant's negatives, before it learnt from them. style_gap: mean probability of
    the policy's wrong responses minus that of the assistant's: high if "written by the assistant" is what it knows.
    assistant_made: their logits.
    """
    known = ~logit_N.isnan()
    right_N = known & torch.tensor([s is Status.CORRECT for s in status])
    faulty = torch.tensor([s in (Status.BAD_GOLD, Status.VERIFIER_FAULT) for s in status])
    wrong_N = known & ~right_N & ~faulty
    right, wrong, made = logit_N[right_N], logit_N[wrong_N], torch.tensor(list(assistant_made))
    found: dict[str, float | None] = {
        "accuracy_right": _share(right > 0),
        "accuracy_policy_wrong": _share(wrong <= 0),
        "accuracy_assistant_wrong": _share(made <= 0),
        "auc": auc([*right.tolist(), *wrong.tolist()], [True] * len(right) + [False] * len(wrong)),
    }
    by_kind = [correlation(logit_N[kind].tolist(), length_N[kind].double().tolist()) for kind in (right_N, wrong_N)]
    defined = [r for r in by_kind if r is not None]
    if defined:
        found["length_correlation"] = sum(defined) / len(defined)
    if len(wrong) and len(made):
        found["style_gap"] = float(wrong.sigmoid().mean() - made.sigmoid().mean())
    return {name: value for name, value in found.items() if value is not None}


def _share(of: Tensor) -> float | None:
    return float(of.double().mean()) if len(of) else None
