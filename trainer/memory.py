"""What one process of a run holds in memory, by term, before anything is allocated.

Some of it is always there (`Memory.resident`), some only in a phase (`Memory.phases`): rollouts, handing the weights
over, the two moments of each model's update that may be the fullest. The peak is the process itself, the resident
terms and the fullest phase.

Counted from the code: weights, gradients, optimizer, engine, cache, logits, and the values that autograd keeps for each
layer (tests/trainer/test_memory.py counts them with saved-tensor hooks). Fitted on a CPU: `PROCESS_MB`, `CPU_RESIDUE`
(benchmarks/results/memory.md). The terms for GPUs follow the same code and were not measured (docs/scale.md).

Shapes: T tokens of a micro-batch; E hidden size; F feed-forward size; A query width, K key-value width (heads * head
size); H query heads; V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from prm.signal import SOURCES, Source
from rollout.options import LoraOptions, ModelConfig
from rollout.sharding import transformer_layers
from trainer.config import Config, HardwareConfig
from trainer.fit_config import FitConfig
from trainer.objective import needs_reference
from verifiers.errors import ConfigError
from verifiers.options import parse_options

BYTES = {"float32": 4, "bfloat16": 2}
MB = 2**20
PROCESS_MB = {"cpu": 410.0, "cuda": 600.0}  # measured on a CPU; on a GPU what its context usually takes, not measured
# What one of rollouts and updates frees stays partly with the C library's allocator while the other allocates anew:
# this share of the smaller of the two, fitted to runs on a CPU with glibc (docs/scale.md).
CPU_RESIDUE = 0.55
_QKV, _GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")

# float32: weights and arithmetic. autocast: float32 weights, products in bfloat16. half: bfloat16 weights
Precision = Literal["float32", "autocast", "half"]
Terms = dict[str, float]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of an architecture. adapter_parameters: of the recipe's LoRA, 0 without; adapted_parameters: of the
    matrices it adapts. layer_parameters: of one transformer layer."""

    parameters: int
    layer_parameters: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tied: bool
    adapter_parameters: int = 0
    adapted_parameters: int = 0

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def head_parameters(self) -> int:
        """Of the vocabulary's matrix, once."""
        return self.vocab_size * self.hidden_size

    @property
    def root_parameters(self) -> int:
        """What belongs to no layer: embeddings, head, last norm."""
        return self.parameters - self.num_layers * self.layer_parameters


@dataclass(frozen=True, slots=True)
class Memory:
    """In MB (2**20 bytes), of one process (rank). process: Python, torch and, on a GPU, its context. resident: always
    there. phases: beside it, one of them at a time. slack: of the allocator. host: on a GPU, what lies in the memory of
    its machine."""

    process: float
    resident: Terms
    phases: dict[str, Terms]
    slack: float = 0.0
    host: Terms = field(default_factory=dict)

    @property
    def fullest(self) -> str:
        """The phase of the peak."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    def peak_terms(self) -> Terms:
        """Their sum is `total`."""
        terms = {"process": self.process, **self.resident, **self.phases[self.fullest]}
        return {**terms, "allocator_slack": self.slack} if self.slack else terms

    @property
    def total(self) -> float:
        return sum(self.peak_terms().values())


def model_facts(config: PretrainedConfig, lora: LoraOptions | None = None) -> ModelFacts:
    """Counted on the architecture itself, without allocating it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    adapted = [
        module
        for name, module in model.named_modules()
        if lora is not None
        and isinstance(module, nn.Linear)
        and any(name == target or name.endswith(f".{target}") for target in lora.target_modules)
    ]
    layers = transformer_layers(model)
    return ModelFacts(
        parameters=sum(p.numel() for p in model.parameters()),
        layer_parameters=sum(p.numel() for p in layers[0].parameters()) if layers else 0,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", 4 * config.hidden_size),
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        tied=bool(config.tie_word_embeddings),
        adapter_parameters=sum((m.in_features + m.out_features) * lora.rank for m in adapted) if lora else 0,
        adapted_parameters=sum(m.weight.numel() for m in adapted),
    )


