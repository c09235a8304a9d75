"""`Signal` and `Source`: how every reward, ruled or learned, reaches the trainer.

Shapes: N trajectories; T_i response tokens of trajectory i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.example import Example
from rollout.engine import Prompt, SamplingParams
from rollout.trajectory import Trajectory
from rollout.world import World
from verifiers.options import Options as BaseOptions
from verifiers.registry import Registry
from verifiers.runner import Runner
from verifiers.verdict import Status, Verdict

if TYPE_CHECKING:
    from prm.cotrained import CoTrained, ModelSetup


@dataclass(slots=True)
class Signal:
    """What one source says about N trajectories.

    outcome_N: float32 [N], NaN = not judged (the trajectory leaves its group).
    token_reward: None, or one float32 tensor [T_i] a trajectory (dense process reward).
    token_weight: None, or one float32 tensor [T_i] a trajectory (multiplies the advantage).
    token_label: None, or one int64 tensor [T_i] a trajectory: classes of tokens for an estimator that knows them.
    included_N: None, or bool [N]: who takes part in the loss (the others count in their group's statistics only).
    labels: lists of N values for the records and the report, by name.
    metrics: the source's own health in this step.
    """

    outcome_N: Tensor
    token_reward: list[Tensor] | None = None
    token_weight: list[Tensor] | None = None
    token_label: list[Tensor] | None = None
    labels: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    included_N: Tensor | None = None

    @staticmethod
    def silent(count: int) -> Signal:
        """Of a source that has nothing to say (yet): an outcome of 0 for all."""
        return Signal(torch.zeros(count))

    def select(self, index: Sequence[int]) -> Signal:
        """The same signal for a subset of the trajectories, in the order of `index`."""

        def of(tensors: list[Tensor] | None) -> list[Tensor] | None:
            return None if tensors is None else [tensors[i] for i in index]

        return Signal(
            self.outcome_N[torch.as_tensor(index, dtype=torch.long)],
            of(self.token_reward),
            of(self.token_weight),
            of(self.token_label),
            {name: [values[i] for i in index] for name, values in self.labels.items()},
            self.metrics,
            None if self.included_N is None else self.included_N[torch.as_tensor(index, dtype=torch.long)],
        )

    @staticmethod
    def concat(signals: Sequence[Signal]) -> Signal:
        """One signal for the trajectories of several, all from the same source. Metrics: the mean over those that give
        them."""
        first = signals[0]

        def of(field_name: str) -> list[Tensor] | None:
            if getattr(first, field_name) is None:
                return None
            return [tensor for s in signals for tensor in getattr(s, field_name) or []]

        names = dict.fromkeys(name for s in signals for name in s.metrics)
        values = {name: [s.metrics[name] for s in signals if name in s.metrics] for name in names}
        included = [s.included_N for s in signals if s.included_N is not None]
        return Signal(
            torch.cat([s.outcome_N for s in signals]),
            of("token_reward"),
            of("token_weight"),
            of("token_label"),
            {name: [v for s in signals for v in s.labels[name]] for name in first.labels},
            {name: sum(v) / len(v) for name, v in values.items()},
            torch.cat(included) if included else None,
        )


def verdicts_in(signals: Sequence[Signal]) -> list[Verdict]:
    """The verdicts of the first source that gives some; [] if none does."""
    return next((s.labels["verdict"] for s in signals if "verdict" in s.labels), [])


@dataclass(frozen=True, slots=True)
class Kept:
    """The trajectories of a step that are trained on, whole groups in order, with what the judging sources said.

    outcome_N: the weighted sum of their outcomes; never NaN. verdicts: of the rule source, [] without one.
    step: optimizer rounds done before this one, from 0. permuted: the outcomes were dealt out at random
    (train.shuffle_rewards), and nobody may ask who is right. baseline_N: the outcome of the greedy response to the same
    prompt, where the estimator wants it.
    """

    trajectories: list[Trajectory]
    examples: list[Example]
    outcome_N: Tensor
    verdicts: list[Verdict]
    step: int
    baseline_N: Tensor | None = None
    permuted: bool = False

    @property
    def group_N(self) -> Tensor:
        return torch.tensor([t.group for t in self.trajectories], dtype=torch.long)

    @property
    def length_N(self) -> Tensor:
        return torch.tensor([t.num_response_tokens for t in self.trajectories], dtype=torch.long)

    @property
    def correct_N(self) -> Tensor:
        """bool [N]: what the verifier said; without verdicts, an outcome above 0."""
        if not self.verdicts:
            return self.outcome_N > 0
        return torch.tensor([v.status is Status.CORRECT for v in self.verdicts], dtype=torch.bool)


# (prompts, samples a prompt, sampling, seed) -> trajectories of the present policy, by group, then sample
Generate = Callable[[Sequence[Prompt], int, SamplingParams, int], list[Trajectory]]
# the same of other weights (plain Hugging Face names), which come first
GenerateWith = Callable[[Mapping[str, Tensor], Sequence[Prompt], int, SamplingParams, int], list[Trajectory]]


@dataclass(slots=True)
class SourceContext:
    """What a source may use: the recipe's verifier, the policy's tokenizer, the device, the run's seed; how models
    beside the policy are made (`CoTrained(context.models, ...)`); the policy itself, through the engine, which takes
    prompts as long as a prompt and a response together; the rollouts' stop strings; and the training examples with the
    token ids of their prompts by example id.

    policy_weights: what the policy's weights are now, by plain Hugging Face names; copy what must not change with them.
    generate_with: the policy's engine under other weights of the same architecture, at any time, `score` included: it
    has its own again afterwards. move_reference: lets the policy's KL term pull towards these
    weights, and no more towards those at the start."""

    runner: Runner
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    seed: int
    models: ModelSetup
    generate: Generate
    max_response_tokens: int
    stop: tuple[str, ...] = ()
    train_examples: Sequence[Example] = ()
    prompt_ids: Mapping[str, list[int]] = field(default_factory=dict)
    policy_weights: Callable[[], Mapping[str, Tensor]] = dict
    generate_with: GenerateWith | None = None
    move_reference: Callable[[Mapping[str, Tensor]], None] | None = None

    @property
    def world(self) -> World:
        """The ranks of the run. What a source does in `start` is for the groups that this rank generated; all else is
        done on every rank alike, so what may differ (a verdict that can time out, a judge) goes through
        `world.shared_work`."""
        return self.models.packer.world


class Source:
    """A reward source: a rule verifier, an implicit PRM, a judge over HTTP, a VerifyRM. Subclass and register it (or
    name it as ``package.module:Class``, or announce it as an entry point of the group ``assay.reward_source``).

    It is built as ``Class(options, context)``; `options` is an instance of its nested pydantic model `Options`, so that
    a recipe's typos are caught before compute.

    phase: ``judge`` sources say what a response is worth, by `score`, before it is decided which groups are trained
    on; ``credit`` sources say how that is spread over the tokens, by `credit`, for the kept trajectories only and
    knowing the outcomes.

    warmup_steps: rounds at the start in which the policy waits, and only what learns beside it learns.
    gives: fields of `AdvantageInputs` that only some sources provide, so that a recipe whose estimator needs them, or
    has no use for them, is known before compute: ``token_reward_R``, ``token_label_R``.
    reading: {name of a model: what its output means and where it is read}, a sentence each, for the model card.
    judges: ``groups`` if what a response is worth depends on the others to its prompt, so that none can be judged
    alone.
    gives_verdicts: its signals carry the label ``verdict``, who is right.
    """

    phase: Literal["judge", "credit"] = "judge"
    warmup_steps: int = 0
    gives: tuple[str, ...] = ()
    reading: ClassVar[Mapping[str, str]] = {}
    judges: Literal["responses", "groups"] = "responses"
    gives_verdicts: bool = False

    @classmethod
    def needs_both_views(cls, options: Any) -> bool:
        """Whether it compares a question with its paraphrase (data.views=both)."""
        return False

    class Options(BaseOptions):
        pass

    def __init__(self, options: Any, context: SourceContext):
        self.options, self.context = options, context

    @property
    def bears_overlap(self) -> bool:
        """Whether it may judge the next step's rollouts in another thread, and leaves the engine alone, while this step
        is learnt (`train.overlap`). A judge with a model that learns may not."""
        return self.phase == "credit" or not self.models()

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Called once, before the first step, with the policy's weights after the warm start (plain Hugging Face
        names). Models that begin as the policy copy them."""

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        """Phase judge: judge trajectories[i], an answer to examples[i]. Never raises for what a model wrote.

        A source that judges elsewhere may also have ``start(trajectories, examples) -> Callable[[], Signal]``, which
        returns at once: the loop calls it with each group as soon as it is generated, and the functions it returned
        when all are. Sources without it are asked with `score` when all groups are generated.
        """
        raise NotImplementedError(f"{type(self).__name__} has phase {self.phase} and no method for it")

    def credit(self, kept: Kept) -> Signal:
        """Phase credit: process reward, weights or labels for the tokens. An outcome other than 0 is added to the
        reward; NaN is not allowed here: what cannot be judged stays without credit, and is counted in `metrics`."""
        raise NotImplementedError(f"{type(self).__name__} has phase {self.phase} and no method for it")

    def learn(self, kept: Kept, signal: Signal) -> dict[str, float]:
        """Co-train on what was kept, after the policy's update; metrics. `signal`: what it said about them."""
        return {}

    @classmethod
    def check(cls, options: Any, key: str) -> None:
        """What can be told before anything is built: that the folders which the options name hold what they must. key:
        of the options in the recipe. Raises `ModelError`."""

    @classmethod
    def planned_models(cls, options: Any) -> dict[str, Literal["trained", "frozen"]]:
        """The names of `models` with these options, before anything is built: for the estimate of memory and disk."""
        return {}

    def models(self) -> dict[str, CoTrained]:
        """Its models by name: they are in every checkpoint with their optimizers, and are exported with it."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on beside `models`: plain data and tensors. All ranks must ask."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


SOURCES: Registry[type[Source]] = Registry("reward source", "prm")
