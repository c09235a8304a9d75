"""The implicit PRM beside verl's policy: `prm.implicit.ImplicitSource`, its model a worker group of verl's.

Labels, cross-entropy, rewards and health are the source's own. Where it asks its model for log-probs or for an
optimizer step, verl's workers are asked: on as many GPUs as the policy, sharded by verl, checkpointed with the run.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import OmegaConf
from torch import Tensor
from verl.single_controller.ray import RayClassWithInitArgs, RayWorkerGroup
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import reduce_metrics
from verl.workers.config.engine import TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.padding import response_from_nested

from prm.health import LineOracle
from prm.implicit import ImplicitOptions, ImplicitSource, log_ratio
from prm.signal import Source, SourceContext
from rollout.trajectory import Trajectory
from trainer.verl.queue import of_batch, read_tokens, write_tokens
from trainer.verl.translate import optimizer_settings
from trainer.verl.worker_losses import LABEL, REFERENCE, SHARE, ImplicitLoss


class WorkerGroupModel:
    """A language model in verl's training workers. `at_step` says which responses a step's questions are about."""

    def __init__(self, config: Any, options: ImplicitOptions, pool: Any):
        actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
        model = config.actor_rollout_ref.model
        if options.weights is not None:
            model = OmegaConf.merge(model, {"path": options.weights, "tokenizer_path": model.path})
        engine = actor.engine
        engine.use_dynamic_bsz = True
        engine.max_token_len_per_gpu = engine.infer_max_token_len_per_gpu = actor.ppo_max_token_len_per_gpu
        optimizer = config.actor_rollout_ref.actor.optim
        if options.optim is not None:
            optimizer = OmegaConf.merge(optimizer, optimizer_settings(options.optim))
        worker = TrainingWorkerConfig(
            model_type="language_model",
            model_config=omega_conf_to_dataclass(model),
            engine_config=engine,
            optimizer_config=omega_conf_to_dataclass(optimizer),
            checkpoint_config=actor.checkpoint,
        )
        self.group = RayWorkerGroup(
            resource_pool=pool,
            ray_cls_with_init=RayClassWithInitArgs(cls=ray.remote(TrainingWorker), config=worker),
            name_prefix="assay_prm",
            device_name=config.trainer.device,
        )
        self.group.reset()
        self.group.set_loss_fn(ImplicitLoss(options.beta))
        self.temperature = config.actor_rollout_ref.rollout.temperature

    def at_step(self, batch: Any, kept: Sequence[int], lengths: Sequence[int]) -> None:
        """kept: rows of the batch that the source was given, in its order."""
        self.batch, self.kept, self.lengths = batch, list(kept), list(lengths)

    def outputs(self, sequences: Sequence[Trajectory]) -> list[Tensor]:
        """Log-probs of the kept responses, one tensor [T_i] each."""
        assert len(sequences) == len(self.kept)
        self.batch.extra_info.update(
            {"calculate_entropy": False, "compute_loss": False, "temperature": self.temperature}
        )
        ray.get(self.group.infer_batch(self.batch).futures)
        mask = read_tokens(self.batch, "response_mask")
        logp = response_from_nested(read_tokens(self.batch, "log_probs"), mask).unbind()
        return [logp[i].float() for i in self.kept]

    def step(self, reference: Sequence[Tensor], label_N: Tensor) -> dict[str, float]:
        """One optimizer step on the mean cross-entropy of the kept responses."""
        put = partial(of_batch, self.kept, lengths=self.lengths)
        labels = [torch.full_like(r, float(label)) for r, label in zip(reference, label_N, strict=True)]
        share = [torch.full_like(r, 1 / len(self.kept)) for r in reference]
        rows = len(self.lengths)
        batch = write_tokens(
            self.batch, {REFERENCE: put(values=reference), LABEL: put(values=labels), SHARE: put(values=share)}
        )
        batch.extra_info.update({
            "calculate_entropy": False, "compute_loss": True, "temperature": self.temperature,
            "global_batch_size": rows, "mini_batch_size": rows, "epochs": 1, "seed": 0,
            "dataloader_kwargs": {"shuffle": False},
        })  # fmt: skip
        found = reduce_metrics(self.group.train_mini_batch(batch).get()["metrics"])
        self.batch = batch
        return {name: float(found[name]) for name in ("grad_norm", "lr", "loss")}

    def save(self, folder: Path, step: int) -> None:
        self.group.save_checkpoint(str(folder), None, step)

    def load(self, folder: Path) -> None:
        self.group.load_checkpoint(str(folder))


class _Reference:
    """verl's own reference policy; the trainer hands over what it said about the kept responses."""

    def __init__(self) -> None:
        self.said: list[Tensor] = []

    def outputs(self, _: Sequence[Trajectory]) -> list[Tensor]:
        return self.said


class VerlImplicitSource(ImplicitSource):
    """The source with models that live elsewhere."""

    def __init__(self, options: ImplicitOptions, context: SourceContext, model: WorkerGroupModel):
        Source.__init__(self, options, context)
        self.model: Any = model
        self.prm = self.model
        self.frozen = _Reference()
        self.reference: Any = self.frozen if options.reference == "frozen" else None
        self.lines = LineOracle(context.tokenizer)

    def _update(
        self, trajectories: Sequence[Trajectory], reference: list[Tensor], label_N: Tensor
    ) -> tuple[list[Tensor], dict[str, float]]:
        first = log_ratio(self.model.outputs(trajectories), reference)
        found = self.model.step(reference, label_N)
        return first, {name: found[name] for name in ("grad_norm", "lr")}