def declared_sources(config: Config) -> Iterator[tuple[str, str, type[Source], Any]]:
    """(key in the recipe, kind, class, checked options) of each source."""
    for i, part in enumerate(config.sources):
        source = SOURCES.get(part.kind, key=f"sources.{i}.kind")
        yield f"sources.{i}", part.kind, source, parse_options(source.Options, part.options, f"sources.{i}")


def planned_models(config: Config) -> dict[str, Literal["trained", "frozen"]]:
    """The models of all sources, by ``SOURCE/NAME``, as the sources declare them."""
    out: dict[str, Literal["trained", "frozen"]] = {}
    for _, kind, source, options in declared_sources(config):
        out |= {f"{kind}/{name}": how for name, how in source.planned_models(options).items()}
    return out


def layer_bytes_a_token(facts: ModelFacts, precision: Precision, flash: bool, lora: LoraOptions | None) -> float:
    """What autograd keeps of one layer for a token: the input, its normalised form and the product's input of both
    norms; queries, keys, values and output of the attention, with SDPA once more as one tensor and with the keys and
    values repeated for every query head; four of the feed-forward's width. A frozen matrix needs no input."""
    e, f, a, k = facts.hidden_size, facts.intermediate_size, facts.query_width, facts.kv_width
    targets = set(lora.target_modules) if lora is not None else {*_QKV, *_GATE_UP, "o_proj", "down_proj"}
    qkv, gate_up = len(targets & set(_QKV)), len(targets & set(_GATE_UP))
    attention = (2 * a + 2 * k if flash else 4 * a) + a * ("o_proj" in targets and not flash)
    wide = 3 * f + f * ("down_proj" in targets)
    normalised = 0 if lora is not None else 2
    statistics = 4 * (2 + facts.num_heads)  # float32: one number a norm, one a head
    adapters = len(targets) * lora.rank if lora is not None else 0
    if precision == "float32":
        inputs = bool(qkv) + bool(gate_up)
        return 4 * ((2 + normalised + inputs) * e + attention + wide + adapters) + statistics
    # autocast and LoRA cast the input of every product anew
    inputs = bool(qkv) + bool(gate_up) if precision == "half" and lora is None else qkv + gate_up
    half = (inputs + (normalised if precision == "half" else 0)) * e + attention + wide + adapters
    single = (2 + (normalised if precision == "autocast" else 0)) * e
    return 4 * single + 2 * half + statistics


