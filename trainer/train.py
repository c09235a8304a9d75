"""`assay train`: build what the recipe names, resume or start, run the loop, leave a summary.

Also the torchrun entry: ``python -m trainer.train recipe=NAME key=value ...``.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch.distributed as dist

from data.filters import by_pass_rate, by_repetition
from data.sampler import Sampler
from rollout.world import World, launched_size
from trainer.checkpoint import (
    checkpoint_step,
    list_checkpoints,
    remove_partial,
)
from trainer.compose import to_yaml
from trainer.config import Config
from trainer.derived import render_table
from trainer.fit_config import FitConfig
from trainer.loop import LoopState, StopRequested, run_steps
from trainer.preflight import derived_numbers
from trainer.records import RunFolder
from trainer.session import Session
from trainer.warm_start import warm_start
from trainer.watchdog import Watchdog
from verifiers.errors import RunError

# ---- the run -----------------------------------------------------


def train(config: Config) -> Path:
    """Run a recipe to its end and return its run folder. Safe to kill at any time: the same call resumes.

    Raises `AssayError` subclasses for everything a user can act on, and `StopRequested` after saving on SIGTERM.
    """
    with Session(config) as session, watched(session.world, config):
        return _train(session)


@contextmanager
def watched(world: World, config: Config | FitConfig) -> Iterator[None]:
    """Around all that the ranks do together: none waits forever for one that is gone. Raises `RunError` for a lost
    one."""
    with Watchdog(world, config.hardware.distributed.silence_timeout_s) as watchdog:
        try:
            yield
        except RuntimeError as error:
            if world.size == 1 or not is_lost_peer(error):
                raise
            raise RunError(
                f"An exchange with the other ranks failed: {str(error).splitlines()[0][:300]}",
                where=f"rank {world.rank}, {world.state.get('phase', 'start')}; {watchdog.report()}",
                why="a rank died, hangs, or was cut off; its own message is in its log",
                fix="start the same command again: it resumes from the last checkpoint",
            ) from error


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error of torch says that another rank is gone or late."""
    return isinstance(error, dist.DistError) or any(
        word in str(error).lower() for word in ("gloo", "nccl", "connection", "timed out", "store")
    )


def _train(session: Session) -> Path:
    config = session.config
    state = resume(session)
    install_sigterm(session)
    derived = derived_numbers(session.prepared, session.world.size)
    session.folder.open(config, to_yaml(config), derived)
    session.display.table(render_table(derived))
    for line in session.prepared.lines:
        session.display.note(line)
    if state is None:
        state = start(session)
    else:
        session.folder.truncate_after(state.step)
        session.display.note(f"resumed after step {state.step}")
        session.preflight_engine(state.step)
    run_steps(session, state)
    session.finish_saving()
    session.folder.write_summary(summary(session, state))
    return session.prepared.run_path


def resume(session: Session) -> LoopState | None:
    """The state of the newest checkpoint, or None to start afresh (run.resume decides what is allowed)."""
    path = newest_checkpoint(session.folder, session.config, session.config.train.steps, session.world)
    return None if path is None else session.restore(path)


def newest_checkpoint(folder: RunFolder, config: Config | FitConfig, steps: int, world: World) -> Path | None:
    """The checkpoint that a run of so many steps goes on from, None to start afresh. Raises `RunError` where the folder
    must not be gone on with."""
    if world.is_main:
        remove_partial(folder.checkpoints)
    world.barrier()
    # asked of one rank: the first to go on writes both
    found, has_metrics = world.from_main(
        lambda: (list_checkpoints(folder.checkpoints), (folder.path / "metrics.jsonl").exists())
    )
    if config.run.resume == "never" and (found or has_metrics):
        raise RunError("The run folder is not empty.", where=str(folder.path),
                       why="run.resume=never protects earlier results",
                       fix="choose another name=..., delete the folder, or use run.resume=auto")  # fmt: skip
    if not found:
        if config.run.resume == "must":
            raise RunError("There is no checkpoint to resume from.", where=str(folder.checkpoints),
                           fix="run.resume=auto starts afresh")  # fmt: skip
        return None
    folder.check_same_recipe(config)
    newest = checkpoint_step(found[-1])
    if newest > steps:
        raise RunError(
            f"The newest checkpoint is at step {newest}, train.steps is {steps}.",
            where=str(found[-1]),
            fix="raise train.steps or choose another name",
        )
    return found[-1]


