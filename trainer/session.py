"""`Session`: the parts of one run, built from its recipe: data, verifier, policy, engine, sources, records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from data.example import Example
from data.sampler import Sampler
from prm.cotrained import CoTrained, ModelSetup
from prm.signal import SOURCES, Source, SourceContext
from rollout.engine import (
    ENGINES,
    Engine,
    Prompt,
    SamplingParams,
    ScoringEngine,
    SharedEngine,
    derive_seed,
)
from rollout.models import DTYPES, Policy, load_policy
from rollout.packing import Packer
from rollout.process_engine import ProcessEngine
from rollout.sharding import on_host
from rollout.trajectory import Trajectory
from rollout.world import World, join_world
from trainer.advantages.base import ADVANTAGES
from trainer.checkpoint import (
    load_checkpoint,
    prune,
    save_checkpoint,
)
from trainer.collect import Rollouts
from trainer.compose import engine_options
from trainer.config import Config
from trainer.critic import Critic, make_critic
from trainer.display import Display
from trainer.engine_check import EngineCheck, describe
from trainer.evaluate import Estimate, evaluate, verify_trajectories
from trainer.fit_config import FitConfig
from trainer.learner import Learner
from trainer.loop import LoopState, StopRequested
from trainer.overlap import RolloutsAhead
from trainer.preflight import prepare
from trainer.records import NoRecords, RunFolder
from trainer.shaping.base import SHAPINGS, Shaping
from trainer.sharded_checkpoint import ShardedWriter, snapshot
from verifiers.errors import ConfigError
from verifiers.options import Options, parse_options
from verifiers.verdict import Status, Verdict


def choose_device(config: Config | FitConfig) -> torch.device:
    """The recipe's device, checked; `auto` prefers CUDA, then MPS, then CPU."""
    kind = config.hardware.device
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        kind = "cuda" if present["cuda"] else "mps" if present["mps"] else "cpu"
    if not present[kind]:
        available = ", ".join(k for k, v in present.items() if v)
        raise ConfigError(
            f"hardware.device={kind} is not available here.",
            where="hardware.device",
            fix=f"available: {available}; `assay doctor` says more",
        )
    return torch.device(kind)


def set_up_torch(config: Config | FitConfig, device: torch.device) -> None:
    """Threads, and on a CPU the same numbers from run to run."""
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        # the mode would also fill every new tensor; nothing here reads what it did not write
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    if config.hardware.threads is not None:
        torch.set_num_threads(config.hardware.threads)


def join(config: Config | FitConfig) -> tuple[World, torch.device]:
    """(the ranks that share the work, met; this rank's device, torch set up for it)."""
    device, distributed = choose_device(config), config.hardware.distributed
    world = join_world(device.type, replicas=distributed.replicas, timeout_s=distributed.exchange_timeout_s)
    if device.type == "cuda" and world.size > 1:
        device = torch.device("cuda", world.local_rank)
    set_up_torch(config, device)
    return world, device


def model_setup(config: Config, device: torch.device, world: World | None = None) -> ModelSetup:
    """How models beside the policy are made and run in this recipe. world: the ranks that share the work."""
    return ModelSetup(
        config.model,
        config.seed,
        device,
        config.hardware.attention,
        config.train.max_tokens_per_microbatch,
        config.train.logprob_chunk_tokens,
        config.rollout.temperature,
        config.train.steps,
        Packer(world),
        config.hardware.distributed,
    )


def names_of(kinds: Sequence[str]) -> list[str]:
    """A name for each source, for its metrics and folders: its kind (of a class of one's own, the class), numbered from
    the second of the same."""
    plain = [kind.rpartition(":")[2] for kind in kinds]
    return [name if name not in plain[:i] else f"{name}_{plain[:i].count(name) + 1}" for i, name in enumerate(plain)]


@dataclass(frozen=True, slots=True)
class StaleWeights:
    """What the engine samples from while it is not given newer weights. step: whose they are."""

    step: int
    weights: dict[str, Tensor]