@dataclass(frozen=True, slots=True)
class Passes:
    """The forward and backward passes of one rank over its share of an optimizer step, in micro-batches of `tokens`.

    head_tokens: tokens of a micro-batch that go through the vocabulary's head, at most `chunk_tokens` at a time; None
    for a model whose head is one number.
    """

    facts: ModelFacts
    model: ModelConfig
    tokens: int
    microbatches: int
    head_tokens: int | None
    chunk_tokens: int
    shards: int
    flash: bool
    reshard_after_forward: bool

    @property
    def compute(self) -> int:
        return BYTES[self.model.compute_dtype]

    @property
    def master(self) -> int:
        return BYTES[self.model.master_dtype]

    def moments(self, name: str, lora: LoraOptions | None) -> dict[str, Terms]:
        """The moments that may be the fullest: the logits of a chunk, when all activations are there; their gradient;
        the layers' backward pass, at its start if gradients wait from another micro-batch, else at its end, when the
        activations are gone and the gradients are there."""
        facts = self.facts
        trained = self.parameters if lora is None else facts.adapter_parameters
        precision = self.precision(lora)
        layer = layer_bytes_a_token(facts, precision, self.flash, lora) * self.tokens
        residual = (2 if precision == "half" else 4) * facts.hidden_size * self.tokens
        ends = 4 * (3 * facts.hidden_size + 2 * facts.head_dim) * self.tokens  # last norm, its rows, rotary tables
        checkpointed = self.model.gradient_checkpointing
        kept = (residual if checkpointed else layer) * facts.num_layers + ends
        gradients = trained * (4 if self.shards > 1 else self.master) / self.shards
        casts = precision == "autocast" and not checkpointed
        copy = self.parameters * self.compute if casts else 0
        wide = 3 * facts.intermediate_size * self.tokens * self.compute  # gradients inside a feed-forward
        trains_head = lora is None and self.head_tokens is not None
        head = facts.head_parameters * (self.master if self.shards == 1 else self.compute) if trains_head else 0
        pending = head if facts.tied else 0  # waits for the embedding's gradient
        always: Terms = {"gathered_weights": self.gathered(lora)} if self.shards > 1 else {}
        with_all: Terms = {**always, "gradients": gradients if self.microbatches > 1 else 0, "activations": kept,
                           "compute_copy": copy}  # fmt: skip
        rest = layer if checkpointed else 0
        in_layers = {
            f"update of {name}, layers": {**with_all, "activations": kept + rest + wide, "gradient_buffers": pending},
            f"update of {name}, gradients": {**always, "gradients": gradients, "activations": ends + rest,
                                             "gradient_buffers": 2 * pending},
        }  # fmt: skip
        if self.head_tokens is None:
            return in_layers
        forward, backward = self.logits(precision, self.head_tokens)
        return {
            f"update of {name}, logits": {**with_all, "logits": forward},
            f"update of {name}, gradient of logits": {**with_all, "logits": backward, "gradient_buffers": 2 * head},
            **in_layers,
        }

    @property
    def parameters(self) -> int:
        """Without a vocabulary's head that a head of one number replaces."""
        return self.facts.parameters - self._replaced

    @property
    def _replaced(self) -> int:
        return self.facts.head_parameters if self.head_tokens is None and not self.facts.tied else 0

    def precision(self, lora: LoraOptions | None) -> Precision:
        if self.compute == 4:
            return "float32"
        return "half" if lora is not None or self.master == 2 or self.shards > 1 else "autocast"

    def logits(self, precision: Precision, head_tokens: int) -> tuple[float, float]:
        """Forward: the logits of a chunk of response tokens and as much again, in float32. Backward: their gradient,
        and that of the chunk before. In bfloat16 they are rounded as well, and under autocast the head's weight is."""
        chunk = min(self.chunk_tokens, head_tokens)
        rounded = chunk * self.facts.vocab_size * 2 if precision != "float32" else 0
        rounded += self.facts.head_parameters * 2 if precision == "autocast" else 0
        wide = self.facts.vocab_size * 4
        return 2 * chunk * wide + rounded, min(2 * chunk, head_tokens) * wide + rounded

    def gathered(self, lora: LoraOptions | None) -> float:
        """FSDP: whole weights of two layers (the next comes while one runs) and of what belongs to no layer, in the
        compute dtype; whole float32 gradients of one layer and of that rest, before they are spread."""
        facts = self.facts
        layers = 2 if self.reshard_after_forward else facts.num_layers
        root = facts.root_parameters - self._replaced
        weights = (root + layers * facts.layer_parameters) * self.compute
        return weights + (0 if lora is not None else (root + facts.layer_parameters) * 4)


def estimate(config: Config, facts: ModelFacts, ranks: int = 1, device: str | None = None) -> Memory:
    """Of one of `ranks` processes. device: ``cpu`` or ``cuda``, default: the recipe's (``auto``: what is here).
    Raises `ConfigError` for ranks that the recipe cannot be spread over."""
    return _Estimate(config, facts, ranks, device or device_of(config)).memory()


def estimate_fit(
    config: FitConfig, facts: ModelFacts, head: Literal["scalar", "lm"], step_tokens: int, longest: int, ranks: int = 1
) -> Memory:
    """Of one of `ranks` processes that train a reward model. step_tokens: of an optimizer step, on all ranks; longest:
    sequence, in tokens. What a model that writes its score needs for writing, in evaluations, is not counted. Raises
    `ConfigError` for ranks that the recipe cannot be spread over."""
    shards, device = shards_of(config.hardware, ranks), device_of(config)
    share = math.ceil(step_tokens / ranks)
    tokens = min(max(config.train.max_tokens_per_microbatch, longest), max(share, longest))
    passes = make_passes(config, facts, share, tokens, tokens if head == "lm" else None, shards, device)
    weights = passes.parameters * passes.master / shards
    resident: Terms = {"weights": weights, "optimizer": 2 * weights}
    host: Terms = {}
    if device == "cuda" and config.hardware.distributed.offload and ranks > 1:
        resident, host = {}, {**resident, "gradients": 4 * passes.parameters / shards}
    phases = {name: in_mb(terms) for name, terms in passes.moments("the reward model", None).items()}
    return Memory(PROCESS_MB[device], in_mb(resident), phases, host=in_mb(host))


