"""Everything that can be checked before compute is spent: data, golds, prompts, splits, tokenizer, architecture,
folder.

`assay check` stops here; `assay train` goes on with what was prepared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from data import (
    Example,
    by_prompt_tokens,
    check_disjoint,
    check_golds,
    encode,
    encode_demonstration,
    is_in_part,
    load_examples,
    make_pairs,
    part,
)
from rollout.engine import ENGINES
from rollout.models import load_config, load_tokenizer
from rollout.packing import TokenIds
from rollout.world import launched_size
from trainer.combinations import warnings
from trainer.compose import engine_options
from trainer.config import Config, DataPart, HardwareConfig, VerifierConfig
from trainer.derived import derive
from trainer.memory import BYTES, ModelFacts, declared_sources, model_facts, planned_models, shards_of
from trainer.objective import needs_reference
from trainer.records import check_writable
from verifiers.errors import ConfigError, DataError
from verifiers.runner import Runner


@dataclass(slots=True)
class Prepared:
    """Checked data, ready to train on. prompt_ids: token ids by example id, for all of train and eval. paraphrases: the
    other view of each training example, by its id, with data.views=both."""

    config: Config
    tokenizer: PreTrainedTokenizerBase
    model_config: PretrainedConfig
    facts: ModelFacts
    runner: Runner
    train: list[Example]
    evals: dict[str, list[Example]]
    demonstrations: list[TokenIds]
    prompt_ids: dict[str, list[int]]
    lines: list[str] = field(default_factory=list)
    paraphrases: dict[str, Example] = field(default_factory=dict)

    def views(self, example: Example) -> list[Example]:
        """The prompts that a training example makes."""
        return [example, self.paraphrases[example.id]] if self.paraphrases else [example]

    @property
    def run_path(self) -> Path:
        return Path(self.config.run.dir) / self.config.name


@dataclass(frozen=True, slots=True)
class PreflightReport:
    """derived: the table of derived numbers. lines: what was checked, for a person."""

    derived: dict[str, int | float | str]
    lines: list[str]


def check(config: Config, gpus: int | None = None, calibrate: bool = False) -> PreflightReport:
    """All checks, nothing trained, nothing written. Raises the `AssayError` that training would raise.

    gpus: the memory of one of so many ranks; `ConfigError` if the profile is for a CPU, or the recipe cannot be spread
    over them. calibrate: measure the model on this machine for some seconds, and say what a run would take.
    """
    if gpus is not None:
        check_gpus(config.hardware, gpus)
        _check_share(config, gpus)
    prepared = prepare(config)
    try:
        if calibrate:
            from trainer.calibrate import calibration_lines

            prepared.lines.extend(calibration_lines(prepared))
    finally:
        prepared.runner.close()
    return PreflightReport(derived_numbers(prepared, gpus or launched_size()), prepared.lines)


def check_gpus(hardware: HardwareConfig, gpus: int) -> None:
    """Raises `ConfigError` unless the profile is for ranks with a GPU each, which its copies of a model divide."""
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus} is no number of GPUs.", where="--gpus", fix="at least 1")
    if hardware.device != "cuda":
        raise ConfigError(f"--gpus is for ranks with a GPU each, and hardware.device={hardware.device}.",
                          where="--gpus", fix="choose a profile with GPUs: hardware=gpu1 or hardware=gpu8")  # fmt: skip
    shards_of(hardware, gpus)


def _check_share(config: Config, gpus: int) -> None:
    trajectories = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    in_update = trajectories // config.train.minibatches_per_step
    if in_update < gpus:
        raise ConfigError(f"An optimizer step has {in_update} trajectories, so some of {gpus} GPUs would have none.",
                          where="rollout.prompts_per_step", why="they would be paid for and compute nothing",
                          fix=f"at most --gpus {in_update}, or more prompts or samples a step")  # fmt: skip


def prepare(config: Config) -> Prepared:
    """Load and check everything but the weights."""
    run_path = Path(config.run.dir) / config.name
    check_writable(run_path, min_free_mb=64)
    tokenizer = load_tokenizer(config.model)
    model_config = load_config(config.model, tokenizer)
    _check_architecture(config, model_config)
    facts = model_facts(model_config, config.model.lora)
    check_writable(run_path, min_free_mb=disk_need_mb(config, facts))
    for key, _, source, options in declared_sources(config):
        source.check(options, key)
    runner = make_runner(config.verifier)
    try:
        return _prepare_data(config, tokenizer, model_config, facts, runner)
    except BaseException:
        runner.close()
        raise


def make_runner(verifier: VerifierConfig) -> Runner:
    """The recipe's verifier in its worker processes; close it."""
    return Runner(
        verifier.kind,
        verifier.options,
        timeout_s=verifier.timeout_s,
        memory_mb=verifier.memory_mb,
        workers=verifier.workers,
    )


