"""`rule`: the recipe's verifier as a reward source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from data.example import Example
from prm.signal import SOURCES, Signal, Source, SourceContext
from rollout.trajectory import Finish, Trajectory
from verifiers.options import Options as BaseOptions
from verifiers.runner import Runner
from verifiers.verdict import Status, Verdict, VerifyRequest

TRUNCATED = Verdict(0.0, Status.TRUNCATED, "the response hit the token limit")


def verify_request(trajectory: Trajectory, example: Example) -> VerifyRequest:
    """What a verifier is asked about a response to `example`."""
    return VerifyRequest(trajectory.text, example.gold, example.meta, example.id)


def start_judging(
    runner: Runner, trajectories: Sequence[Trajectory], examples: Sequence[Example], *, truncated: str = "wrong"
) -> Callable[[], list[Verdict]]:
    """Hand the responses to the verifier and return at once; the function returned waits for the verdicts. truncated:
    as in `RuleSource.Options`."""
    cut = [t.finish == Finish.LENGTH and truncated == "wrong" for t in trajectories]
    wait = runner.submit([
        verify_request(t, e) for t, e, is_cut in zip(trajectories, examples, cut, strict=True) if not is_cut
    ])  # fmt: skip

    def finish() -> list[Verdict]:
        judged = iter(wait())
        return [TRUNCATED if is_cut else next(judged) for is_cut in cut]

    return finish


def judge_all(context: SourceContext, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> list[Verdict]:
    """The verdict on every response, the same on all ranks: each asks for a share. A response that hit the token limit
    is wrong. All ranks must ask, outside `Source.start`."""

    def judged(index: list[int]) -> list[Verdict]:
        return start_judging(context.runner, [trajectories[i] for i in index], [examples[i] for i in index])()

    return context.world.shared_work(range(len(trajectories)), judged)


@SOURCES.register("rule")
class RuleSource(Source):
    """outcome = the verdict's score; a fault (score None) becomes NaN, so that the trajectory leaves its group.

    Labels: ``verdict`` holds the `Verdict` of each trajectory.
    """

    gives_verdicts = True

    class Options(BaseOptions):
        """truncated: `wrong` gives a response that hit the token limit 0 without asking the verifier; `judge` asks."""

        truncated: Literal["wrong", "judge"] = "wrong"

    def __init__(self, options: RuleSource.Options, context: SourceContext):
        super().__init__(options, context)
        self.runner = context.runner

    def start(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Callable[[], Signal]:
        """As `start_judging`; the function returned gives the signal."""
        wait = start_judging(self.runner, trajectories, examples, truncated=self.options.truncated)

        def finish() -> Signal:
            verdicts = wait()
            outcome = [float("nan") if v.score is None else v.score for v in verdicts]
            return Signal(torch.tensor(outcome, dtype=torch.float32), labels={"verdict": verdicts})

        return finish

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        return self.start(trajectories, examples)()