def in_mb(terms: Mapping[str, float]) -> Terms:
    """Of bytes; what is 0 is left out."""
    return {name: value / MB for name, value in terms.items() if value}


def device_of(config: Config | FitConfig) -> Literal["cpu", "cuda"]:
    kind = config.hardware.device
    return "cuda" if kind == "cuda" or (kind == "auto" and torch.cuda.is_available()) else "cpu"


def make_passes(
    config: Config | FitConfig, facts: ModelFacts, rank_tokens: int, tokens: int, head_tokens: int | None, shards: int,
    device: str,
) -> Passes:  # fmt: skip
    """rank_tokens: of one rank in an optimizer step; the others as in `Passes`."""
    half = BYTES[config.model.compute_dtype] == 2
    flash = {"flash": True, "sdpa": False, "auto": device == "cuda" and half}
    return Passes(
        facts, config.model, tokens, math.ceil(rank_tokens / tokens), head_tokens, config.train.logprob_chunk_tokens,
        shards, flash[config.hardware.attention], config.hardware.distributed.reshard_after_forward,
    )  # fmt: skip


def shards_of(hardware: HardwareConfig, ranks: int) -> int:
    """How many of so many processes share one copy of a model. Raises `ConfigError` where copies do not divide them."""
    replicas = hardware.distributed.replicas
    if ranks == 1:
        return 1
    if ranks % replicas:
        raise ConfigError(f"{replicas} copies of the model cannot share {ranks} ranks.",
                          where="hardware.distributed.replicas", fix=f"choose a divisor of {ranks}")  # fmt: skip
    return ranks // replicas