def _prepare_data(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    model_config: PretrainedConfig,
    facts: ModelFacts,
    runner: Runner,
) -> Prepared:
    lines = [f"warning: {line}" for line in warnings(config)]
    ids: dict[str, list[int]] = {}

    def side(source: DataPart, key: str) -> list[Example]:
        examples = load_part(source, key)
        encoded = [encode(e, config.template, tokenizer) for e in examples]
        kept, too_long = by_prompt_tokens(examples, encoded, config.data.max_prompt_tokens, config.data.on_too_long)
        kept, bad, unchecked = check_golds(kept, runner.verify, runner.gold_response, config.data.on_bad_gold)
        keep = {e.id for e in kept}
        ids.update({e.id: p for e, p in zip(examples, encoded, strict=True) if e.id in keep})
        skipped = f", {len(too_long)} too long" * bool(too_long) + f", {len(bad)} with a bad gold" * bool(bad)
        golds = f"{len(unchecked)} golds have no reference, so not checked" if unchecked else "every gold verified"
        lines.append(f"{key}: {len(kept)} examples, {golds}{skipped and '; left out' + skipped[1:]}")
        lines.extend(f"  left out {name}: {verdict.status} ({verdict.evidence})" for name, verdict in bad[:10])
        return kept

    train = side(config.data.train, "data.train")
    paraphrases: dict[str, Example] = {}
    if config.data.views == "both":
        train, paraphrases, other_ids = _pair(config, tokenizer, train, lines)
        ids.update(other_ids)
    evals = {e.name: side(e.source, f"data.eval[{e.name}]") for e in config.data.eval}
    check_disjoint([*train, *paraphrases.values()], evals)
    if evals:
        lines.append("train and evaluation sets share no prompt")
    demonstrations: list[TokenIds] = []
    if config.warm_start is not None:
        shown = load_part(config.warm_start.source, "warm_start.source")
        check_disjoint(shown, evals)
        demonstrations = [TokenIds(*encode_demonstration(e, config.template, tokenizer)) for e in shown]
        _check_demonstrations(config, shown, demonstrations)
    if config.questions_per_batch > len(train):
        raise ConfigError(
            f"A batch of {config.questions_per_batch} questions (rollout.prompts_per_step, times "
            f"rollout.keep.oversample) exceeds the {len(train)} training examples.",
            where="rollout.prompts_per_step",
            fix=f"at most {len(train)}, or more data",
        )
    return Prepared(
        config, tokenizer, model_config, facts, runner, train, evals, demonstrations, ids, lines, paraphrases
    )


