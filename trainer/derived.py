"""Numbers that follow from the recipe: batch arithmetic and a memory estimate. Printed before training."""

from __future__ import annotations

import math

from rich.table import Table

from trainer.config import Config
from trainer.memory import Memory, ModelFacts, estimate
from trainer.objective import describe, needs_reference

Derived = dict[str, int | float | str]


def derive(config: Config, *, num_train: int | None = None, facts: ModelFacts | None = None, ranks: int = 1) -> Derived:
    """The derived numbers by name; those that need an unknown fact are left out.

    num_train: training examples after filters. facts: of the model; without them no memory is estimated. ranks: the
    processes that share the run. ``max_...`` are upper bounds (every prompt and response of full length, all refills
    taken). max_faults_per_step: trajectories of a step that may go unjudged before the run stops. Memory is that of one
    rank at its peak (`trainer.memory`); memory_host...: of its machine, where the rank has a GPU.
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
    if ranks > 1:
        derived["ranks"] = ranks
    if config.warm_start is not None:
        derived["warm_start_examples_seen"] = config.warm_start.steps * config.warm_start.examples_per_step
    if num_train is not None:
        derived["train_examples"] = num_train
        derived["epochs"] = round(train.steps * rollout.prompts_per_step / config.num_views / num_train, 2)
    if facts is not None:
        derived["parameters"] = facts.parameters
        if facts.adapter_parameters:
            derived["adapter_parameters"] = facts.adapter_parameters
        derived |= memory_numbers(estimate(config, facts, ranks))
    return derived


def memory_numbers(memory: Memory) -> Derived:
    """The terms of the peak, their sum and when it comes."""
    terms = {f"memory_{name}_mb": round(value, 1) for name, value in memory.peak_terms().items()}
    host = {f"memory_host_{name}_mb": round(value, 1) for name, value in memory.host.items()}
    return {**terms, "memory_total_mb": round(memory.total, 1), "memory_peak_in": memory.fullest, **host}


def max_microbatches(sequences: int, max_tokens: int, capacity_tokens: int) -> int:
    """Upper bound on the micro-batches that first-fit decreasing makes of sequences of at most `max_tokens` tokens.

    Every micro-batch but the last holds at least k = floor(capacity / max_tokens) sequences, for a sequence only starts
    a new one when each of the others has less than `max_tokens` of room; k is at least 1 (a longer one goes alone).
    """
    return math.ceil(sequences / max(1, capacity_tokens // max_tokens))


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