class Session:
    """The parts of one run. Use as a context manager; closing frees engine, verifier processes and display.

    weights: evaluate or train from these weights (a checkpoint folder, an HF folder or a hub id) instead of the
    recipe's. Under torchrun it is one of several: all make theirs, and do the same (see `rollout.world`).
    """

    def __init__(self, config: Config, weights: str | None = None):
        if weights is not None:
            config = with_weights(config, weights)
        self.config = config
        self.world, self.device = join(config)
        self.writer = ShardedWriter(self.world, config.checkpoint.keep_last) if self.world.size > 1 else None
        self.prepared = prepare(config)
        self.stop_requested = False
        self.stale: StaleWeights | None = None
        self.synced_step = 0
        self.train_examples: list[Example] = self.prepared.train
        self.display = Display(config.train.steps, live=None, silent=not self.world.is_main)
        records = RunFolder if self.world.is_main else NoRecords
        self.folder = records(self.prepared.run_path, tensorboard=config.record.tensorboard)
        policy = load_policy(config.model, config.seed, self.device, self.world)
        setup = model_setup(config, self.device, self.world)
        self.learner = Learner(config, policy, self.device, setup.packer)
        self.critic = make_critic(config, setup, self.learner)
        self.engine = self.make_engine(policy)
        if self.world.size > 1:
            self.engine = SharedEngine(self.engine, self.world)
        self.engine_check = EngineCheck(config, self.prepared.train, self.prepared.prompt_ids)
        context = SourceContext(
            self.prepared.runner,
            policy.tokenizer,
            self.device,
            config.seed,
            setup,
            self.generate_aside,
            config.rollout.max_response_tokens,
            tuple(config.rollout.stop),
            self.prepared.train,
            self.prepared.prompt_ids,
            self.learner.weights,
            self.generate_with,
            self.learner.move_reference,
        )
        self.sources: list[Source] = []
        self.source_names = names_of([part.kind for part in config.sources])
        for i, part in enumerate(config.sources):
            source = SOURCES.get(part.kind, key=f"sources.{i}.kind")
            self.sources.append(source(parse_options(source.Options, part.options, f"sources.{i}"), context))
        self.ahead = RolloutsAhead(self) if config.train.overlap else None
        if self.ahead is not None:
            self.check_overlap()
        self.advantage = ADVANTAGES.get(config.objective.advantage.kind, key="objective.advantage.kind")
        self.advantage_options = parse_options(
            self.advantage.options, config.objective.advantage.options, "objective.advantage"
        )
        self.shapings: list[tuple[Shaping, Options]] = []
        for i, part in enumerate(config.objective.shaping):
            shaping = SHAPINGS.get(part.kind, key=f"objective.shaping.{i}.kind")
            self.shapings.append((shaping, parse_options(shaping.options, part.options, f"objective.shaping.{i}")))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        orderly = kind is None or issubclass(kind, StopRequested)
        if self.ahead is not None and orderly:
            self.ahead.let_end()
        self.engine.close()
        if self.ahead is not None:
            self.ahead.close()
        self.prepared.runner.close()
        for source in self.sources:
            source.close()
        self.display.close()
        self.folder.close()
        if orderly:
            self.world.leave()

    def make_engine(self, policy: Policy) -> Engine:
        config = self.config
        kind = ENGINES.get(config.rollout.engine, key="rollout.engine")
        what = (policy.config, policy.tokenizer, policy.eos_ids)
        options: dict[str, Any] = {
            "dtype": DTYPES[config.rollout.dtype],
            "device": self.device,
            # sources may have a response continued
            "max_prompt_tokens": config.data.max_prompt_tokens + config.rollout.max_response_tokens,
            "max_response_tokens": max(config.rollout.max_response_tokens, config.eval.max_response_tokens or 0),
            "max_rows": config.rollout.max_rows,
        }
        extras = engine_options(config)
        options |= {} if extras is None else {"options": extras}
        if config.train.overlap:
            return ProcessEngine(config.rollout.engine, what, options, config.hardware.threads)
        return kind(*what, **options)

    def check_overlap(self) -> None:
        """Raise `ConfigError` for what cannot go on while the next rollouts are made."""
        if self.world.size > 1 and getattr(engine_options(self.config), "server_url", None) is not None:
            raise ConfigError("Several ranks do not make rollouts ahead on a server.", where="train.overlap",
                              why="the engine process of each would give it the weights",
                              fix="train.overlap=false, or vLLM in process")  # fmt: skip
        for name, source in zip(self.source_names, self.sources, strict=True):
            if not source.bears_overlap:
                raise ConfigError(
                    f"The source '{name}' cannot work while the next step's rollouts are made.",
                    where="train.overlap",
                    why="it samples from the policy itself, or judges with a model that is learning at that moment",
                    fix="train.overlap=false",
                )
            if self.world.size > 1 and source.phase == "judge" and source.models():
                raise ConfigError(
                    f"The source '{name}' cannot judge the next step's rollouts under torchrun.",
                    where="train.overlap",
                    why="its model lies on all ranks and would be gathered at the same time as the one that learns",
                    fix="train.overlap=false",
                )

    # ---- weights of the engine ---------------------------------------

    def sync(self, step: int) -> None:
        """Give the engine the weights that the next rollouts come from: the learner's, or with `train.max_stale_steps`
        those of the last step at which they were renewed. With rollouts ahead they are remembered for a checkpoint."""
        self.synced_step = step
        period = self.config.train.max_stale_steps + 1
        if period == 1 and self.ahead is None:
            self.engine.load_weights(self.learner.weights(), step)
            return
        if self.stale is None or step % period == 0:
            self.stale = StaleWeights(step, on_host(self.learner.weights()))
        self.engine.load_weights(self.stale.weights, self.stale.step)

    def generate_aside(
        self, prompts: Sequence[Prompt], samples_per_prompt: int, sampling: SamplingParams, seed: int
    ) -> list[Trajectory]:
        """Samples of the present policy for a reward source, between two rollouts: the engine wakes, then sleeps."""
        self.engine.load_weights(self.learner.weights(), 0)
        try:
            return self.engine.generate(prompts, samples_per_prompt, sampling, seed)
        finally:
            self.engine.sleep()

    def preflight_engine(self, step: int) -> dict[str, float]:
        """Refuse to train with an engine that does not agree with the learner; the metrics of how well it does."""
        engine = self._scoring_engine()
        if engine is None:
            return {}
        if self.stale is not None:
            self.engine.load_weights(self.learner.weights(), step)
        metrics = self.engine_check.preflight(engine, self.learner)
        self.display.note(describe(metrics))
        if self.stale is not None:
            self.sync(step)
        return metrics

    def probe_engine(self, step: int) -> dict[str, float]:
        """Metrics of the proof that the engine has the weights of `step`; none where it is not asked for, or where it
        was to keep older ones."""
        probes = self.config.rollout.probe_steps
        asked = probes is None or step <= probes
        fresh = self.stale is None or self.stale.step == step
        engine = self._scoring_engine()
        if engine is None or not (asked and fresh):
            return {}
        return self.engine_check.probe(engine, self.learner, step)

    def _scoring_engine(self) -> ScoringEngine | None:
        own = self.engine.own if isinstance(self.engine, SharedEngine) else self.engine
        return cast(ScoringEngine, self.engine) if isinstance(own, ScoringEngine) else None

    def generate_with(
        self,
        weights: Mapping[str, Tensor],
        prompts: Sequence[Prompt],
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: int,
    ) -> list[Trajectory]:
        """Samples of other weights for a reward source; afterwards the engine has those of `sync` again."""
        self.engine.load_weights(weights, -1)
        try:
            return self.engine.generate(prompts, samples_per_prompt, sampling, seed)
        finally:
            self.sync(self.synced_step)

    def models(self) -> dict[str, CoTrained]:
        """Every model that learns beside the policy, by the folder that a checkpoint keeps it in."""
        critic: dict[str, CoTrained] = {"critic": self.critic} if isinstance(self.critic, Critic) else {}
        return critic | {
            f"sources/{source_name}/{name}": model
            for source_name, source in zip(self.source_names, self.sources, strict=True)
            for name, model in source.models().items()
        }

    def staleness(self, step: int, rollouts: Rollouts) -> dict[str, float]:
        """The metric of how many steps old the weights are that a step's rollouts came from."""
        return {} if self.stale is None else {
            "rollout/stale_steps": float(step - rollouts.trajectories[0].weights_version)}  # fmt: skip

    # ---- evaluation --------------------------------------------------

    def evaluate_set(self, name: str) -> tuple[dict[str, Estimate], dict[str, float], list[tuple[Trajectory, Verdict]]]:
        prepared = self.prepared
        return evaluate(self.config, self.engine, prepared.runner, prepared.evals[name], prepared.prompt_ids, name,
                        self.world)  # fmt: skip

    def evaluate_all(self, state: LoopState) -> dict[str, float]:
        """Evaluate every set with the present weights; remember and return the metrics."""
        if self.ahead is not None:
            self.ahead.wait()
        if self.stale is not None:
            self.engine.load_weights(self.learner.weights(), state.step)
        flat: dict[str, float] = {}
        estimates: dict[str, dict[str, float]] = {}
        for name in self.prepared.evals:
            metrics, facts, rows = self.evaluate_set(name)
            for metric, estimate in metrics.items():
                estimates[f"{name}/{metric}"] = estimate.as_dict()
                flat |= {f"{name}/{metric}": estimate.value, f"{name}/{metric}/low": estimate.low,
                         f"{name}/{metric}/high": estimate.high}  # fmt: skip
            flat |= {f"{name}/{fact}": value for fact, value in facts.items()}
            self.folder.write_evaluation(state.step, name, evaluation_rows(self.prepared.evals[name], rows))
        if self.stale is not None and self.ahead is None:
            self.sync(state.step)
        state.evaluations[state.step] = estimates
        best_by = self.config.checkpoint.best_by
        if best_by is not None and best_by in estimates:
            value = estimates[best_by]["value"]
            if state.best is None or value > state.best[0]:
                state.best = (value, state.step)
        return flat

    def probe_difficulty(self) -> dict[str, float]:
        """Pass rate of every training prompt under the present weights."""
        band, rollout = self.config.data.difficulty, self.config.rollout
        assert band is not None
        examples = self.prepared.train
        prompts = [Prompt(e.id, p, self.prepared.prompt_ids[e.id]) for p, e in enumerate(examples)]
        sampling = SamplingParams(rollout.max_response_tokens, rollout.temperature, rollout.top_p, tuple(rollout.stop))
        seed = derive_seed(self.config.seed, "difficulty")
        trajectories = self.engine.generate(prompts, band.probe_samples, sampling, seed)

        def judged(index: list[int]) -> list[Verdict]:
            chosen = [trajectories[i] for i in index]
            return verify_trajectories(self.prepared.runner, chosen, [examples[t.group] for t in chosen])

        verdicts = self.world.shared_work(range(len(trajectories)), judged)
        correct = dict.fromkeys([e.id for e in examples], 0)
        for trajectory, verdict in zip(trajectories, verdicts, strict=True):
            correct[trajectory.example_id] += verdict.status is Status.CORRECT
        return {name: count / band.probe_samples for name, count in correct.items()}

    def keep_examples(self, ids: list[str]) -> None:
        """Train on these examples only, each as often as it is named (the difficulty band)."""
        by_id = {e.id: e for e in self.prepared.train}
        self.train_examples = [by_id[name] for name in ids]

    # ---- checkpoints -------------------------------------------------

    @property
    def checkpoint_folder(self) -> Path:
        return self.prepared.run_path / "checkpoints"

    def save(self, state: LoopState) -> Path:
        self.world.state["phase"] = "checkpoint"
        kept = [e.id for e in self.train_examples] if self.config.data.difficulty is not None else None
        content: dict[str, Any] = {
            "step": state.step,
            "sampler": state.sampler.state_dict() if state.position is None else state.position,
            "sources": [s.state_dict() for s in self.sources],
            "evaluations": state.evaluations,
            "best": list(state.best) if state.best else None,
            "tokens_generated": state.tokens_generated,
            "tokens_trained": state.tokens_trained,
            "wall_seconds": state.wall_seconds,
            "kept_examples": kept,
            "stale": {"step": self.stale.step, "weights": self.stale.weights} if self.stale is not None else None,
        }
        meta = {"evaluations": {str(s): m for s, m in state.evaluations.items()}, "recipe": self.config.recipe}
        best = state.best[1] if state.best else None
        tokenizer, models = self.learner.policy.tokenizer, self.models()
        if self.writer is None:
            path = save_checkpoint(self.checkpoint_folder, state.step, self.learner, tokenizer, content, meta, models)
            prune(self.checkpoint_folder, self.config.checkpoint.keep_last, best)
            return path
        self.writer.finish()
        path = self.checkpoint_folder / f"step-{state.step:06d}"
        self.writer.start(path, snapshot(self.learner, tokenizer, content, models), {"step": state.step, **meta}, best)
        return path

    def finish_saving(self, *, wait: bool = True) -> None:
        """Give a checkpoint that was written in the background its name; wait for one that is being written, or leave
        it for the next time."""
        if self.writer is not None:
            self.writer.finish(wait=wait)

    def should_stop(self) -> bool:
        """Whether any rank was asked to. All ranks must ask."""
        return self.world.any(self.stop_requested)

    def restore(self, path: Path) -> LoopState:
        """The exact state of a checkpoint."""
        self.learner.freeze_reference()  # allocates it; its weights are restored with the learner
        content = load_checkpoint(path, self.learner, self.models())
        if content["kept_examples"] is not None:
            self.keep_examples(content["kept_examples"])
        for source, saved in zip(self.sources, content["sources"], strict=True):
            source.load_state_dict(saved)
        sampler = Sampler(len(self.train_examples), self.config.seed)
        sampler.load_state_dict(content["sampler"])
        self.stale = StaleWeights(**content["stale"]) if content["stale"] is not None else None
        if self.ahead is not None and self.stale is not None:  # rollouts were in flight: make them again
            self.engine.load_weights(self.stale.weights, self.stale.step)
        else:
            self.sync(content["step"])
        return LoopState(
            sampler,
            content["step"],
            content["evaluations"],
            tuple(content["best"]) if content["best"] else None,
            content["tokens_generated"],
            content["tokens_trained"],
            content["wall_seconds"],
        )


def with_weights(config: Config, weights: str) -> Config:
    """The recipe on other weights. A checkpoint folder stands for the HF folder inside it."""
    folder = Path(weights)
    path = str(folder / "hf") if (folder / "hf" / "config.json").exists() else weights
    model = config.model.model_copy(update={"path": path, "scratch": None, "tokenizer": None, "lora": None})
    return config.model_copy(update={"model": model})


def evaluation_rows(examples: list[Example], rows: list[tuple[Trajectory, Verdict]]) -> list[dict[str, Any]]:
    return [
        {"example_id": t.example_id, "sample": t.sample, "prompt": examples[t.group].question, "response": t.text,
         "gold": examples[t.group].gold, "finish": str(t.finish), "tokens": t.num_response_tokens,
         "verdict": {"status": str(v.status), "score": v.score, "answer": v.answer, "evidence": v.evidence,
                     "parts": dict(v.parts)}}
        for t, v in rows
    ]  # fmt: skip
