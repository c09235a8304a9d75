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
from trainer.combinations import warnings
from trainer.compose import engine_options
from trainer.config import Config, DataPart
from trainer.derived import derive
from trainer.records import check_writable
from verifiers.errors import ConfigError, DataError
from verifiers.runner import Runner


@dataclass(slots=True)
class Demonstration:
    """A prompt and its given solution, in token ids (warm start trains on the solution)."""

    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(slots=True)
class Prepared:
    """Checked data, ready to train on. prompt_ids: token ids by example id, for all of train and eval. paraphrases: the
    other view of each training example, by its id, with data.views=both."""

    config: Config
    tokenizer: PreTrainedTokenizerBase
    model_config: PretrainedConfig
    num_parameters: int
    runner: Runner
    train: list[Example]
    evals: dict[str, list[Example]]
    demonstrations: list[Demonstration]
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


def check(config: Config) -> PreflightReport:
    """All checks, nothing trained, nothing written. Raises the `AssayError` that training would raise."""
    prepared = prepare(config)
    prepared.runner.close()
    return PreflightReport(derived_numbers(prepared), prepared.lines)


def prepare(config: Config) -> Prepared:
    """Load and check everything but the weights."""
    run_path = Path(config.run.dir) / config.name
    check_writable(run_path, min_free_mb=64)
    tokenizer = load_tokenizer(config.model)
    model_config = load_config(config.model, tokenizer)
    num_parameters = count_parameters(model_config)
    check_writable(run_path, min_free_mb=disk_need_mb(config, num_parameters))
    _check_architecture(config, model_config)
    runner = Runner(
        config.verifier.kind,
        config.verifier.options,
        timeout_s=config.verifier.timeout_s,
        memory_mb=config.verifier.memory_mb,
        workers=config.verifier.workers,
    )
    try:
        return _prepare_data(config, tokenizer, model_config, num_parameters, runner)
    except BaseException:
        runner.close()
        raise


def _prepare_data(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    model_config: PretrainedConfig,
    num_parameters: int,
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
    demonstrations: list[Demonstration] = []
    if config.warm_start is not None:
        shown = load_part(config.warm_start.source, "warm_start.source")
        check_disjoint(shown, evals)
        demonstrations = [Demonstration(*encode_demonstration(e, config.template, tokenizer)) for e in shown]
        _check_demonstrations(config, shown, demonstrations)
    if config.questions_per_batch > len(train):
        raise ConfigError(
            f"A batch of {config.questions_per_batch} questions (rollout.prompts_per_step, times "
            f"rollout.keep.oversample) exceeds the {len(train)} training examples.",
            where="rollout.prompts_per_step",
            fix=f"at most {len(train)}, or more data",
        )
    return Prepared(
        config, tokenizer, model_config, num_parameters, runner, train, evals, demonstrations, ids, lines, paraphrases
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


def _check_demonstrations(config: Config, examples: Sequence[Example], demonstrations: Sequence[Demonstration]) -> None:
    for example, shown in zip(examples, demonstrations, strict=True):
        if len(shown.response_ids) > config.rollout.max_response_tokens:
            raise DataError(
                f"The demonstration has {len(shown.response_ids)} tokens, rollouts may have "
                f"{config.rollout.max_response_tokens}.",
                where=f"warm_start.source, example '{example.id}'",
                why="the model would learn to write responses that are always cut off",
                fix="raise rollout.max_response_tokens or use shorter demonstrations",
            )


def count_parameters(model_config: PretrainedConfig) -> int:
    """Parameters of a model of this architecture, without allocating them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(model_config).parameters())


def disk_need_mb(config: Config, parameters: int) -> int:
    """What the checkpoints of a run take at most: weights and two AdamW moments each, for those that are kept, the best
    one and the one being written, the same of a critic, and the weights that stale rollouts come from; 64 MB for the
    records."""
    bytes_per_value = 4 if config.model.master_dtype == "float32" else 2
    kept = config.checkpoint.keep_last + 1 + (config.checkpoint.best_by is not None)
    moments = 0 if config.model.lora is not None else 2
    copies = (
        1
        + moments
        + bool(config.train.max_stale_steps or config.train.overlap)
        + 3 * (config.critic is not None and config.critic.trunk == "own")
    )
    return 64 + kept * parameters * bytes_per_value * copies // 2**20


def derived_numbers(prepared: Prepared) -> dict[str, int | float | str]:
    """The derived table of this run, with the model's real size."""
    c = prepared.model_config
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    facts: dict[str, Any] = {
        "num_train": len(prepared.train),
        "num_parameters": prepared.num_parameters,
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "num_layers": c.num_hidden_layers,
        "kv_width": c.num_key_value_heads * head_dim,
    }
    return derive(prepared.config, **facts)