def _pair(
    config: Config, tokenizer: PreTrainedTokenizerBase, train: list[Example], lines: list[str]
) -> tuple[list[Example], dict[str, Example], dict[str, list[int]]]:
    """(training examples with a paraphrase that fits, these by the id of the example, their token ids by their own)."""
    source = config.data.train
    pairs = make_pairs(train, lambda other: is_in_part(other, source.part, source.eval_percent))
    encoded = [encode(e, config.template, tokenizer) for e in pairs.paraphrases]
    kept, too_long = by_prompt_tokens(
        pairs.paraphrases, encoded, config.data.max_prompt_tokens, config.data.on_too_long
    )
    ids = {e.id: tokens for e, tokens in zip(pairs.paraphrases, encoded, strict=True)}
    fits = {e.id for e in kept}
    of_id = {o.id: p for o, p in zip(pairs.originals, pairs.paraphrases, strict=True) if p.id in fits}
    left_out = {"without a paraphrase": pairs.without_paraphrase, "with one on the other side of the split":
                pairs.on_the_other_side, "with one that is too long": too_long}  # fmt: skip
    shown = "".join(f", {len(names)} {why}" for why, names in left_out.items() if names)
    lines.append(f"data.views=both: {len(of_id)} pairs{shown and '; left out' + shown[1:]}")
    return [o for o in pairs.originals if o.id in of_id], of_id, {name: ids[name] for name in fits}


def load_part(source: DataPart, key: str) -> list[Example]:
    """The examples that a recipe asks for at `key`. Raises `DataError`."""
    examples = part(load_examples(source.kind, source.options, key=key), source.part, source.eval_percent)
    examples = examples[: source.max_examples]
    if not examples:
        raise DataError(f"The part '{source.part}' (eval_percent={source.eval_percent}) is empty.", where=key,
                        fix="use a larger source, another eval_percent, or part=all")  # fmt: skip
    return examples


def _check_architecture(config: Config, model_config: PretrainedConfig) -> None:
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    limit = getattr(model_config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"data.max_prompt_tokens + rollout.max_response_tokens = {longest} exceeds the model's {limit} positions.",
            where="rollout.max_response_tokens",
            fix=f"lower one of them by {longest - limit}",
        )
    engine: Any = ENGINES.get(config.rollout.engine, key="rollout.engine")
    if hasattr(engine, "check"):
        engine.check(model_config, engine_options(config))


def _check_demonstrations(config: Config, examples: Sequence[Example], demonstrations: Sequence[TokenIds]) -> None:
    for example, shown in zip(examples, demonstrations, strict=True):
        if len(shown.response_ids) > config.rollout.max_response_tokens:
            raise DataError(
                f"The demonstration has {len(shown.response_ids)} tokens, rollouts may have "
                f"{config.rollout.max_response_tokens}.",
                where=f"warm_start.source, example '{example.id}'",
                why="the model would learn to write responses that are always cut off",
                fix="raise rollout.max_response_tokens or use shorter demonstrations",
            )


def disk_need_mb(config: Config, facts: ModelFacts) -> int:
    """What the checkpoints of a run take at most, for those that are kept, the best one and the one being written:
    whole weights of the policy with two AdamW moments of what is trained, the same of a critic and of the sources'
    models (frozen ones: weights only), the reference, and the weights that stale rollouts come from; 64 MB for the
    records."""
    bytes_per_value = BYTES[config.model.master_dtype]
    kept = config.checkpoint.keep_last + 1 + (config.checkpoint.best_by is not None)
    lora = config.model.lora is not None
    values = facts.parameters + (3 * facts.adapter_parameters if lora else 2 * facts.parameters)
    values += facts.parameters * bool(config.train.max_stale_steps or config.train.overlap)
    values += 3 * facts.parameters * (config.critic is not None and config.critic.trunk == "own")
    values += facts.parameters * (needs_reference(config.objective.kl) and not lora)
    values += sum(facts.parameters * (3 if how == "trained" else 1) for how in planned_models(config).values())
    return 64 + kept * values * bytes_per_value // 2**20


def derived_numbers(prepared: Prepared, ranks: int = 1) -> dict[str, int | float | str]:
    """The derived table of this run, with the model's real size, for one of `ranks` processes."""
    return derive(prepared.config, num_train=len(prepared.train), facts=prepared.facts, ranks=ranks)
