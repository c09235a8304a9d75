"""Numbers that follow from the recipe: batch arithmetic and a memory estimate. Printed before training."""

from __future__ import annotations

import math

from rich.table import Table

from trainer.config import Config
from trainer.objective import describe, needs_reference

Derived = dict[str, int | float | str]

BYTES = {"float32": 4, "bfloat16": 2}
_MB = 2**20
_VALUES_KEPT_PER_LAYER = 17  # activations kept for the backward pass, in units of tokens * hidden_size
_LORA_SPAN = 5  # (input + output width) / hidden_size of the widest adapted layer, the feed-forward of most models


def derive(
    config: Config,
    *,
    num_train: int | None = None,
    num_parameters: int | None = None,
    vocab_size: int | None = None,
    hidden_size: int | None = None,
    num_layers: int | None = None,
    kv_width: int | None = None,
) -> Derived:
    """The derived numbers by name; those that need an unknown fact are left out.

    num_train: training examples after filters. kv_width: key-value heads * head size. ``max_...`` are upper bounds
    (every prompt and response of full length, all refills taken). max_faults_per_step: trajectories of a step that may
    go unjudged before the run stops. Memory: see `memory_mb`; it is given when all facts about the model are known.
    """
    rollout, train = config.rollout, config.train
    trajectories = rollout.prompts_per_step * rollout.samples_per_prompt
    longest = config.data.max_prompt_tokens + rollout.max_response_tokens
    in_update = trajectories // train.minibatches_per_step
    tries = (1 + config.objective.zero_variance.max_refills) * rollout.keep.oversample
    derived: Derived = {
        "objective": describe(config.objective),
        "reference_model": "yes" if needs_reference(config.objective.kl) else "no",
        "trajectories_per_step": trajectories,
        "trajectories_per_optimizer_step": in_update,
        "optimizer_steps": train.steps * train.optimizer_steps_per_batch,
        "prompts_seen": train.steps * rollout.prompts_per_step,
        "max_tokens_per_trajectory": longest,
        "max_tokens_generated_per_step": trajectories * rollout.max_response_tokens * tries,
        "max_microbatches_per_optimizer_step": max_microbatches(in_update, longest, train.max_tokens_per_microbatch),
        "max_faults_per_step": math.floor(config.alarms.max_fault_share * trajectories),
    }
    if config.warm_start is not None:
        derived["warm_start_examples_seen"] = config.warm_start.steps * config.warm_start.examples_per_step
    if num_train is not None:
        derived["train_examples"] = num_train
        derived["epochs"] = round(train.steps * rollout.prompts_per_step / config.num_views / num_train, 2)
    if num_parameters is not None:
        derived["parameters"] = num_parameters
        if vocab_size is not None and hidden_size is not None and num_layers is not None and kv_width is not None:
            terms = memory_mb(config, num_parameters, vocab_size, hidden_size, num_layers, kv_width)
            derived |= {f"memory_{name}_mb": round(value, 1) for name, value in terms.items()}
            derived["memory_total_mb"] = round(sum(terms.values()), 1)
    return derived


def max_microbatches(sequences: int, max_tokens: int, capacity_tokens: int) -> int:
    """Upper bound on the micro-batches that first-fit decreasing makes of sequences of at most `max_tokens` tokens.

    Every micro-batch but the last holds at least k = floor(capacity / max_tokens) sequences, for a sequence only starts
    a new one when each of the others has less than `max_tokens` of room; k is at least 1 (a longer one goes alone).
    """
    return math.ceil(sequences / max(1, capacity_tokens // max_tokens))


def memory_mb(
    config: Config, num_parameters: int, vocab_size: int, hidden_size: int, num_layers: int, kv_width: int
) -> dict[str, float]:
    """An estimate of the memory of one process, by term, in MB (2**20 bytes). Allocator slack and the Python process
    (about 500 MB with torch) come on top. With P parameters, T tokens of a micro-batch, L layers and E hidden size:

    - weights: P in the master dtype, and a copy in the compute dtype if that is another.
    - gradients: trained parameters in the master dtype; optimizer: two such (AdamW).
    - reference: P in the compute dtype, if the objective needs one and there is no LoRA (else the base model serves).
    - critic: P in the master dtype with gradients and optimizer, if there is one (its head is small).
    - stale_weights: P in the master dtype, what the engine samples from, if rollouts may be stale or made ahead.
    - engine_weights: P in the rollout dtype (the engine keeps its own fused copy).
    - kv_cache: max_rows * (max prompt + max response) * L * 2 * kv_width in the rollout dtype; an upper bound, since
      samples share their prompt.
    - activations: 17 * T * E * L values in the compute dtype, after Korthikanti et al., arXiv:2205.05198, eq. 2 without
      the attention matrices; with gradient checkpointing T * E * (L + 17).
    - logits: logits of a chunk of tokens and their gradient in float32, and the logits once in the compute dtype.

    With LoRA the base is held in the compute dtype only, and the adapters are bounded by rank * L * targets * 5 E.
    """
    model, rollout, train = config.model, config.rollout, config.train
    compute, master, engine = BYTES[model.compute_dtype], BYTES[model.master_dtype], BYTES[rollout.dtype]
    if model.lora is None:
        trained, frozen = num_parameters, 0
        compute_copy = num_parameters * compute if compute != master else 0
    else:
        trained = model.lora.rank * num_layers * len(model.lora.target_modules) * _LORA_SPAN * hidden_size
        frozen, compute_copy = num_parameters, 0
    needs_copy = needs_reference(config.objective.kl) and model.lora is None
    longest = config.data.max_prompt_tokens + rollout.max_response_tokens
    tokens = max(train.max_tokens_per_microbatch, longest)
    if model.gradient_checkpointing:
        kept_values = tokens * hidden_size * (num_layers + _VALUES_KEPT_PER_LAYER)
    else:
        kept_values = tokens * hidden_size * num_layers * _VALUES_KEPT_PER_LAYER
    terms = {
        "weights": trained * master + frozen * compute + compute_copy,
        "gradients": trained * master,
        "optimizer": 2 * trained * master,
        "reference": num_parameters * compute if needs_copy else 0,
        "critic": 4 * num_parameters * master if config.critic is not None and config.critic.trunk == "own" else 0,
        "stale_weights": num_parameters * master if train.max_stale_steps or train.overlap else 0,
        "engine_weights": num_parameters * engine,
        "kv_cache": rollout.max_rows * longest * num_layers * 2 * kv_width * engine,
        "activations": kept_values * compute,
        "logits": min(train.logprob_chunk_tokens, tokens) * vocab_size * (2 * 4 + compute),
    }
    return {name: value / _MB for name, value in terms.items()}


def render_table(derived: Derived) -> Table:
    """Two columns, for a person."""
    table = Table(
        title="Derived from the recipe", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column(style="bold")
    table.add_column(justify="left")
    for name, value in derived.items():
        label = name.removesuffix("_mb").replace("_", " ")
        unit = " MB (estimate)" if name.endswith("_mb") else ""
        table.add_row(label, f"{value:,}{unit}" if isinstance(value, int | float) else value)
    return table
