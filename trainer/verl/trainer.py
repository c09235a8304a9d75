"""verl's synchronous trainer with the recipe's rewards, advantages, losses and co-trained sources.

verl samples, moves weights, shards, saves. Between the log-probs and the update stands the recipe: `Step` decides
which groups are kept and what the advantages are, `PolicyLossOfRecipe` and `ValueLossOfRecipe` are the losses, and
sources with a model of their own have it in a worker group beside verl's (`implicit`) or in an actor (`beside`), saved
and resumed with verl's checkpoints.

Source: verl 0.9.1, ``trainer/ppo/v1/trainer_base.py``.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer

from prm.signal import Kept, Signal, SourceContext
from trainer.config import Config, SourcePart
from trainer.critic import value_metrics
from trainer.losses.value import ValueLossOptions
from trainer.verl.queue import of_batch, read_rows, write_tokens
from trainer.verl.step import Row, Step, Weighed, in_the_order_of_rows, minibatches
from trainer.verl.translate import BESIDE
from trainer.verl.worker_losses import (
    BEFORE,
    CORRECTION,
    VALUE_WEIGHT,
    WEIGHT,
    PolicyLossOfRecipe,
    ValueLossOfRecipe,
    means,
)
from verifiers.options import parse_options

log = logging.getLogger(__name__)


@register_trainer("assay")
class AssayTrainer(PPOTrainerSync):
    """Needs ``assay.recipe`` in verl's configuration, which `trainer.verl.run` puts there."""

    # verl compares the mode with the word in six places, and would take another for an asynchronous trainer
    trainer_mode = property(lambda self: "sync", lambda self, mode: None)

    def __init__(self, config: Any):
        own: Any = OmegaConf.to_container(config.assay, resolve=True)
        self.recipe, self.eos_ids = parse_options(Config, own["recipe"]), own["eos_ids"]
        self.rewarding = Step(self.recipe)
        self.saved: dict[str, Any] = {}  # what sources keep, by the source's kind, with `save` and `load`
        self.learns = {"actor": True, "critic": True}  # whether this step has something for them
        super().__init__(config)

    # ---- models ------------------------------------------------------

    def _setup(self) -> None:
        super()._setup()
        self.actor_rollout_wg.set_loss_fn(PolicyLossOfRecipe(self.recipe.objective))
        if self.recipe.critic is not None:
            self.critic_wg.set_loss_fn(ValueLossOfRecipe(ValueLossOptions(clip=self.recipe.critic.clip)))
        for i, part in enumerate(self.recipe.sources):
            if part.kind == "implicit":
                source = self.rewarding.sources[i] = self._implicit(part.options, f"sources.{i}")
                self.saved[part.kind] = source.model
            elif part.kind in BESIDE:
                self.rewarding.sources[i] = self.saved[part.kind] = self._beside(part)
        if self.global_steps > 0:  # verl has resumed, and knows nothing of what is ours
            for name, model in self.saved.items():
                model.load(self._folder(name))

    def _pool(self) -> Any:
        """Where the policy is trained."""
        roles = (Role.ActorRolloutRef, Role.ActorRollout, Role.Actor)
        return self.resource_pool_manager.get_resource_pool(next(r for r in roles if r in self.role_worker_mapping))

    def _beside(self, part: SourcePart) -> Any:
        from trainer.verl.beside import SourceBeside

        policy = self.config.actor_rollout_ref.model.path
        return SourceBeside(self.recipe, part, policy, self._pool(), self.config.trainer.device)

    def _implicit(self, options: dict[str, Any], key: str) -> Any:
        from prm.implicit import ImplicitSource
        from trainer.session import model_setup
        from trainer.verl.implicit import VerlImplicitSource, WorkerGroupModel

        own = parse_options(ImplicitSource.Options, options, key)
        setup = model_setup(self.recipe, torch.device("cpu"))
        context = SourceContext(None, self.tokenizer, setup.device, self.recipe.seed, setup, None, 0)  # type: ignore[arg-type]
        return VerlImplicitSource(own, context, WorkerGroupModel(self.config, own, self._pool()))

    def _folder(self, name: str) -> Path:
        return Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}" / name

    def _save_checkpoint(self) -> None:
        for name, model in self.saved.items():
            model.save(self._folder(name), self.global_steps)
        super()._save_checkpoint()  # last: it writes which step is complete

    # ---- rewards, advantages, loss -----------------------------------

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        rows, at = read_rows(batch, self.recipe, self.eos_ids, self._decode)
        said = self.rewarding.judge(rows)
        index, kept, found = self.rewarding.keep(rows, said, self.global_steps - 1)
        metrics.update(found)
        lengths = [int(tag["response_len"]) for tag in batch.tags]
        said = [signal.select(index) for signal in said]
        batch, signals = self._credit(batch, rows, index, [at[i] for i in index], kept, lengths, said, metrics)
        training, found = self.rewarding.advantages(rows, kept, index, signals)
        metrics.update(found)
        actor = self.config.actor_rollout_ref
        ranks = self.config.trainer.nnodes * self.config.trainer.n_gpus_per_node
        of_row = minibatches(len(batch.keys), ranks, actor.actor.ppo_mini_batch_size * actor.rollout.n)
        weighed = in_the_order_of_rows(rows, index, training, [of_row[i] for i in at], self.recipe.objective)
        weights = {"actor": weighed.weights, "critic": weighed.value_weights}
        self.learns = {name: any(bool((w > 0).any()) for w in own) for name, own in weights.items()}
        if training.returns:
            metrics.update({f"critic/{name}": value for name, value in value_metrics(training).items()})
        if self.recipe.verl.record_tensors:
            self._record(rows, weighed, signals)
        fields = {
            "advantages": weighed.advantages,
            "returns": weighed.returns or weighed.advantages,
            BEFORE: weighed.before,
            WEIGHT: weighed.weights,
            CORRECTION: weighed.corrections,
        }
        if weighed.returns:
            fields[VALUE_WEIGHT] = weighed.value_weights
        return write_tokens(batch, {name: of_batch(at, values, lengths) for name, values in fields.items()})

    def _credit(
        self, batch: Any, rows: list[Row], index: list[int], at: list[int], kept: Kept, lengths: list[int],
        said: list[Signal], metrics: dict[str, Any],
    ) -> tuple[Any, list[Signal]]:  # fmt: skip
        """What the sources say about the kept responses. at: where those stand in the batch. said: by those that
        judge."""
        signals = []
        for part, source, signal in zip(self.recipe.sources, self.rewarding.sources, said, strict=True):
            if part.kind == "implicit" and kept.trajectories:
                source.model.at_step(batch, at, lengths)  # type: ignore[attr-defined]
                source.frozen.said = [rows[i].reference for i in index]  # type: ignore[attr-defined]
                signal = source.credit(kept)
                batch = source.model.batch  # type: ignore[attr-defined]
            elif part.kind in BESIDE and kept.trajectories:
                signal = source.credit(kept) if source.phase == "credit" else signal
                signal.metrics |= source.learn(kept, signal)
            metrics.update({f"{part.kind}/{name}": value for name, value in signal.metrics.items()})
            signals.append(signal)
        return batch, signals

    def _update_critic(self, batch: Any, metrics: dict[str, Any]) -> Any:
        return super()._update_critic(batch, metrics) if self.learns["critic"] else batch

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        if not self.learns["actor"]:
            log.warning("step %d: no group has anything to teach; the policy stays as it is", self.global_steps)
            return batch
        batch = super()._update_actor(batch, metrics)
        found = means(metrics)
        metrics.clear()
        metrics.update(found)
        return batch

    def _record(self, rows: list[Row], weighed: Weighed, signals: list[Signal]) -> None:
        """verl.record_tensors: the whole step, for a comparison or a look inside."""
        folder = Path(self.config.trainer.default_local_dir).parent / "tensors"
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "trajectories": [row.trajectory for row in rows],
            "verdicts": [row.verdict for row in rows],
            "old": [row.old for row in rows],
            "reference": [row.reference for row in rows],
            "values": [row.values for row in rows],
            "returns": weighed.returns,
            "advantages": weighed.advantages,
            "weights": weighed.weights,
            "kept": weighed.kept,
            "outcome": [signal.outcome_N for signal in signals],
            "token_reward": [signal.token_reward for signal in signals],
        }
        torch.save(content, folder / f"step_{self.global_steps}.pt")
