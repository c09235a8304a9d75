"""The critic: a model of its own with a value head, V before each token, trained on the estimator's returns.

It starts as a copy of the policy's trunk, with a head of zeros: the first values are 0 and the first advantages plain
rewards to go. Its checkpoint is what `AutoModelForTokenClassification` loads, with one label.

Shapes: N trajectories; R response tokens of a micro-batch; T tokens of a micro-batch; E hidden size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from rollout.attention import choose_varlen, packed_forward
from rollout.packing import PackedBatch, TokenSequence, pack
from trainer.config import Config
from trainer.learner import Learner, NonFiniteError, TrainingBatch, clip_and_step, make_adamw, split_by_group
from trainer.losses.value import ValueLossOptions, value_loss
from trainer.models import DTYPES, autocast, load_policy
from trainer.objective import sequence_weights


class Critic:
    """Owns the value model and its optimizer. Needs `config.critic`."""

    def __init__(self, config: Config, device: torch.device):
        assert config.critic is not None
        self.config, self.options, self.device = config, config.critic, device
        self.compute_dtype = DTYPES[config.model.compute_dtype]
        self.varlen = choose_varlen(device, self.compute_dtype, config.hardware.attention)
        policy = load_policy(config.model, config.seed, device)
        causal_lm: Any = policy.model
        self.trunk: nn.Module = causal_lm.model
        self.architecture = type(causal_lm).__name__.replace("ForCausalLM", "ForTokenClassification")
        self.hf_config = policy.config
        self.head = nn.Linear(policy.config.hidden_size, 1, device=device, dtype=DTYPES[config.model.master_dtype])
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.loss_options = ValueLossOptions(clip=self.options.clip)
        self.total_steps = config.train.steps * config.train.optimizer_steps_per_batch
        self.optimizer_steps = 0
        self.optimizer = make_adamw(self.parameters(), self.options.optim, device)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.trunk.parameters(), *self.head.parameters()]

    def start_from(self, learner: Learner) -> None:
        """Copy the policy's trunk as it is now."""
        self.trunk.load_state_dict(learner.causal_lm(learner.model).model.state_dict())

    # ---- forward -----------------------------------------------------

    def _values(self, batch: PackedBatch) -> Tensor:
        """V before each response token [R]: read where the token is predicted."""
        with autocast(self.device, self.compute_dtype):
            hidden_TE = packed_forward(self.trunk, batch, self.varlen)
        return self.head(hidden_TE[batch.predict_R].to(self.head.weight.dtype))[:, 0]

    def _pack(self, sequences: Sequence[TokenSequence]) -> list[PackedBatch]:
        return pack(sequences, self.config.train.max_tokens_per_microbatch, self.device)

    @torch.no_grad()
    def values(self, sequences: Sequence[TokenSequence]) -> list[Tensor]:
        """V before each token of every response, one float32 CPU tensor [T_i] each (float64 of a float64 model)."""
        out: dict[int, Tensor] = {}
        for batch in self._pack(sequences):
            value_R = self._values(batch)
            wide = torch.promote_types(value_R.dtype, torch.float32)
            out |= {i: v.to("cpu", wide) for i, v in batch.split(value_R).items()}
        return [out[i] for i in range(len(sequences))]

    # ---- update ------------------------------------------------------

    def update(self, batch: TrainingBatch) -> dict[str, float]:
        """As many passes and mini-batches as the policy's; metrics are means over them. Raises `NonFiniteError` before
        the optimizer touches the weights."""
        train = self.config.train
        parts = [index for index in split_by_group(batch.trajectories, train.minibatches_per_step) if index]
        steps = [self._step(batch, index) for _ in range(train.epochs_per_batch) for index in parts]
        if not steps:
            return {}
        return_R, value_R = torch.cat(batch.returns), torch.cat(batch.values)
        variance = float(return_R.double().var(correction=0))
        explained = 1 - float((return_R - value_R).double().var(correction=0)) / variance if variance > 0 else 0.0
        means = {name: sum(s[name] for s in steps) / len(steps) for name in steps[0]}
        return means | {"explained_variance": explained, "value_mean": float(value_R.double().mean())}

    def _step(self, batch: TrainingBatch, index: list[int]) -> dict[str, float]:
        """One optimizer step on the token mean of the value loss."""
        sequences = [batch.trajectories[i] for i in index]
        old, returns = [batch.values[i] for i in index], [batch.returns[i] for i in index]
        length_N = torch.tensor([t.num_response_tokens for t in sequences])
        weight_N = sequence_weights(length_N, batch.included_N[index], "token", None)
        total = clipped = 0.0
        for mb in self._pack(sequences):
            counts = torch.bincount(mb.segment_R, minlength=len(mb.sequence_index))
            weight_R = weight_N[mb.sequence_index].to(self.device).repeat_interleave(counts)
            if not bool(weight_R.any()):
                continue
            value_R = self._values(mb)
            target_R = mb.flatten(returns).to(value_R.dtype)
            loss_R, diagnostics = value_loss(value_R, mb.flatten(old).to(value_R.dtype), target_R, self.loss_options)
            loss = (loss_R * weight_R.to(loss_R.dtype)).sum()
            if not math.isfinite(float(loss.detach())):
                self.optimizer.zero_grad(set_to_none=True)
                raise NonFiniteError("The critic's loss of a micro-batch", [index[i] for i in mb.sequence_index])
            loss.backward()
            total += float(loss.detach())
            clipped += float((diagnostics["value_clip_fraction"] * weight_R).sum())
        norm = clip_and_step(
            self.parameters(), self.optimizer, self.options.optim, self.optimizer_steps, self.total_steps
        )
        if norm is None:
            raise NonFiniteError("The critic's gradient norm", index)
        self.optimizer_steps += 1
        return {"loss": total, "value_clip_fraction": clipped, **norm}

    # ---- state -------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        """By the names of a token classification model with one label."""
        trunk = {f"model.{name}": tensor for name, tensor in self.trunk.state_dict().items()}
        return trunk | {f"score.{name}": tensor for name, tensor in self.head.state_dict().items()}

    def export_hf(self, folder: Path) -> None:
        """config.json and safetensors, for `AutoModelForTokenClassification`."""
        config = copy.deepcopy(self.hf_config)
        config._attn_implementation = None
        config.num_labels = 1
        config.dtype = self.head.weight.dtype
        config.architectures = [self.architecture]
        config.save_pretrained(folder)
        save_torch_state_dict({n: t.detach().cpu().contiguous() for n, t in self.weights().items()}, folder,
                              max_shard_size="5GB")  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on beside the weights, which the export holds."""
        return {"optimizer": self.optimizer.state_dict(), "optimizer_steps": self.optimizer_steps}

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Restore the exported weights and the rest, exactly."""
        weights: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
        for prefix, module in (("model.", self.trunk), ("score.", self.head)):
            module.load_state_dict({n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)})
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer_steps = state["optimizer_steps"]
