"""The loop, top to bottom: sample, judge, keep, weigh, learn, sync, record.

Shapes: N trajectories of a step; R response tokens of all kept trajectories, end to end; T_i response tokens of one.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from data.sampler import Sampler
from prm.signal import Signal
from rollout.trajectory import Finish
from trainer.collect import Rollouts, collect
from trainer.learner import NonFiniteError, TrainingBatch
from trainer.replay import write_bundle
from trainer.weigh import credit, weigh
from verifiers.errors import RunError
from verifiers.verdict import Status

if TYPE_CHECKING:
    from trainer.session import Session


@dataclass(slots=True)
class LoopState:
    """What a checkpoint must hold beside the models. step: optimizer rounds done. evaluations: {step: {metric:
    estimate}}.
    best: (value, step) of checkpoint.best_by. position: the sampler's, as a resumed run must find it, where that is not
    its present one (rollouts in flight)."""

    sampler: Sampler
    step: int = 0
    evaluations: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    best: tuple[float, int] | None = None
    tokens_generated: int = 0
    tokens_trained: int = 0
    wall_seconds: float = 0.0
    position: dict[str, Any] | None = None


class StopRequested(Exception):
    """SIGTERM arrived: save and leave."""


def run_steps(session: Session, state: LoopState) -> None:
    """Train until `train.steps` rounds are done. Raises `RunError` on an alarm that must stop a run, `StopRequested`
    after saving a checkpoint when SIGTERM arrived."""
    config = session.config
    started = time.monotonic()
    while state.step < config.train.steps:
        session.world.state["step"] = state.step + 1
        clock = Clock(session.world.state)
        position = state.sampler.state_dict()
        with clock("rollout_and_verify_s"):
            rollouts = collect(session, state) if session.ahead is None else session.ahead.take(state)
        if session.should_stop():  # nothing was learnt from this step yet: give its prompts back
            state.sampler.load_state_dict(position)
            save_and_stop(session, state, started)

        with clock("advantage_s"):
            if session.ahead is None:
                session.engine.sleep()  # the learner needs its memory
            else:
                session.ahead.begin(state)
            kept = rollouts.what_is_kept(state.step)
            signals = credit(session, rollouts, kept)
            batch, weighed = weigh(session, kept, signals)
            if session.world.size > 1:
                responses = [torch.tensor(t.response_ids) for t in kept.trajectories]
                session.world.check_same("the batch of a step", [*responses, *batch.advantages, batch.included_N])
        metrics = step_metrics(rollouts) | session.staleness(state.step, rollouts) | weighed
        for name, source_metrics in zip(session.source_names, (s.metrics for s in signals), strict=True):
            metrics |= {f"{name}/{k}": v for k, v in source_metrics.items()}

        with clock("learn_s"):
            try:
                check_finite(batch)
                session.folder.write_trajectories(
                    state.step + 1,
                    trajectory_rows(rollouts, batch, dict(zip(session.source_names, signals, strict=True))),
                )
                check_faults(session, rollouts)
                if state.step >= policy_waits_steps(session):
                    metrics |= {f"policy/{k}": v for k, v in session.learner.update(batch).items()}
                if session.critic is not None:
                    metrics |= {f"critic/{k}": v for k, v in session.critic.update(batch).items()}
                for name, source, signal in zip(session.source_names, session.sources, signals, strict=True):
                    metrics |= {f"{name}/{k}": v for k, v in source.learn(kept, signal).items()}
            except NonFiniteError as error:
                bundle = write_bundle(session, state.step + 1, batch)
                raise RunError(str(error), where=f"step {state.step + 1}, bundle {bundle}") from error
        state.step += 1
        if session.ahead is None:
            with clock("sync_s"):
                session.sync(state.step)
                metrics |= session.probe_engine(state.step)

        state.tokens_generated += sum(t.num_response_tokens for t in rollouts.trajectories)
        state.tokens_trained += sum(t.num_tokens for t in batch.trajectories)
        if due(config.eval.every_steps, state.step, config.train.steps):
            with clock("evaluate_s"):
                metrics |= session.evaluate_all(state)
        warn(session, metrics)
        session.folder.append_metrics(state.step, metrics)
        clock.seconds |= {"verify_s": rollouts.verify_s, "verify_wait_s": rollouts.verify_wait_s}
        timings = clock.timings(sum(t.num_response_tokens for t in rollouts.trajectories))
        session.folder.append_timings(state.step, timings)
        session.display.update(state.step, metrics, timings)

        session.finish_saving(wait=False)
        if session.should_stop():
            save_and_stop(session, state, started)
        if due(config.checkpoint.every_steps, state.step, config.train.steps):
            state.wall_seconds += time.monotonic() - started
            started = time.monotonic()
            session.save(state)
    state.wall_seconds += time.monotonic() - started


def policy_waits_steps(session: Session) -> int:
    """Rounds at the start in which only the critic and the sources learn."""
    critic = session.config.critic
    return max([0 if critic is None else critic.warmup_steps, *(source.warmup_steps for source in session.sources)])


def due(every: int | None, step: int, last: int) -> bool:
    return step == last or (every is not None and step % every == 0)


def save_and_stop(session: Session, state: LoopState, started: float) -> None:
    state.wall_seconds += time.monotonic() - started
    path = session.save(state)
    session.finish_saving()
    raise StopRequested(f"stopped by SIGTERM after step {state.step}; saved {path}; the same command resumes")


# ---- record ------------------------------------------------------


def step_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Numbers of the step that depend on nothing but seeds and weights (no times)."""
    n = len(rollouts.trajectories)
    judged = rollouts.reward_N[~torch.isnan(rollouts.reward_N)]
    lengths = [t.num_response_tokens for t in rollouts.trajectories]
    status = Counter(v.status for v in rollouts.verdicts)
    metrics = {
        "reward/mean": float(judged.double().mean()) if len(judged) else 0.0,
        "response/length_mean": sum(lengths) / n,
        "response/length_max": float(max(lengths)),
        "response/truncated_share": sum(t.finish == Finish.LENGTH for t in rollouts.trajectories) / n,
        "rollout/trajectories": float(n),
        "rollout/unjudged_share": 1.0 - len(judged) / n,
        "groups/zero_variance_share": rollouts.flat_groups / rollouts.groups,
        "groups/trained": float(len({rollouts.trajectories[i].group for i in rollouts.kept})),
        "groups/refills": float(rollouts.refills),
    }
    metrics |= {f"groups/{reason}": float(count) for reason, count in rollouts.dropped.items()}
    if status:
        metrics["reward/accuracy"] = status[Status.CORRECT] / n
        metrics |= {f"verdict/{s}": status[s] / n for s in Status if status[s]}
    return metrics