class _Estimate:
    """The formulae, with what they share."""

    def __init__(self, config: Config, facts: ModelFacts, ranks: int, device: str):
        self.config, self.facts, self.ranks, self.device = config, facts, ranks, device
        model, rollout, train = config.model, config.rollout, config.train
        self.shards = shards_of(config.hardware, ranks)
        self.compute, self.master = BYTES[model.compute_dtype], BYTES[model.master_dtype]
        self.engine = BYTES[rollout.dtype]
        self.trained = facts.parameters if model.lora is None else facts.adapter_parameters
        self.offload = config.hardware.distributed.offload and ranks > 1
        longest = config.data.max_prompt_tokens + rollout.max_response_tokens
        sequences = math.ceil(rollout.prompts_per_step * rollout.samples_per_prompt
                              / train.minibatches_per_step / ranks)  # fmt: skip
        tokens = min(max(train.max_tokens_per_microbatch, longest), sequences * longest)
        response = math.ceil(tokens * rollout.max_response_tokens / longest)
        self.passes = make_passes(config, facts, sequences * longest, tokens, response, self.shards, device)

    # ---- everything together -------------------------------------------------------------

    def memory(self) -> Memory:
        config = self.config
        resident, host = self.models(), dict[str, float]()
        stale = self.facts.parameters * self.master * bool(config.train.max_stale_steps or config.train.overlap)
        phases = {"rollout": self.rollout(), "weights to the engine": self.sync(),
                  **self.passes.moments("policy", config.model.lora)}  # fmt: skip
        names = ["critic"] if config.critic is not None and config.critic.trunk == "own" else []
        names += [name for name, how in planned_models(config).items() if how == "trained"]
        for name in names:
            phases |= self.passes.moments(name, None)
        if config.train.overlap:  # the engine, in a process of its own, samples all the while
            resident |= phases.pop("rollout")
        if self.device == "cpu":
            resident["stale_weights"] = stale
        else:
            # rank 0 loads the whole model on its host before it is spread
            host = {"loading": self.facts.parameters * self.master, "stale_weights": stale}
            if self.offload:
                host |= {name: resident.pop(name) for name in list(resident)}
                host["gradients"] = 4 * self.trained / self.shards
        phases_mb = {name: in_mb(terms) for name, terms in phases.items()}
        updates = [sum(terms.values()) for name, terms in phases_mb.items() if name.startswith("update")]
        others = [sum(terms.values()) for name, terms in phases_mb.items() if not name.startswith("update")]
        slack = CPU_RESIDUE * min(max(updates), max(others)) if self.device == "cpu" else 0.0
        return Memory(PROCESS_MB[self.device], in_mb(resident), phases_mb, slack, in_mb(host))

    # ---- always there ------------------------------------------------------------------------

    def models(self) -> Terms:
        config, p = self.config, self.facts.parameters
        lora = config.model.lora is not None
        terms: Terms = {
            "weights": self.trained * self.master + (p * self.compute if lora else 0),
            "optimizer": 2 * self.trained * self.master,
            "reference": p * self.compute if needs_reference(config.objective.kl) and not lora else 0,
        }
        if config.critic is not None and config.critic.trunk == "own":
            terms["critic"] = self.beside("trained")
        for name, how in planned_models(config).items():
            terms[name] = self.beside(how)
        divided = {name: value / self.shards for name, value in terms.items()}
        if "critic" in divided and not self.facts.tied:  # the vocabulary's head lies idle beside the trunk, undivided
            whole = self.facts.head_parameters * self.master
            divided["critic"] = whole + (divided["critic"] - whole / self.shards)
        if config.critic is not None and config.critic.trunk == "shared":
            divided["weights"] += 3 * (self.facts.hidden_size + 1) * self.master / self.shards
        return divided

    def beside(self, how: Literal["trained", "frozen"]) -> float:
        """Weights, and moments, of a model beside the policy, without its gradients: full, in the master dtype."""
        return self.facts.parameters * self.master * (3 if how == "trained" else 1)

    # ---- rollouts ---------------------------------------------------------------------------------

    def engine_weights(self) -> float:
        """Whole on every rank. The head has the last norm's gain in it, so it is not the embedding even where tied."""
        return (self.facts.parameters + self.facts.head_parameters * self.facts.tied) * self.engine

    def rollout(self) -> Terms:
        config, facts = self.config, self.facts
        rollout = config.rollout
        waiting = math.ceil(rollout.prompts_per_batch * rollout.samples_per_prompt / self.ranks)
        rows = min(rollout.max_rows, waiting) if not config.data.eval else rollout.max_rows
        limit = max(rollout.max_response_tokens, config.eval.max_response_tokens or 0)
        columns = limit + 8 + (max(8, limit // 4) if waiting > rows or config.data.eval else 0)
        shared = rollout.samples_per_prompt if not config.data.eval else config.eval.samples_per_prompt
        prompts = math.ceil(rows / shared)
        cached = rows * columns + prompts * config.data.max_prompt_tokens
        prefilled = min(8192, prompts * config.data.max_prompt_tokens)
        return {
            "engine_weights": self.engine_weights(),
            "kv_cache": cached * facts.num_layers * 2 * facts.kv_width * self.engine,
            "decoding": 3 * rows * facts.vocab_size * 4
            + prefilled * (2 * facts.intermediate_size + 4 * facts.hidden_size) * self.engine,
        }

    def sync(self) -> Terms:
        """The policy's weights are gathered, and its adapters merged, one tensor at a time while the engine takes its
        copy, which is made layer by layer; a tied head waits for the last norm."""
        terms: Terms = {} if self.config.train.overlap else {"engine_weights": self.engine_weights()}
        if self.config.model.lora is not None:
            terms["merged_weights"] = self.facts.adapted_parameters / self.facts.num_layers * self.compute
        if self.shards > 1:
            terms["gathered_weights"] = (self.facts.head_parameters + self.facts.layer_parameters) * self.master
        return terms
