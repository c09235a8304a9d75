"""A model that learns beside the policy, on the policy's own packed token ids: a language model with its usual head
(an implicit PRM) or one number a token (a critic, a token-level reward model).

Nothing is tokenised again and nothing is padded: `pack` is the policy's, and sequences that were packed once are not
packed a second time.

Shapes: N sequences; R response tokens of a micro-batch; T tokens of a micro-batch; E hidden size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prm.optim import NonFiniteError, clip_and_step, make_adamw
from rollout.attention import choose_varlen
from rollout.models import DTYPES, load_policy, read_weights, save_weights
from rollout.options import ModelConfig, OptimConfig, ShardingOptions
from rollout.packed_model import PackedModel
from rollout.packing import PackedBatch, Packer, TokenSequence, per_sequence
from rollout.sharding import load_full, load_optimizer, optimizer_state, optimizer_tensors, shard, whole

# (micro-batch, the head's output [R]) -> (loss: a sum over what the micro-batch holds, sums to report by name)
BatchLoss = Callable[[PackedBatch, Tensor], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class ModelSetup:
    """How the models of a run are made and run: as the policy, without its adapter. total_steps: optimizer steps that
    a model takes with one step a round."""

    model: ModelConfig
    seed: int
    device: torch.device
    attention: str
    max_tokens_per_microbatch: int
    logprob_chunk_tokens: int
    temperature: float
    total_steps: int
    packer: Packer = field(default_factory=Packer)
    sharding: ShardingOptions = field(default_factory=ShardingOptions)


class CoTrained:
    """head: ``lm``, log-probs of the response tokens; ``scalar``, one number for each response token from a linear
    head, or `numbers` of them.

    read: where the scalar head is read. ``before``: at the position that predicts the token (the state it was chosen
    in); ``after``: at the token's own position (what has been written, with it).

    exported_as: what a scalar head is in an export: a ``token`` classifier, or a ``sequence`` classifier, which gives
    the number read after the last token.

    optim: None for a frozen model. zero_head: the scalar head starts at 0 instead of random. The trunk starts with the
    recipe's weights; `start_from` copies the policy's as they are after a warm start.
    """

    def __init__(
        self,
        setup: ModelSetup,
        head: Literal["lm", "scalar"],
        optim: OptimConfig | None,
        *,
        read: Literal["before", "after"] = "before",
        zero_head: bool = False,
        head_bias: bool = True,
        steps_per_round: int = 1,
        exported_as: Literal["token", "sequence"] = "token",
        numbers: int = 1,
    ):
        self.setup, self.optim, self.read, self.exported_as = setup, optim, read, exported_as
        compute_dtype = DTYPES[setup.model.compute_dtype]
        self.world = setup.packer.world
        policy = load_policy(setup.model.model_copy(update={"lora": None}), setup.seed, setup.device, self.world)
        self.hf_config, self.causal_lm = policy.config, policy.model
        self.trunk: nn.Module = self.causal_lm.model
        self.head: nn.Linear | None = None
        if head == "scalar":
            self.causal_lm.set_output_embeddings(nn.Identity())  # an untied one would lie beside the trunk, undivided
            dtype = DTYPES[setup.model.master_dtype]
            self.head = nn.Linear(policy.config.hidden_size, numbers, bias=head_bias, device=setup.device, dtype=dtype)
            if zero_head:
                for parameter in self.head.parameters():
                    nn.init.zeros_(parameter)
        self.packed = PackedModel(
            self.causal_lm if self.head is None else self.trunk,
            self.head,
            varlen=choose_varlen(setup.device, compute_dtype, setup.attention),
            compute_dtype=compute_dtype,
            temperature=setup.temperature,
            chunk_tokens=setup.logprob_chunk_tokens,
            read=read,
        )
        if optim is None:  # frozen before it is sharded, so that FSDP keeps no gradients for it
            self.packed.requires_grad_(False)
        shard(self.packed, self.world, setup.sharding)
        self.total_steps, self.optimizer_steps = setup.total_steps * steps_per_round, 0
        self.optimizer: torch.optim.AdamW | None = None
        if optim is not None:
            self.optimizer = make_adamw(self.parameters(), optim)

    def parameters(self) -> list[nn.Parameter]:
        if self.head is None:
            return list(self.causal_lm.parameters())
        return [*self.trunk.parameters(), *self.head.parameters()]

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the policy's weights (plain Hugging Face names) as they are now; a scalar head stays as it is."""
        if self.head is None:
            load_full(self.causal_lm, weights)
            return
        load_full(self.trunk, weights, prefix="model.")

    # ---- forward -----------------------------------------------------

    def pack(self, sequences: Sequence[TokenSequence]) -> list[PackedBatch]:
        return self.setup.packer.pack(sequences, self.setup.max_tokens_per_microbatch, self.setup.device)

    def forward(self, batch: PackedBatch) -> Tensor:
        """[R]: the log-prob of each response token at the rollouts' temperature, or the head's number for it; of a
        head of several numbers [R, numbers]."""
        logp_R, _, value_R = self.packed(batch)
        out_R = logp_R if self.head is None else value_R
        assert out_R is not None
        return out_R

    @torch.no_grad()
    def outputs(self, sequences: Sequence[TokenSequence]) -> list[Tensor]:
        """`forward` for every response: one float32 CPU tensor [T_i] each (float64 of a float64 model)."""
        return per_sequence(self.pack(sequences), self.forward, self.world)

    # ---- update ------------------------------------------------------

    def step(self, sequences: Sequence[TokenSequence], batch_loss: BatchLoss, what: str) -> dict[str, float]:
        """One optimizer step on the sum of `batch_loss` over the micro-batches; returns the loss, the sums and the
        gradient norm. Weights that make the sum a mean must come from the whole batch, so that the gradient does not
        depend on the micro-batches. Raises `NonFiniteError` (of `what`) before the optimizer touches the weights."""
        assert self.optimizer is not None
        assert self.optim is not None
        sums: dict[str, float] = {"loss": 0.0}
        not_finite: list[int] = []  # sequences of micro-batches; said when all ranks are through
        for batch in self.pack(sequences):
            out_R = self.forward(batch)
            if not batch.sequence_index:
                out_R.sum().backward()
                continue
            loss, more = batch_loss(batch, out_R)
            value = float(loss.detach())
            if not math.isfinite(value):
                not_finite += batch.sequence_index
            loss.backward()
            sums["loss"] += value
            for name, tensor in more.items():
                sums[name] = sums.get(name, 0.0) + float(tensor.detach())
        if not_finite := sorted(i for part in self.world.gather(not_finite) for i in part):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(f"{what}'s loss of a micro-batch", not_finite)
        sums = self.world.total(sums)
        norm = clip_and_step(self.parameters(), self.optimizer, self.optim, self.optimizer_steps, self.total_steps)
        if norm is None:
            raise NonFiniteError(f"{what}'s gradient norm", list(range(len(sequences))))
        self.optimizer_steps += 1
        return sums | norm

    # ---- state -------------------------------------------------------

    def weights(self) -> Mapping[str, Tensor]:
        """Whole tensors by the names of the transformers class that `export_hf` names. Several ranks: gathered when
        they are read, and all ranks must read them."""
        if self.head is None:
            return whole(self.causal_lm.state_dict())
        trunk = {f"model.{name}": tensor for name, tensor in self.trunk.state_dict().items()}
        return whole(trunk | {f"score.{name}": tensor for name, tensor in self.head.state_dict().items()})

    def export_hf(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """config.json and safetensors, for `AutoModelForCausalLM`, or for `AutoModelForTokenClassification` or
        `AutoModelForSequenceClassification` with one label a number of the head. weights: the model's, where they were
        asked for before; else all ranks must ask, each writes."""
        self.export_config(folder)
        save_weights(self.exported(self.weights() if weights is None else weights), folder)

    def export_config(self, folder: Path) -> None:
        config = copy.deepcopy(self.hf_config)
        config._attn_implementation = None
        config.dtype = self.parameters()[0].dtype
        architecture = type(self.causal_lm).__name__
        if self.head is not None:
            of_tokens = self.exported_as == "token"
            name = "ForTokenClassification" if of_tokens else "ForSequenceClassification"
            architecture = architecture.replace("ForCausalLM", name)
            config.num_labels = self.head.out_features
        config.architectures = [architecture]
        config.save_pretrained(folder)

    def exported(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`weights` as the class of the export has them."""
        out = dict(weights)
        if self.head is not None and self.head.bias is None and self.exported_as == "token":
            # the class has a bias; ours is none, which is 0
            out["score.bias"] = torch.zeros(self.head.out_features, dtype=self.head.weight.dtype)
        elif self.head is None and self.hf_config.tie_word_embeddings:
            out.pop("lm_head.weight", None)
        return out

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on beside the weights, which the export holds. All ranks must ask."""
        if self.optimizer is None:
            return {}
        return {"optimizer": optimizer_state(self.optimizer), **self.plain_state()}

    def plain_state(self) -> dict[str, Any]:
        """What `tensors` leaves out."""
        return {} if self.optimizer is None else {"optimizer_steps": self.optimizer_steps}

    def load_plain_state(self, state: Mapping[str, Any]) -> None:
        self.optimizer_steps = state.get("optimizer_steps", 0)

    def tensors(self) -> dict[str, Tensor]:
        """Every live tensor that the next step depends on, by name, as it lies on this rank."""
        out = {name: p.detach() for name, p in self.packed.named_parameters()}
        return out if self.optimizer is None else out | optimizer_tensors(self.optimizer)

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Restore the exported weights and the rest, exactly."""
        weights = read_weights(folder)
        if self.head is None:
            # a tied head is the embedding, which was loaded under its own name
            missing, unexpected = load_full(self.causal_lm, weights, strict=False)
            tied = ["lm_head.weight"] if self.hf_config.tie_word_embeddings else []
            if unexpected or set(missing) - set(tied):
                raise KeyError(f"{folder.name}: weights of another model ({[*missing, *unexpected][:3]})")
        else:
            for prefix, module in (("model.", self.trunk), ("score.", self.head)):
                own = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
                if module is self.head and self.head.bias is None:
                    own.pop("bias", None)
                load_full(module, own)
        if self.optimizer is not None:
            load_optimizer(self.optimizer, state["optimizer"])
            self.load_plain_state(state)
