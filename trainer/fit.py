"""`assay train` of a recipe with ``reward_model``: labelled data in, a reward model out. The loop reads top to bottom:
draw examples, one optimizer step, evaluate, record, save.

What it leaves is a run folder like any other (`trainer/records.py`); ``checkpoints/step-NNNNNN/hf`` is the reward
model: weights that `transformers` loads, tokenizer, and ``reward_model.json``, which says how responses are encoded.

Under torchrun every rank runs this on the same examples, and takes a share of the forward and backward passes
(`rollout.world`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from data.labelled import Labelled, expect, load_labelled
from data.sampler import Sampler
from data.split import check_disjoint, part
from prm.cotrained import ModelSetup
from prm.optim import NonFiniteError
from prm.reward_model import REWARD_MODELS, FitContext, RewardModel, TooLong, build, flat, write_card
from rollout.models import load_config, load_tokenizer
from rollout.packing import Packer, TokenIds
from rollout.sharding import on_host
from rollout.world import launched_size
from trainer.checkpoint import prune, reading, rng_state, set_rng_state, writing
from trainer.compose import to_yaml
from trainer.config import DataPart
from trainer.derived import memory_numbers, render_table
from trainer.display import Display
from trainer.fit_config import FitConfig
from trainer.loop import StopRequested, due
from trainer.memory import ModelFacts, estimate_fit, model_facts
from trainer.preflight import PreflightReport, check_gpus
from trainer.records import NoRecords, RunFolder, check_writable
from trainer.session import join
from trainer.sharded_checkpoint import FOLDER, ShardedWriter, Snapshot, read_tensors
from trainer.train import install_sigterm, newest_checkpoint, peak_memory_mb, watched
from verifiers.errors import ConfigError, DataError, RunError
from verifiers.options import parse_options

_NOTES = 20  # lines of progress in a run, beside the evaluations


@dataclass(frozen=True, slots=True)
class Examples:
    """examples[i] is encoded as sequences[i]."""

    examples: list[Any]
    sequences: list[list[TokenIds]]

    def select(self, index: Sequence[int]) -> Examples:
        return Examples([self.examples[i] for i in index], [self.sequences[i] for i in index])


@dataclass(slots=True)
class Fit:
    """Checked and encoded: ready to train on."""

    config: FitConfig
    tokenizer: PreTrainedTokenizerBase
    model_config: PretrainedConfig
    facts: ModelFacts
    reward_model: RewardModel
    train: Examples
    evals: dict[str, Examples]
    lines: list[str]

    @property
    def run_path(self) -> Path:
        return Path(self.config.run.dir) / self.config.name

    @property
    def steps(self) -> int:
        return self.config.train.total_steps(len(self.train.examples))

    def derived(self, ranks: int) -> dict[str, int | float | str]:
        """Memory is that of one of `ranks` processes at its peak."""
        train = self.config.train
        tokens = [len(s.prompt_ids) + len(s.response_ids) for one in self.train.sequences for s in one]
        step_tokens = round(sum(tokens) / len(self.train.examples) * train.examples_per_step)
        memory = estimate_fit(self.config, self.facts, self.reward_model.head, step_tokens, max(tokens), ranks)
        return {
            "reward_model": self.config.reward_model.kind,
            "parameters": self.facts.parameters,
            "train_examples": len(self.train.examples),
            "optimizer_steps": self.steps,
            "epochs": round(self.steps * train.examples_per_step / len(self.train.examples), 2),
            "tokens_per_step": step_tokens,
            "longest_sequence_tokens": max(tokens),
            **({"ranks": ranks} if ranks > 1 else {}),
            **memory_numbers(memory),
        }


@dataclass(slots=True)
class FitState:
    """What a checkpoint holds beside the model. evaluations: {step: {metric: value}}; best: (value, step)."""

    sampler: Sampler
    step: int = 0
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    best: tuple[float, int] | None = None
    wall_seconds: float = 0.0


# ---- the run -----------------------------------------------------


def check_fit(config: FitConfig, gpus: int | None = None) -> PreflightReport:
    """All checks, nothing trained, nothing written. Raises the `AssayError` that training would raise. gpus: the memory
    of one of so many ranks, as `trainer.preflight.check`."""
    if gpus is not None:
        check_gpus(config.hardware, gpus)
    prepared = prepare_fit(config)
    return PreflightReport(prepared.derived(gpus or launched_size()), prepared.lines)


def fit(config: FitConfig) -> Path:
    """Run a recipe to its end and return its run folder. Safe to kill at any time: the same call resumes, exactly.

    Raises `AssayError` subclasses for everything a user can act on, and `StopRequested` after saving on SIGTERM.
    """
    with FitSession(config) as session, watched(session.world, config):
        state = session.resume()
        install_sigterm(session)
        derived = session.fit.derived(session.world.size)
        session.folder.open(config, to_yaml(config), derived)
        session.display.table(render_table(derived))
        for line in session.fit.lines:
            session.display.note(line)
        if state is None:
            state = session.start()
        else:
            session.folder.truncate_after(state.step)
            session.display.note(f"resumed after step {state.step}")
        run_fit(session, state)
        session.finish_saving()
        session.folder.write_summary(summary(session, state))
        return session.fit.run_path


def run_fit(session: FitSession, state: FitState) -> None:
    """Train until the last step."""
    config, fit, model = session.config, session.fit, session.model
    started = time.monotonic()
    while state.step < fit.steps:
        session.world.state.update(step=state.step + 1, phase="learn")
        step_started = time.monotonic()
        batch = fit.train.select(state.sampler.next(config.train.examples_per_step))
        if session.world.size > 1:
            ids = [torch.tensor(s.prompt_ids + s.response_ids) for s in flat(batch.sequences)]
            session.world.check_same("the batch of a step", ids)
        try:
            loss = fit.reward_model.batch_loss(model, batch.examples, batch.sequences)
            found = model.step(flat(batch.sequences), loss, f"The reward model ({config.reward_model.kind})")
        except NonFiniteError as error:
            raise not_finite(error, batch, state.step + 1) from error
        state.step += 1
        metrics = {f"train/{name}": value for name, value in found.items()}
        if due(config.eval.every_steps, state.step, fit.steps):
            metrics |= session.evaluate(state)
        session.folder.append_metrics(state.step, metrics)
        session.folder.append_timings(state.step, {"step_s": time.monotonic() - step_started})
        session.show(state.step, metrics)

        session.finish_saving(wait=False)
        stop = session.should_stop()
        if stop or due(config.checkpoint.every_steps, state.step, fit.steps):
            state.wall_seconds += time.monotonic() - started
            started = time.monotonic()
            path = session.save(state)
            if stop and state.step < fit.steps:
                session.finish_saving()
                raise StopRequested(
                    f"stopped by SIGTERM after step {state.step}; saved {path}; the same command resumes"
                )
    state.wall_seconds += time.monotonic() - started


def not_finite(error: NonFiniteError, batch: Examples, step: int) -> RunError:
    """The same error, naming the examples."""
    owner = [example.id for example, own in zip(batch.examples, batch.sequences, strict=True) for _ in own]
    ids = list(dict.fromkeys(owner[i] for i in error.sequences))
    shown = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return RunError(error.what, where=f"step {step}, examples {shown}",
                    why="a step would destroy the weights; the checkpoints before it are as they were",
                    fix="lower optim.lr or optim.grad_clip, and look at these examples")  # fmt: skip


class FitSession:
    """The parts of one run. Use as a context manager."""

    def __init__(self, config: FitConfig):
        self.config, self.stop_requested = config, False
        self.world, device = join(config)
        self.writer = ShardedWriter(self.world, config.checkpoint.keep_last) if self.world.size > 1 else None
        self.fit = fit = prepare_fit(config)
        records = RunFolder if self.world.is_main else NoRecords
        self.folder = records(fit.run_path, tensorboard=config.record.tensorboard)
        self.display = Display(fit.steps, live=False, silent=not self.world.is_main)
        setup = ModelSetup(
            config.model,
            config.seed,
            device,
            config.hardware.attention,
            config.train.max_tokens_per_microbatch,
            config.train.logprob_chunk_tokens,
            1.0,
            fit.steps,
            Packer(self.world),
            config.hardware.distributed,
        )
        self.model = build(fit.reward_model, setup, config.optim)

    def __enter__(self) -> FitSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.fit.reward_model.close()
        self.display.close()
        self.folder.close()
        if kind is None or issubclass(kind, StopRequested):
            self.world.leave()

    def should_stop(self) -> bool:
        """Whether any rank was asked to. All ranks must ask."""
        return self.world.any(self.stop_requested)

    # ---- evaluation ----------------------------------------------

    def evaluate(self, state: FitState) -> dict[str, float]:
        """Every evaluation set with the present weights; remembered, and written row by row."""
        self.world.state["phase"] = "evaluate"
        found: dict[str, float] = {}
        for name, data in self.fit.evals.items():
            evaluation = self.fit.reward_model.evaluate(self.model, data.examples, data.sequences)
            found |= {f"{name}/{metric}": value for metric, value in evaluation.metrics.items()}
            self.folder.write_evaluation(state.step, name, evaluation.rows)
        state.evaluations[state.step] = found
        value = found.get(self.config.checkpoint.best_by or "")
        if value is not None and (state.best is None or value > state.best[0]):
            state.best = (value, state.step)
        return found

    def show(self, step: int, metrics: dict[str, float]) -> None:
        every = max(1, self.fit.steps // _NOTES)
        evaluated = {name: value for name, value in metrics.items() if not name.startswith("train/")}
        if evaluated or step % every == 0:
            loss = {"loss": metrics["train/loss"]} if "train/loss" in metrics else {}
            shown = "  ".join(f"{name} {value:.4g}" for name, value in (loss | evaluated).items())
            self.display.note(f"step {step}/{self.fit.steps}  {shown}")

    # ---- checkpoints ---------------------------------------------

    def start(self) -> FitState:
        """Step 0: the evaluation before training."""
        self.folder.truncate_after(-1)
        state = FitState(Sampler(len(self.fit.train.examples), self.config.seed))
        metrics = self.evaluate(state)
        self.folder.append_metrics(0, metrics)
        self.show(0, metrics)
        return state

    def resume(self) -> FitState | None:
        """The exact state of the newest checkpoint, None to start afresh."""
        path = newest_checkpoint(self.folder, self.config, self.fit.steps, self.world)
        if path is None:
            return None
        with reading(path):
            content = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
            if (path / FOLDER).is_dir():
                read_tensors(path, self.model.tensors())
                self.model.load_plain_state(content["model"])
            else:
                self.model.load(path / "hf", content["model"])
        sampler = Sampler(len(self.fit.train.examples), self.config.seed)
        sampler.load_state_dict(content["sampler"])
        set_rng_state(content["rng"])
        best = tuple(content["best"]) if content["best"] else None
        return FitState(sampler, content["step"], content["evaluations"], best, content["wall_seconds"])

    def save(self, state: FitState) -> Path:
        """``checkpoints/step-NNNNNN``, there whole or not at all; of several ranks it is written in the background."""
        self.world.state["phase"] = "checkpoint"
        final = self.folder.checkpoints / f"step-{state.step:06d}"
        content = {
            "sampler": state.sampler.state_dict(),
            "rng": rng_state(),
            "step": state.step,
            "evaluations": state.evaluations,
            "best": list(state.best) if state.best else None,
            "wall_seconds": state.wall_seconds,
        }
        meta = {"step": state.step, "recipe": self.config.recipe, "evaluations": state.evaluations.get(state.step, {})}
        best = state.best[1] if state.best else None
        if self.writer is not None:
            self.writer.finish()
            content["model"] = self.model.plain_state()
            weights = on_host(self.model.weights(), self.world.is_main)
            what = Snapshot(self.model.tensors(), content, lambda folder: self.export(folder / "hf", weights))
            self.writer.start(final, what, meta, best)
        elif not (final / "meta.json").exists():
            content["model"] = self.model.state_dict()
            with writing(final, meta) as partial:
                self.export(partial / "hf", self.model.weights())
                torch.save(content, partial / "state.pt")
            prune(self.folder.checkpoints, self.config.checkpoint.keep_last, best)
        return final

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """The reward model as transformers loads it, and as `open_reward_model` opens it."""
        self.model.export_hf(folder, weights)
        self.fit.tokenizer.save_pretrained(folder)
        write_card(folder, self.config.reward_model.kind, self.fit.reward_model)

    def finish_saving(self, *, wait: bool = True) -> None:
        """As `Session.finish_saving`."""
        if self.writer is not None:
            self.writer.finish(wait=wait)


def summary(session: FitSession, state: FitState) -> dict[str, Any]:
    """The contract of ``summary.json`` (docs/run-folder.md)."""
    steps = sorted(state.evaluations)
    before, after = (state.evaluations[s] for s in (steps[0], steps[-1]))
    return {
        "recipe": session.config.recipe,
        "seed": session.config.seed,
        "steps": state.step,
        "wall_seconds": round(state.wall_seconds, 3),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "evaluations": {
            name: {"before": {"value": before[name]} if name in before else None, "after": {"value": value}}
            for name, value in after.items()
        },
    }


# ---- preparation -------------------------------------------------


def prepare_fit(config: FitConfig) -> Fit:
    """Load and check everything but the weights: folder, tokenizer, architecture, data."""
    run_path = Path(config.run.dir) / config.name
    check_writable(run_path, min_free_mb=64)
    tokenizer = load_tokenizer(config.model)
    model_config = load_config(config.model, tokenizer)
    facts = model_facts(model_config)
    kept = config.checkpoint.keep_last + 1 + (config.checkpoint.best_by is not None)
    check_writable(run_path, min_free_mb=64 + kept * 12 * facts.parameters // 2**20)  # weights and AdamW's moments
    limit = getattr(model_config, "max_position_embeddings", None)
    if limit is not None and config.data.max_tokens > limit:
        raise ConfigError(f"data.max_tokens={config.data.max_tokens} exceeds the model's {limit} positions.",
                          where="data.max_tokens", fix=f"at most {limit}")  # fmt: skip
    kind = REWARD_MODELS.get(config.reward_model.kind, key="reward_model.kind")
    context = FitContext(tokenizer, config.template, config.data.max_tokens, config.seed, config.rollout)
    reward_model = kind(parse_options(kind.Options, config.reward_model.options, "reward_model"), context)
    lines: list[str] = []

    def side(source: DataPart, key: str) -> Examples:
        found = expect(_load_part(source, key), reward_model.takes, key=key)
        encoded, too_long = _encode(found, reward_model, config.data.on_too_long)
        lines.append(f"{key}: {len(encoded.examples)} examples" + f"; left out {too_long} too long" * bool(too_long))
        if not encoded.examples:
            raise DataError("Every example is too long.", where=key, fix="raise data.max_tokens")
        return encoded

    train = side(config.data.train, "data.train")
    evals = {e.name: side(e.source, f"data.eval[{e.name}]") for e in config.data.eval}
    check_disjoint(train.examples, {name: data.examples for name, data in evals.items()})
    if evals:
        lines.append("train and evaluation sets share no prompt")
    if config.train.examples_per_step > len(train.examples):
        raise ConfigError(f"A step of {config.train.examples_per_step} examples exceeds the {len(train.examples)} "
                          "training examples.", where="train.examples_per_step",
                          fix=f"at most {len(train.examples)}, or more data")  # fmt: skip
    return Fit(config, tokenizer, model_config, facts, reward_model, train, evals, lines)


def _load_part(source: DataPart, key: str) -> list[Labelled]:
    rows = part(load_labelled(source.kind, source.options, key=key), source.part, source.eval_percent)
    return rows[: source.max_examples]


def _encode(examples: Sequence[Labelled], reward_model: RewardModel, on_too_long: str) -> tuple[Examples, int]:
    """(what fits, how many do not)."""
    kept, sequences, too_long = [], [], 0
    for example in examples:
        try:
            sequences.append(reward_model.encode(example))
        except TooLong:
            if on_too_long == "stop":
                raise
            too_long += 1
            continue
        kept.append(example)
    return Examples(kept, sequences), too_long