def start(session: Session) -> LoopState:
    """Step 0: warm start, reference, difficulty probe, evaluation before training."""
    config = session.config
    session.folder.truncate_after(-1)
    started = time.monotonic()
    if config.warm_start is not None:
        run_warm_start(session)
    session.learner.use_optimizer(config.optim, config.train.steps * config.train.optimizer_steps_per_batch)
    session.learner.freeze_reference()
    if session.critic is not None:
        session.critic.start_from(session.learner.weights())
    for source in session.sources:
        source.start_from(session.learner.weights())
    session.sync(0)
    preflight = session.preflight_engine(0)
    if config.data.difficulty is not None:
        band = config.data.difficulty
        pass_rate = session.probe_difficulty()
        kept, dropped = by_pass_rate(session.prepared.train, pass_rate, band.low, band.high)
        session.display.note(f"difficulty band [{band.low:g}, {band.high:g}]: kept {len(kept)}, dropped {len(dropped)}")
        if band.repeat:
            kept = by_repetition(kept, pass_rate, [(b.low, b.high, b.times) for b in band.repeat])
            session.display.note(f"balanced by repetition: {len(kept)} prompts an epoch, "
                                 f"{len({e.id for e in kept})} of them different")  # fmt: skip
        session.keep_examples([e.id for e in kept])
    if config.questions_per_batch > len(session.train_examples):
        raise RunError(f"Only {len(session.train_examples)} training examples are left for batches of "
                       f"{config.questions_per_batch} questions.", where="data.difficulty",
                       fix="widen the band or use more data")  # fmt: skip
    state = LoopState(Sampler(len(session.train_examples), config.seed))
    metrics = preflight | session.evaluate_all(state)
    session.folder.append_metrics(0, metrics)
    session.display.update(0, metrics, {"step_s": time.monotonic() - started})
    state.wall_seconds = time.monotonic() - started
    if config.warm_start is not None or config.checkpoint.every_steps is not None:
        session.save(state)
    return state


def run_warm_start(session: Session) -> None:
    options = session.config.warm_start
    assert options is not None

    def on_step(step: int, metrics: dict[str, float]) -> None:
        session.folder.append_warm_start(step, metrics)
        if step == 1 or step % 50 == 0 or step == options.steps:
            session.display.note(f"warm start {step}/{options.steps}: loss {metrics['loss']:.4f}")

    session.engine.sleep()
    warm_start(session.learner, options, session.prepared.demonstrations, session.config.seed, on_step)


def summary(session: Session, state: LoopState) -> dict[str, Any]:
    """The contract of ``summary.json`` (docs/run-folder.md)."""
    steps = sorted(state.evaluations)
    before, after = state.evaluations[steps[0]], state.evaluations[steps[-1]]
    return {
        "recipe": session.config.recipe,
        "seed": session.config.seed,
        "steps": state.step,
        "wall_seconds": round(state.wall_seconds, 3),
        "tokens_generated": state.tokens_generated,
        "tokens_trained": state.tokens_trained,
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "evaluations": {name: {"before": before.get(name), "after": value} for name, value in after.items()},
    }


def peak_memory_mb() -> float:
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss also counts the process that started this one
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class Stoppable(Protocol):
    stop_requested: bool


def install_sigterm(session: Stoppable) -> None:
    """SIGTERM asks the loop to save at the next safe point; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        return

    def on_sigterm(_signal: int, _frame: FrameType | None) -> None:
        if session.stop_requested:
            os._exit(143)
        session.stop_requested = True

    signal.signal(signal.SIGTERM, on_sigterm)


def main(arguments: list[str] | None = None) -> int:
    """``python -m trainer.train recipe=NAME [overrides]``."""
    from trainer import cli

    arguments = sys.argv[1:] if arguments is None else arguments
    recipes = [a.removeprefix("recipe=") for a in arguments if a.startswith("recipe=")]
    if len(recipes) != 1:
        sys.stderr.write("name one recipe: python -m trainer.train recipe=quickstart\n")
        return 2
    return cli.main(["train", recipes[0], *(a for a in arguments if not a.startswith("recipe="))])


def end_process(status: int) -> None:
    """Leave with this exit status. One of several ranks leaves without Python's finalization, in which a thread of
    torch's that comes back for the interpreter's lock aborts the process (SIGABRT after a run that went well)."""
    if launched_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    end_process(main())


__all__ = ["StopRequested", "main", "train"]
