"""How long a step and a run take, from some seconds of the recipe's own model on this machine.

Measured: forward and backward of a micro-batch of full-length sequences, the forward alone, and a short decode with as
many rows as the recipe has in flight. Extrapolated to responses of full length, so the times are upper bounds for what
is counted. Models beside the policy are taken to be as fast as it. Not counted: verification, judges, checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch

from rollout.engine import ENGINES, Prompt, SamplingParams
from rollout.models import DTYPES, Policy, load_policy
from rollout.packing import TokenIds
from trainer.config import Config
from trainer.learner import Learner
from trainer.memory import planned_models
from trainer.objective import needs_reference, sequence_weights
from trainer.preflight import Prepared

_MAX_TOKENS = 2048  # of the micro-batch that is timed, if one sequence is not longer
_DECODED_TOKENS = 24
_REPEATS = 2


@dataclass(frozen=True, slots=True)
class Calibration:
    """Tokens a second. rows: samples in flight while decoding."""

    learn: float
    forward: float
    decode: float
    rows: int


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens of a step at most, by what is done with them. evaluation: decoded in all evaluations of the run."""

    decoded: int
    learnt: int
    forward: int
    evaluation: int


def calibrate(prepared: Prepared) -> Calibration:
    """Some seconds of the real model. Loads it; nothing is kept and nothing written."""
    from trainer.session import choose_device

    config = prepared.config
    device = choose_device(config)
    if config.hardware.threads is not None:
        torch.set_num_threads(config.hardware.threads)
    policy = load_policy(config.model, config.seed, device)
    learner = Learner(config, policy, device)
    sequences = _full_length(prepared)
    tokens = sum(len(s.prompt_ids) + len(s.response_ids) for s in sequences)
    length_N = torch.tensor([len(s.response_ids) for s in sequences])
    weight_N = sequence_weights(length_N, torch.ones(len(sequences), dtype=torch.bool), "token", None)

    def learn() -> None:
        learner.accumulate_gradient(sequences, weight_N, lambda mb, logp_R, entropy_R: (-logp_R, {}))
        learner.optimizer.zero_grad(set_to_none=True)

    learn_s = _seconds(learn, device)
    forward_s = _seconds(lambda: learner.logprobs(sequences), device)
    decoded_a_second, rows = _decode(prepared, policy, learner, device)
    return Calibration(tokens / learn_s, tokens / forward_s, decoded_a_second, rows)


def _full_length(prepared: Prepared) -> list[TokenIds]:
    """Prompts of the data with responses of the full length, as many as fit a micro-batch."""
    config = prepared.config
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    count = max(1, min(config.train.max_tokens_per_microbatch, _MAX_TOKENS) // longest)
    generator = torch.Generator().manual_seed(0)
    out = []
    for i in range(count):
        response = torch.randint(prepared.facts.vocab_size, (config.rollout.max_response_tokens,), generator=generator)
        example = prepared.train[i % len(prepared.train)]
        out.append(TokenIds(prepared.prompt_ids[example.id], response.tolist()))
    return out


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of a few, after one that is not counted."""
    taken = []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def _decode(prepared: Prepared, policy: Policy, learner: Learner, device: torch.device) -> tuple[float, int]:
    """(tokens a second, rows)."""
    config = prepared.config
    limit = min(_DECODED_TOKENS, config.rollout.max_response_tokens)
    samples = config.rollout.samples_per_prompt
    rows = min(config.rollout.max_rows, config.rollout.prompts_per_batch * samples)
    engine = ENGINES.get(config.rollout.engine, key="rollout.engine")(
        policy.config,
        policy.tokenizer,
        policy.eos_ids,
        dtype=DTYPES[config.rollout.dtype],
        device=device,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_response_tokens=limit,
        max_rows=rows,
    )
    prompts = [
        Prompt(example.id, group, prepared.prompt_ids[example.id])
        for group, example in enumerate(prepared.train[: max(1, rows // samples)])
    ]
    sampling = SamplingParams(limit, config.rollout.temperature)
    try:
        engine.load_weights(learner.weights(), 0)
        engine.generate(prompts[:1], 1, sampling, config.seed)
        started = time.perf_counter()
        found = engine.generate(prompts, samples, sampling, config.seed)
        seconds = time.perf_counter() - started
    finally:
        engine.close()
    return sum(t.num_response_tokens for t in found) / seconds, rows


# ---- what it means for the run -----------------------------------


def work(config: Config, eval_examples: int = 0) -> Work:
    """What a step asks for, with responses of full length and no refills. eval_examples: of all evaluation sets."""
    rollout, train, evaluation = config.rollout, config.train, config.eval
    trajectories = rollout.prompts_per_step * rollout.samples_per_prompt
    tokens = trajectories * (config.data.max_prompt_tokens + rollout.max_response_tokens)
    mismatch = config.objective.mismatch
    old = train.optimizer_steps_per_batch > 1 or mismatch.normalise != "none" or mismatch.rejection is not None
    learnt, forward = train.epochs_per_batch, int(old) + needs_reference(config.objective.kl)
    if config.critic is not None:
        forward += 1
        learnt += train.epochs_per_batch * (config.critic.trunk == "own")
    for how in planned_models(config).values():
        forward += 1
        learnt += how == "trained"
    rounds = 0 if not eval_examples else 2 + (train.steps - 1) // (evaluation.every_steps or train.steps or 1)
    response = evaluation.max_response_tokens or rollout.max_response_tokens
    return Work(
        decoded=trajectories * rollout.keep.oversample * rollout.max_response_tokens,
        learnt=tokens * learnt,
        forward=tokens * forward,
        evaluation=rounds * eval_examples * evaluation.samples_per_prompt * response,
    )


def calibration_lines(prepared: Prepared) -> list[str]:
    """For a person: what was measured, and what follows for a step and for the run."""
    config, speed = prepared.config, calibrate(prepared)
    step = work(config, sum(map(len, prepared.evals.values())))
    decode_s, learn_s = step.decoded / speed.decode, step.learnt / speed.learn + step.forward / speed.forward
    step_s = max(decode_s, learn_s) if config.train.overlap else decode_s + learn_s
    run_s = config.train.steps * step_s + step.evaluation / speed.decode
    return [
        f"calibration: forward and backward {speed.learn:,.0f} tokens/s, forward {speed.forward:,.0f} tokens/s, "
        f"decoding {speed.decode:,.0f} tokens/s in {speed.rows} rows (one process of this machine)",
        f"a step: at most {step.decoded:,} tokens decoded, {step.learnt:,} forward and backward, {step.forward:,} "
        f"forward: {step_s:,.1f} s ({decode_s:,.1f} s rollouts, {learn_s:,.1f} s learning)",
        f"the run: {config.train.steps} steps and {step.evaluation:,} tokens of evaluation: {_duration(run_s)}, if "
        "every response has full length; without warm start, verification, judges, refills and checkpoints",
    ]


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