def trajectory_rows(
    rollouts: Rollouts, batch: TrainingBatch, kept: Mapping[str, Signal] | None = None
) -> list[dict[str, Any]]:
    """One JSON object a trajectory, for ``trajectories/``. kept: by source, what it said about those trained on."""
    place = {i: k for k, i in enumerate(rollouts.kept)}
    advantage = {i: batch.advantages[k] for i, k in place.items()}
    verdicts = rollouts.verdicts
    rows = []
    for i, (trajectory, example) in enumerate(zip(rollouts.trajectories, rollouts.examples, strict=True)):
        reward = float(rollouts.reward_N[i])
        row: dict[str, Any] = {
            "example_id": example.id,
            "group": trajectory.group,
            "sample": trajectory.sample,
            "prompt": example.question,
            "response": trajectory.text,
            "gold": example.gold,
            "finish": str(trajectory.finish),
            "reward": None if reward != reward else reward,
            "trained": i in place and bool(batch.included_N[place[i]]),
            "advantage": [round(a, 6) for a in advantage[i].tolist()] if i in advantage else None,
            "prompt_ids": trajectory.prompt_ids,
            "response_ids": trajectory.response_ids,
            "logp_sampled": trajectory.logp_sampled,
            "logp_model": trajectory.logp_model,
            "weights_version": trajectory.weights_version,
        }
        if verdicts:
            v = verdicts[i]
            row["verdict"] = {"status": str(v.status), "score": v.score, "answer": v.answer, "evidence": v.evidence,
                              "parts": dict(v.parts),
                              "milliseconds": round(v.milliseconds, 3)}  # fmt: skip
        said = {name: said_of(signal, place[i]) for name, signal in (kept or {}).items()} if i in place else {}
        row["sources"] = {name: facts for name, facts in said.items() if facts}
        rows.append(row)
    return rows


