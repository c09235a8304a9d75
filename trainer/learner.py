"""The learner: trajectories with advantages -> one or more optimizer steps on the policy.

Shapes: N trajectories; R response tokens of a micro-batch; T tokens of a micro-batch; E hidden size.

Every loss is a sum over response tokens of weight * loss, with weights from the counts of the whole batch of the
optimizer step (`sequence_weights`), so micro-batches only bound memory: any split and any packing order give the same
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from prm.optim import NonFiniteError, clip_and_step, make_adamw
from rollout.attention import choose_varlen
from rollout.models import DTYPES, Policy, load_policy
from rollout.packed_model import PackedModel
from rollout.packing import PackedBatch, Packer, TokenSequence, per_sequence
from rollout.sharding import (
    WholeWeights,
    full,
    full_state,
    like,
    load_full,
    load_optimizer,
    optimizer_state,
    optimizer_tensors,
    shard,
    whole,
)
from rollout.trajectory import Trajectory
from trainer.config import Config, OptimConfig
from trainer.losses.base import LOSSES, LossInputs
from trainer.losses.value import ValueLossOptions, value_loss
from trainer.objective import (
    adapted_kl_coef,
    kl_loss,
    mismatch_correction,
    mismatch_diagnostics,
    mismatch_weights,
    needs_reference,
    proximal_logp,
    sequence_weights,
)
from verifiers.errors import RunError
from verifiers.options import parse_options

# (micro-batch, log-probs [R], entropies [R]) -> (token losses [R], diagnostics [R] by name)
TokenLoss = Callable[[PackedBatch, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
# (micro-batch, values before the response tokens [R]) -> (what is added to the loss, sums to report by name)
ValueTerm = Callable[[PackedBatch, Tensor], tuple[Tensor, dict[str, Tensor]]]


@dataclass(slots=True)
class TrainingBatch:
    """What the loop hands over: trajectories, one advantage tensor [T_i] each, and which take part in the loss [N].

    old: the learner's log-probs before the update, one tensor [T_i] each, where the advantages already needed them.
    values, returns: of a critic, before the update and what it should have predicted, one tensor [T_i] each."""

    trajectories: list[Trajectory]
    advantages: list[Tensor]
    included_N: Tensor
    old: list[Tensor] | None = None
    values: list[Tensor] = field(default_factory=list)
    returns: list[Tensor] = field(default_factory=list)

    def select(self, index: Sequence[int]) -> TrainingBatch:
        """The same for a subset of the trajectories, in the order of `index`."""
        return TrainingBatch(
            [self.trajectories[i] for i in index],
            [self.advantages[i] for i in index],
            self.included_N[list(index)],
            None if self.old is None else [self.old[i] for i in index],
            [self.values[i] for i in index] if self.values else [],
            [self.returns[i] for i in index] if self.returns else [],
        )


class Learner:
    """Owns the policy, its frozen reference (if the objective needs one), the value head of a critic on its trunk (if
    there is one) and the optimizer."""

    def __init__(self, config: Config, policy: Policy, device: torch.device, packer: Packer | None = None):
        """packer: shared with the models that learn beside the policy; it knows the ranks."""
        self.config, self.policy, self.device = config, policy, device
        self.packer = packer or Packer()
        self.world = self.packer.world
        self.model: Any = policy.model  # torch's typing knows modules only, not what peft adds to them
        self.compute_dtype = DTYPES[config.model.compute_dtype]
        self.varlen = choose_varlen(device, self.compute_dtype, config.hardware.attention)
        self.loss = LOSSES.get(config.objective.loss.kind, key="objective.loss.kind")
        self.loss_options = parse_options(self.loss.options, config.objective.loss.options, "objective.loss")
        self.reference: PackedModel | None = None
        self.value_head: nn.Linear | None = None
        if config.critic is not None and config.critic.trunk == "shared":
            dtype = DTYPES[config.model.master_dtype]
            self.value_head = nn.Linear(policy.config.hidden_size, 1, device=device, dtype=dtype)
            nn.init.zeros_(self.value_head.weight)  # the first values are 0, as those of a critic of its own
            nn.init.zeros_(self.value_head.bias)
        self.packed = self._packed_model(self.model, self.value_head)
        self.kl_coef = config.objective.kl.coef
        self.use_optimizer(config.optim, config.train.steps * config.train.optimizer_steps_per_batch)

    # ---- optimizer ---------------------------------------------------

    def use_optimizer(self, optim: OptimConfig, total_steps: int) -> None:
        """Start a fresh AdamW with its schedule (warm start and RL each have their own)."""
        self.optim, self.total_steps, self.optimizer_steps = optim, total_steps, 0
        self.optimizer = make_adamw(self.trainable(), optim)

    def trainable(self) -> list[nn.Parameter]:
        """What the optimizer changes."""
        head = [] if self.value_head is None else list(self.value_head.parameters())
        return [p for p in self.model.parameters() if p.requires_grad] + head

    def freeze_reference(self) -> None:
        """Keep the present policy as the reference of the KL term. With LoRA the frozen base model serves as one, so
        the reference is then the model without its adapter."""
        if not needs_reference(self.config.objective.kl) or self.config.model.lora is not None:
            return
        reference: Any = load_policy(self.config.model, self.config.seed, self.device, self.world).model.eval()
        reference = reference.to(self.compute_dtype).requires_grad_(False)
        self.reference = self._packed_model(reference, None)
        self.move_reference(self.weights())

    def move_reference(self, weights: Mapping[str, Tensor]) -> None:
        """Let the KL term pull towards these weights (plain Hugging Face names). It must have a model of its own."""
        assert self.reference is not None
        load_full(self.reference.model, weights)

    # ---- forward -----------------------------------------------------

    def causal_lm(self, model: Any) -> Any:
        """The transformers model inside: with LoRA, the one peft wraps."""
        return model.get_base_model() if self.config.model.lora is not None else model

    def _packed_model(self, model: Any, value_head: nn.Linear | None) -> PackedModel:
        """`model` on packed micro-batches, sharded over the ranks."""
        packed = PackedModel(
            model,
            value_head,
            varlen=self.varlen,
            compute_dtype=self.compute_dtype,
            temperature=self.config.rollout.temperature,
            chunk_tokens=self.config.train.logprob_chunk_tokens,
        )
        shard(packed, self.world, self.config.hardware.distributed)
        return packed

    def _pack(self, sequences: Sequence[TokenSequence]) -> list[PackedBatch]:
        return self.packer.pack(sequences, self.config.train.max_tokens_per_microbatch, self.device)

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[TokenSequence], temperature: float | None = None) -> list[Tensor]:
        """Log-probs of every response under the present policy, one CPU tensor [T_i] each. temperature: None is that of
        the rollouts."""
        return self._collect(sequences, self.packed, temperature=temperature)

    @torch.no_grad()
    def reference_logprobs(self, sequences: Sequence[TokenSequence]) -> list[Tensor]:
        """The same under the frozen reference."""
        if self.config.model.lora is not None:
            with self.model.disable_adapter():
                return self._collect(sequences, self.packed)
        assert self.reference is not None
        return self._collect(sequences, self.reference)

    @torch.no_grad()
    def values(self, sequences: Sequence[TokenSequence]) -> list[Tensor]:
        """V before each token of every response by the value head, one CPU tensor [T_i] each."""
        return self._collect(sequences, self.packed, values=True)

    def _collect(
        self,
        sequences: Sequence[TokenSequence],
        model: PackedModel,
        values: bool = False,
        temperature: float | None = None,
    ) -> list[Tensor]:
        def found(batch: PackedBatch) -> Tensor:
            logp_R, _, value_R = model(batch, logp=not values, temperature=temperature)
            wanted = value_R if values else logp_R
            assert wanted is not None
            return wanted

        was_training = model.training
        model.eval()  # LoRA dropout belongs to the gradient only
        out = per_sequence(self._pack(sequences), found, self.world)
        model.train(was_training)
        return out

    # ---- updates -----------------------------------------------------

    def update(self, batch: TrainingBatch) -> dict[str, float]:
        """`epochs_per_batch` times `minibatches_per_step` optimizer steps on one batch of rollouts; metrics are means
        over them.

        Raises `NonFiniteError` before the optimizer touches the weights.
        """
        included = torch.nonzero(batch.included_N).flatten().tolist()
        if len(included) < len(batch.trajectories):  # the others need no forward
            try:
                return self.update(batch.select(included))
            except NonFiniteError as error:
                error.sequences = [included[i] for i in error.sequences]
                raise
        train, objective = self.config.train, self.config.objective
        old = batch.old
        if old is None and self._needs_old():
            old = self.logprobs(batch.trajectories)
        reference = None
        if needs_reference(objective.kl) and objective.kl.place == "loss":
            reference = self.reference_logprobs(batch.trajectories)
        parts = [index for index in split_by_group(batch.trajectories, train.minibatches_per_step) if index]
        metrics = [
            self._policy_step(batch, index, old, reference) for _ in range(train.epochs_per_batch) for index in parts
        ]
        # a mini-batch of excluded trajectories only has no diagnostics
        names = dict.fromkeys(name for m in metrics for name in m)
        values = {name: [m[name] for m in metrics if name in m] for name in names}
        means = {name: sum(v) / len(v) for name, v in values.items()}
        if "kl_reference" in means:
            means |= self.adapt_kl(means["kl_reference"], len(batch.trajectories))
        return means

    def _needs_old(self) -> bool:
        """Whether log-probs from before the update are needed. With a single optimizer step the policy at its start is
        the one being differentiated: no extra forward, unless the whole batch's are needed at once."""
        mismatch = self.config.objective.mismatch
        several = self.config.train.optimizer_steps_per_batch > 1
        return several or mismatch.normalise != "none" or mismatch.rejection is not None

    def adapt_kl(self, kl: float, trajectories: int) -> dict[str, float]:
        """Let the controller, if there is one, answer the KL of a batch (nats a token); the metric of the coefficient
        that the batch was trained with."""
        controller = self.config.objective.kl.controller
        if controller is None:
            return {}
        used, horizon = self.kl_coef, controller.horizon_trajectories
        self.kl_coef = adapted_kl_coef(used, kl, controller.target, horizon, trajectories)
        return {"kl_coef": used}

    def _policy_step(
        self, batch: TrainingBatch, index: list[int], old: list[Tensor] | None, reference: list[Tensor] | None
    ) -> dict[str, float]:
        objective = self.config.objective
        trajectories = [batch.trajectories[i] for i in index]
        sampled = [torch.tensor(t.logp_sampled) for t in trajectories]
        length_N = torch.tensor([t.num_response_tokens for t in trajectories])
        included_N = batch.included_N[index]
        correction: list[Tensor] | None = None
        keep: list[Tensor] | None = None
        counted_N = length_N
        if old is not None:
            correction, keep = self._correct_mismatch([old[i] for i in index], sampled, included_N)
            counted_N = torch.stack([k.sum() for k in keep])
        weight_N = sequence_weights(counted_N, included_N, objective.reduce, objective.constant_tokens)

        def token_loss(mb: PackedBatch, logp_R: Tensor, entropy_R: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            old_R = logp_R.detach() if old is None else mb.flatten([old[i] for i in index])
            sampled_R = mb.flatten(sampled)
            advantage_R = mb.flatten([batch.advantages[i] for i in index]).to(logp_R.dtype)
            form = "bypass" if objective.mismatch.kind == "bypass" else "decoupled"
            before_R = proximal_logp(old_R, sampled_R, form)
            mask_R = None if keep is None else mb.flatten(keep)
            loss_R, diagnostics = self.loss.compute(
                LossInputs(logp_R, before_R, advantage_R, mb.segment_R, mask_R), self.loss_options
            )
            if correction is None:
                weight_R = mismatch_weights(old_R, sampled_R, mb.segment_R, objective.mismatch)
            else:
                weight_R = mb.flatten(correction).to(logp_R.dtype)
            loss_R = loss_R * weight_R
            diagnostics |= {"entropy": entropy_R, "mismatch_weight": weight_R}
            diagnostics |= mismatch_diagnostics(old_R - sampled_R)
            if reference is not None:
                reference_R = mb.flatten([reference[i] for i in index])
                kl_R = kl_loss(logp_R, reference_R, before_R, objective.kl.estimator, objective.kl.gradient)
                loss_R = loss_R + self.kl_coef * kl_R
                diagnostics["kl_reference"] = kl_R.detach()
            return loss_R, diagnostics

        value_term = None if self.value_head is None else self._shared_value_term(batch, index)
        try:
            metrics = self._optimizer_step(trajectories, weight_N, token_loss, keep, value_term)
        except NonFiniteError as error:
            error.sequences = [index[i] for i in error.sequences]  # of the batch, not of this mini-batch
            raise
        if keep is not None and objective.mismatch.rejection is not None:
            metrics["rejected_share"] = 1 - float(torch.cat(keep).double().mean())
        return metrics

    def _shared_value_term(self, batch: TrainingBatch, index: list[int]) -> ValueTerm:
        critic = self.config.critic
        assert critic is not None
        of_values = value_loss_term(batch, index, ValueLossOptions(clip=critic.clip))

        def term(mb: PackedBatch, value_R: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            loss, sums = of_values(mb, value_R)
            return critic.loss_coef * loss, {"value_loss": loss.detach(), **sums}

        return term

    def _correct_mismatch(
        self, old: list[Tensor], sampled: list[Tensor], included_N: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """(weights, which tokens stay in the loss) of one optimizer step, one tensor [T_i] each."""
        lengths = [len(o) for o in old]
        segment_R = torch.arange(len(old)).repeat_interleave(torch.tensor(lengths))
        included_R = included_N[segment_R]
        weight_R, keep_R = mismatch_correction(
            torch.cat(old), torch.cat(sampled), segment_R, included_R, self.config.objective.mismatch
        )
        return list(weight_R.split(lengths)), list(keep_R.split(lengths))

    def supervised_step(self, demonstrations: Sequence[TokenSequence]) -> dict[str, float]:
        """One step of maximum likelihood on the responses, token mean."""
        length_N = torch.tensor([len(d.response_ids) for d in demonstrations])
        weight_N = sequence_weights(length_N, torch.ones(len(demonstrations), dtype=torch.bool), "token", None)
        return self._optimizer_step(demonstrations, weight_N, lambda mb, logp_R, entropy_R: (-logp_R, {}))

    def _optimizer_step(
        self,
        sequences: Sequence[TokenSequence],
        weight_N: Tensor,
        token_loss: TokenLoss,
        keep: list[Tensor] | None = None,
        value_term: ValueTerm | None = None,
    ) -> dict[str, float]:
        sums = self.accumulate_gradient(sequences, weight_N, token_loss, keep, value_term)
        norm = clip_and_step(self.trainable(), self.optimizer, self.optim, self.optimizer_steps, self.total_steps)
        if norm is None:
            raise NonFiniteError("The gradient norm", list(range(len(sequences))))
        self.optimizer_steps += 1
        return sums | norm

    def accumulate_gradient(
        self,
        sequences: Sequence[TokenSequence],
        weight_N: Tensor,
        token_loss: TokenLoss,
        keep: list[Tensor] | None = None,
        value_term: ValueTerm | None = None,
    ) -> dict[str, float]:
        """Back-propagate all micro-batches; return the loss and the token means of the diagnostics. keep: bool, one
        tensor [T_i] each, the tokens that are in the loss; None: all. value_term: of the value head, if there is one;
        its sums are reported as they are."""
        totals: dict[str, float] = {"loss": 0.0, "tokens": 0.0}
        sums: dict[str, float] = {}
        not_finite: list[int] = []  # sequences of micro-batches; said when all ranks are through
        for mb in self._pack(sequences):
            counts = torch.bincount(mb.segment_R, minlength=len(mb.sequence_index))
            weight_R = weight_N[mb.sequence_index].to(self.device).repeat_interleave(counts)
            if keep is not None:
                weight_R = weight_R * mb.flatten(keep)
            if self.world.size == 1 and not (len(weight_R) and bool(weight_R.any())):
                continue  # nothing in this micro-batch takes part in the loss; other ranks would wait for it
            logp_R, entropy_R, value_R = self.packed(mb)
            assert logp_R is not None
            assert entropy_R is not None
            if not mb.sequence_index:
                (logp_R.sum() if value_R is None else logp_R.sum() + value_R.sum()).backward()
                continue
            loss_R, diagnostics = token_loss(mb, logp_R, entropy_R)
            # where, not a product: what is left out must not bring a NaN in (0 * NaN is NaN)
            loss = torch.where(weight_R > 0, loss_R * weight_R.to(loss_R.dtype), 0.0).sum()
            if value_term is not None:
                assert value_R is not None
                value_loss, more = value_term(mb, value_R)
                loss = loss + value_loss
                for name, tensor in more.items():
                    sums[name] = sums.get(name, 0.0) + float(tensor)
            value = float(loss.detach())
            if not math.isfinite(value):
                not_finite += mb.sequence_index
            loss.backward()
            totals["loss"] += value
            counted_R = weight_R > 0
            totals["tokens"] += int(counted_R.sum())
            for name, values_R in diagnostics.items():
                totals[name] = totals.get(name, 0.0) + float((values_R.detach() * counted_R).sum())
        if not_finite := sorted(i for part in self.world.gather(not_finite) for i in part):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError("The loss of a micro-batch", not_finite)
        totals, sums = self.world.total(totals), self.world.total(sums)
        tokens = max(1, int(totals.pop("tokens")))
        means = {name: value if name == "loss" else value / tokens for name, value in totals.items()}
        return means | sums

    # ---- weights and state -------------------------------------------

    def weights(self) -> Mapping[str, Tensor]:
        """The policy's whole weights by their plain Hugging Face names. One process and full fine-tuning: views, not
        copies. Several ranks: gathered one at a time, when they are read; all ranks must read them. LoRA: merged when
        they are read."""
        if self.config.model.lora is None:
            return whole(self.model.state_dict())
        return merged_lora_weights(self.causal_lm(self.model))

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, in whole tensors. All ranks must ask."""
        state: dict[str, Any] = {
            "policy": {n: full(p.detach()) for n, p in self.model.named_parameters() if p.requires_grad},
            "optimizer": optimizer_state(self.optimizer),
            **self.plain_state(),
        }
        if self.reference is not None:
            state["reference"] = full_state(self.reference.model)
        if self.value_head is not None:
            state["value_head"] = full_state(self.value_head)
        return state

    def plain_state(self) -> dict[str, Any]:
        """What `tensors` leaves out."""
        return {"optimizer_steps": self.optimizer_steps, "kl_coef": self.kl_coef}

    def load_plain_state(self, state: Mapping[str, Any]) -> None:
        self.optimizer_steps, self.kl_coef = state["optimizer_steps"], state["kl_coef"]

    def tensors(self) -> dict[str, Tensor]:
        """Every live tensor that the next step depends on, by name, as it lies on this rank."""
        out = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        out |= optimizer_tensors(self.optimizer)
        if self.reference is not None:
            out |= {f"reference.{n}": p.detach() for n, p in self.reference.model.named_parameters()}
        if self.value_head is not None:
            out |= {f"value_head.{n}": p.detach() for n, p in self.value_head.named_parameters()}
        return out

    def load_state_dict(self, state: dict[str, Any]) -> None:
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if parameters.keys() != state["policy"].keys():
            raise RunError(
                "The checkpoint holds other parameters than this model.", fix="resume with the recipe it was made by"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(like(state["policy"][name], parameter))
        load_optimizer(self.optimizer, state["optimizer"])
        self.load_plain_state(state)
        if self.reference is not None:
            load_full(self.reference.model, state["reference"])
        if self.value_head is not None:
            load_full(self.value_head, state["value_head"])


def value_loss_term(batch: TrainingBatch, index: Sequence[int], options: ValueLossOptions) -> ValueTerm:
    """The token mean of the value loss over the trajectories `index` that take part: the policy's reduction does not
    change it."""
    old, returns = [batch.values[i] for i in index], [batch.returns[i] for i in index]
    length_N = torch.tensor([batch.trajectories[i].num_response_tokens for i in index])
    weight_N = sequence_weights(length_N, batch.included_N[list(index)], "token", None)

    def term(mb: PackedBatch, value_R: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        old_R, return_R = (mb.flatten(values).to(value_R.dtype) for values in (old, returns))
        loss_R, diagnostics = value_loss(value_R, old_R, return_R, options)
        weight_R = weight_N.to(value_R)[mb.sequence_index][mb.segment_R]
        return (loss_R * weight_R).sum(), {name: (v_R * weight_R).sum() for name, v_R in diagnostics.items()}

    return term


def merged_lora_weights(causal_lm: nn.Module) -> WholeWeights:
    """W + scaling * B A for every adapted layer, each made when it is read, without touching the model (merging in
    place would round it)."""
    from peft.tuners.lora import LoraLayer

    tensors = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in causal_lm.state_dict().items()
        if "lora_" not in name
    }
    changes = {
        f"{name}.weight": partial(_with_adapters, module)
        for name, module in causal_lm.named_modules()
        if isinstance(module, LoraLayer)
    }
    return WholeWeights(tensors, changes)


def _with_adapters(module: Any, weight: Tensor) -> Tensor:
    for adapter in module.active_adapters:
        delta = module.get_delta_weight(adapter).detach()
        weight = (weight.to(delta.dtype) + delta).to(torch.promote_types(weight.dtype, delta.dtype))
    return weight


def split_by_group(trajectories: Sequence[Trajectory], parts: int) -> list[list[int]]:
    """Indices of the trajectories in `parts` mini-batches of whole groups, in order."""
    groups: dict[int, list[int]] = {}
    for i, trajectory in enumerate(trajectories):
        groups.setdefault(trajectory.group, []).append(i)
    order = list(groups.values())
    borders = [round(k * len(order) / parts) for k in range(parts + 1)]
    return [[i for group in order[a:b] for i in group] for a, b in pairwise(borders)]
