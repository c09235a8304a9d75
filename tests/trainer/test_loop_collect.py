"""Judging while generating: every group is judged as it ends, and no record depends on when anything came."""

from types import SimpleNamespace

import pytest
import torch

from data.example import Example, Message
from data.sampler import Sampler
from prm.rule import RuleSource
from prm.signal import Signal
from rollout.engine import Prompt, SamplingParams
from rollout.world import World
from tests.helpers import make_config, make_engine, source_context, tiny_model
from trainer.advantages.base import ADVANTAGES
from trainer.collect import collect
from trainer.loop import LoopState, step_metrics
from verifiers import Runner

KIND = "tests.verifiers.hostile_kinds:Jittery"
EXAMPLES = [Example(f"q{i}", (Message("user", "1+1"),), gold=str(i)) for i in range(8)]


class Late:
    """The rule source without its first phase."""

    def __init__(self, source):
        self.source = source

    phase = "judge"

    def score(self, trajectories, examples):
        return self.source.score(trajectories, examples)


class Lengths:
    """A source of another kind."""

    phase = "judge"

    def score(self, trajectories, examples):
        return Signal(torch.tensor([float(t.num_response_tokens) for t in trajectories]))


class Spy(Runner):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.events = []

    def submit(self, requests):
        self.events.append(f"submit {requests[0].example_id}")
        return super().submit(requests)


@pytest.fixture(scope="module")
def runner():
    with Spy(KIND, {}, workers=2, timeout_s=10.0) as shared:
        yield shared


def session(runner, make_sources, max_refills=0, advantage="grpo"):
    overrides = {
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 3, "max_response_tokens": 12},
        "objective": {"advantage": {"kind": advantage}, "loss": {"kind": "ppo_clip"},
                      "zero_variance": {"max_refills": max_refills}},
    }  # fmt: skip
    overrides["sources"] = [{"kind": "rule"}] * len(make_sources)
    source = RuleSource(RuleSource.Options(truncated="judge"), source_context(runner))
    return SimpleNamespace(
        config=make_config(overrides),
        world=World(),
        train_examples=EXAMPLES,
        prepared=SimpleNamespace(prompt_ids={e.id: [5, 6, 7 + i] for i, e in enumerate(EXAMPLES)}),
        engine=make_engine(tiny_model(), max_rows=4),
        sources=[make(source) for make in make_sources],
        advantage=ADVANTAGES.get(advantage),
    )


def gather(runner, *make_sources, max_refills=0):
    made = session(runner, make_sources, max_refills)
    return collect(made, LoopState(Sampler(len(EXAMPLES), seed=0)))


def told(rollouts):
    facts = [(v.score, v.status, v.evidence, v.answer) for v in rollouts.verdicts]
    return rollouts.trajectories, rollouts.reward_N.tolist(), rollouts.kept, facts, step_metrics(rollouts)


def test_groups_are_submitted_before_generation_ends(runner):
    made = session(runner, [lambda source: source])
    generate = made.engine.generate

    def watched(*arguments):
        trajectories = generate(*arguments)
        runner.events.append("generated")
        return trajectories

    made.engine.generate = watched
    runner.events.clear()
    rollouts = collect(made, LoopState(Sampler(len(EXAMPLES), seed=0)))
    assert runner.events[-1] == "generated"
    assert sorted(runner.events[:-1]) == sorted({f"submit {t.example_id}" for t in rollouts.trajectories})
    assert rollouts.verify_s > 0


@pytest.mark.parametrize("max_refills", [0, 2])
def test_what_is_collected_does_not_depend_on_when_verdicts_come(runner, max_refills):
    early = [gather(runner, lambda source: source, max_refills=max_refills) for _ in range(2)]
    late = gather(runner, Late, max_refills=max_refills)
    assert told(early[0]) == told(early[1]) == told(late)


def test_a_source_without_a_first_phase_is_asked_in_the_same_order(runner):
    rollouts = gather(runner, lambda source: Lengths(), lambda source: source)
    lengths = [float(t.num_response_tokens) for t in rollouts.trajectories]
    assert rollouts.signals[0].outcome_N.tolist() == lengths
    assert [v.answer for v in rollouts.verdicts] == [t.example_id for t in rollouts.trajectories]


# ---- the greedy baseline -----------------------------------------


class Silent(Lengths):
    """Cannot judge the responses to the first prompt."""

    def score(self, trajectories, examples):
        signal = super().score(trajectories, examples)
        signal.outcome_N[[i for i, t in enumerate(trajectories) if t.group == 0 and len(trajectories) == 4]] = torch.nan
        return signal


def test_remax_gets_the_reward_of_the_greedy_response_to_the_same_prompt(runner):
    made = session(runner, [lambda source: Lengths()], advantage="remax")
    rollouts = collect(made, LoopState(Sampler(len(EXAMPLES), seed=0)))
    greedy = SamplingParams(12, greedy=True)
    assert len(rollouts.baseline_N) == len(rollouts.trajectories) == 12
    for trajectory, baseline in zip(rollouts.trajectories, rollouts.baseline_N.tolist(), strict=True):
        prompt = Prompt(trajectory.example_id, 0, trajectory.prompt_ids)
        assert baseline == made.engine.generate([prompt], 1, greedy, 99)[0].num_response_tokens
    assert rollouts.what_is_kept(0).baseline_N.tolist() == rollouts.baseline_N[rollouts.kept].tolist()


def test_a_prompt_whose_greedy_response_cannot_be_judged_leaves_the_step(runner):
    made = session(runner, [lambda source: Silent()], advantage="remax")
    rollouts = collect(made, LoopState(Sampler(len(EXAMPLES), seed=0)))
    assert rollouts.reward_N.isnan().tolist() == [True] * 3 + [False] * 9
    assert 0 not in {rollouts.trajectories[i].group for i in rollouts.kept}


def test_without_remax_nothing_greedy_is_sampled(runner):
    assert gather(runner, lambda source: Lengths()).baseline_N is None