def said_of(signal: Signal, index: int) -> dict[str, Any]:
    """What a source said about one trajectory beside its outcome: labels, and numbers for its tokens."""
    facts: dict[str, Any] = {n: values[index] for n, values in signal.labels.items() if n != "verdict"}
    for name in ("token_reward", "token_weight", "token_label"):
        tensors = getattr(signal, name)
        if tensors is not None:
            facts[name] = [round(v, 6) for v in tensors[index].tolist()]
    return facts


# ---- alarms ------------------------------------------------------


def check_faults(session: Session, rollouts: Rollouts) -> None:
    """Stop when too many trajectories could not be judged: the rewards of this run would not be what they seem."""
    share = float(torch.isnan(rollouts.reward_N).double().mean())
    if share <= session.config.alarms.max_fault_share:
        return
    faults = [(e.id, v) for e, v in zip(rollouts.examples, rollouts.verdicts, strict=False) if v.is_fault]
    shown = "; ".join(f"{name}: {v.status} ({v.evidence[:120]})" for name, v in faults[:3])
    raise RunError(
        f"{share:.1%} of the trajectories of this step could not be judged; the limit is "
        f"alarms.max_fault_share={session.config.alarms.max_fault_share:g}.",
        where=shown or "a learned reward source",
        why="what is left is a biased sample: the reward curve of this run would be silently wrong",
        fix="repair the verifier or the data (verdicts are in the run's trajectories/), or raise the limit knowingly",
    )


def warn(session: Session, metrics: dict[str, float]) -> None:
    gap, limit = metrics.get("policy/logprob_gap", 0.0), session.config.alarms.max_logprob_gap
    if gap > limit:
        session.display.note(
            f"warning: engine and learner log-probs differ by {gap:.3f} on average (alarms.max_logprob_gap={limit:g}); "
            "the gradient is biased unless objective.mismatch corrects it"
        )
    most = session.config.alarms.max_label_share
    for name, share in metrics.items():
        if name.endswith("/label_share") and share > most:
            session.display.note(
                f"warning: {share:.0%} of this step's questions have the same label ({name}; "
                f"alarms.max_label_share={most:g}): the policy may have collapsed to one answer for everything, which "
                "voting rewards; look at the answers in trajectories/"
            )
    if metrics["groups/trained"] == 0:
        session.display.note("warning: no group of this step had differing rewards, nothing was learnt from it; "
                             "raise samples_per_prompt, or choose problems of middling difficulty")  # fmt: skip


def check_finite(batch: TrainingBatch) -> None:
    """Raise `NonFiniteError` if an advantage or a log-prob of the engine is not finite, before anything is computed."""
    for i, (trajectory, advantage) in enumerate(zip(batch.trajectories, batch.advantages, strict=True)):
        if not bool(torch.isfinite(advantage).all()):
            raise NonFiniteError(f"The advantage of example '{trajectory.example_id}'", [i])
        if not all(math.isfinite(v) for v in trajectory.logp_sampled):
            raise NonFiniteError(f"A log-prob that the engine reported for example '{trajectory.example_id}'", [i])


class Clock:
    """Seconds per phase of one step. state: where the present phase is said, for other ranks to see."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self._state = {} if state is None else state
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()
        self._phase = ""

    def __call__(self, phase: str) -> Clock:
        self._phase, self._phase_started = phase, time.monotonic()
        self._state["phase"] = phase.removesuffix("_s")
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + time.monotonic() - self._phase_started

    def timings(self, generated_tokens: int) -> dict[str, float]:
        generation = max(1e-9, self.seconds.get("rollout_and_verify_s", 0.0))
        total = time.monotonic() - self._started
        return self.seconds | {"step_s": total, "tokens_per_second": generated_tokens / generation}
