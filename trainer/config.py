"""The recipe as one frozen, typed tree. Unknown keys, wrong types and impossible combinations are errors before
compute.

`Part` marks a place where a recipe names code (``kind: ...``): its other keys belong to that kind and are checked
against the kind's own `Options`. Everything else is spelled out here, with units and nouns in the names.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.template import TemplateOptions
from rollout.options import ModelConfig, OptimConfig, ShardingOptions
from trainer.verl.options import VerlOptions
from verifiers.options import Options


class Part(BaseModel):
    """``kind`` names registered code; the remaining keys are that kind's options."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DataPart(Part):
    """A data source, and which side of its content-hash split to take."""

    part: Literal["all", "train", "eval"] = "all"
    eval_percent: int = Field(default=20, ge=1, le=99)
    max_examples: int | None = Field(default=None, ge=1)


class EvalSet(Options):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    source: DataPart


class DataConfig(Options):
    """views: ``both`` draws every training question with its paraphrase, as two groups of one step that are kept or
    dropped together; questions without one are left out."""

    train: DataPart
    views: Literal["original", "both"] = "original"
    eval: list[EvalSet] = []
    max_prompt_tokens: int = Field(ge=1)
    on_too_long: Literal["stop", "skip"] = "stop"
    on_bad_gold: Literal["stop", "skip"] = "stop"
    difficulty: DifficultyBand | None = None


class RepeatBand(Options):
    """Prompts whose pass rate lies in [low, high) come `times` in an epoch; a `high` above 1 takes in 1 itself."""

    low: float = Field(ge=0, le=1)
    high: float = Field(gt=0)
    times: int = Field(ge=1)


class DifficultyBand(Options):
    """Keep the training prompts whose pass rate, probed once by the starting policy, lies in [low, high]. repeat: those
    that are kept are balanced by repetition; what lies in none of the bands is left out."""

    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    probe_samples: int = Field(ge=1)
    repeat: list[RepeatBand] = []

    @model_validator(mode="after")
    def _is_a_band(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low={self.low} exceeds high={self.high}")
        bands = sorted((band.low, band.high) for band in self.repeat)
        if any(low >= high for low, high in bands) or any(a[1] > b[0] for a, b in pairwise(bands)):
            raise ValueError(f"repeat: the bands [low, high) must not be empty or overlap, these are {bands}")
        return self


class VerifierConfig(Part):
    timeout_s: float | None = Field(default=None, gt=0)
    memory_mb: int | None = Field(default=None, ge=64)
    workers: int = Field(default=2, ge=1)


class SourcePart(Part):
    """weight: factor of this source's outcome in the sum of rewards."""

    weight: float = 1.0


class PassRateBand(Options):
    """Groups whose mean verdict lies in [low, high], or strictly between them, are kept. Compared in float32: 1/5 is
    0.2."""

    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    strict: bool = False

    @model_validator(mode="after")
    def _is_a_band(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low={self.low} exceeds high={self.high}")
        return self


class KeepConfig(Options):
    """Which groups of a batch are trained on, beside objective.zero_variance, and what becomes of the rest. oversample:
    prompts are drawn in batches of so many times prompts_per_step. drop_truncated: a group with a response that hit the
    token limit. put_back_surplus: the prompts of groups that were good and too many come first in the next step, with
    fresh samples."""

    pass_rate: PassRateBand | None = None
    drop_truncated: bool = False
    oversample: int = Field(default=1, ge=1)
    put_back_surplus: bool = False

    @property
    def drops(self) -> bool:
        return self.pass_rate is not None or self.drop_truncated


class RolloutConfig(Options):
    """engine_options: what the engine of this name takes (`VllmEngine.Options`). probe_steps: after the weight updates
    of so many first steps, an engine that is not ours must prove that it has the new weights (`trainer.engine_check`);
    null: after all."""

    engine: str = "torch"
    engine_options: dict[str, Any] = {}
    probe_steps: int | None = Field(default=10, ge=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    prompts_per_step: int = Field(ge=1)
    samples_per_prompt: int = Field(ge=1)
    max_response_tokens: int = Field(ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    stop: list[str] = []
    max_rows: int = Field(default=64, ge=1)
    keep: KeepConfig = KeepConfig()

    @property
    def prompts_per_batch(self) -> int:
        """Drawn and sampled at once, both views of a question counted."""
        return self.prompts_per_step * self.keep.oversample


class KLController(Options):
    """Changes kl.coef after every batch so that the KL stays near `target` (nats a token), by at most 20% *
    trajectories / horizon_trajectories."""

    target: float = Field(gt=0)
    horizon_trajectories: int = Field(ge=1)


class KLConfig(Options):
    """KL of the policy to the frozen starting model, with coefficient `coef` (0: no reference model). place: a term of
    the loss, or a reward on every token. gradient: of the term in the loss, see docs/methods/kl.md."""

    coef: float = Field(default=0.0, ge=0)
    estimator: Literal["k1", "k2", "k3"] = "k3"
    place: Literal["loss", "reward"] = "loss"
    gradient: Literal["estimator", "reverse_kl", "ratio"] = "estimator"
    controller: KLController | None = None

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if self.gradient != "estimator" and self.place == "reward":
            raise ValueError("objective.kl.gradient is for place=loss: a reward has no gradient of its own")
        if self.coef == 0 and (self.place == "reward" or self.gradient != "estimator" or self.controller is not None):
            raise ValueError("objective.kl.place, gradient and controller do nothing with objective.kl.coef=0")
        return self


class RejectionOptions(Options):
    """Which tokens or whole responses are left out because engine and learner disagree about them.

    statistic: of log_ratio = old_logp - sampled_logp. k1 = -log_ratio, kept between ln(lower) and ln(upper), so the
    bounds are ratios sampled / old (lower defaults to 1 / upper); k2 = log_ratio^2 / 2 and k3 = exp(log_ratio) - 1 -
    log_ratio are kept up to upper. level: the token's own value, or its sum, mean or maximum over the response."""

    level: Literal["token", "sequence_sum", "sequence_mean", "sequence_max"]
    statistic: Literal["k1", "k2", "k3"]
    upper: float = Field(gt=0)
    lower: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _bounds_fit_the_statistic(self) -> Self:
        if self.statistic != "k1" and self.lower is not None:
            raise ValueError("lower is for statistic=k1: k2 and k3 are never negative")
        if self.statistic == "k1" and self.level == "sequence_max":
            raise ValueError(
                "level=sequence_max needs statistic k2 or k3: the largest k1 says nothing of the lower bound"
            )
        if self.statistic == "k1" and self.lower is None and self.upper <= 1:
            raise ValueError(f"upper={self.upper} with lower = 1 / upper keeps nothing: set lower, or upper above 1")
        return self


class MismatchConfig(Options):
    """What is done about samples that come from another distribution than the learner's (other kernels, top-p, stale
    weights). The importance weight is w = exp(log-prob of the learner before the update - log-prob as sampled).

    kind: truncated brings w between floor and cap; zeroed sets a weight outside of them to 0; bypass takes the loss's
    ratio against the log-probs as sampled, without a weight. level: of the token, of the whole response (the product),
    or its geometric mean. normalise: weights are divided by their mean over the tokens, or the responses, of the
    optimizer step. rejection: what is left out of the loss and its counts."""

    kind: Literal["none", "truncated", "zeroed", "bypass"] = "none"
    level: Literal["token", "sequence", "geometric"] = "token"
    cap: float = Field(default=2.0, gt=0)
    floor: float = Field(default=0.0, ge=0)
    normalise: Literal["none", "token", "sequence"] = "none"
    rejection: RejectionOptions | None = None

    @model_validator(mode="after")
    def _weights_exist(self) -> Self:
        if self.kind in ("none", "bypass") and (self.floor > 0 or self.normalise != "none"):
            raise ValueError("objective.mismatch.floor and normalise are for kind=truncated and kind=zeroed: "
                             f"kind={self.kind} has no weights")  # fmt: skip
        if self.floor >= self.cap:
            raise ValueError(f"objective.mismatch.floor={self.floor:g} must be below cap={self.cap:g}")
        return self


class OverlongConfig(Options):
    """What the objective does about length. none: nothing beyond the verdict; mask: a response that hit the token limit
    counts in its group's statistics but takes no part in the loss; soft: DAPO's length penalty over the last
    `buffer_tokens` is added to the outcome."""

    kind: Literal["none", "mask", "soft"] = "none"
    buffer_tokens: int | None = Field(default=None, ge=1)
    penalty: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _buffer(self) -> Self:
        if (self.kind == "soft") != (self.buffer_tokens is not None):
            raise ValueError("objective.overlong.buffer_tokens is for kind=soft, and needed there")
        return self


class ZeroVarianceConfig(Options):
    """Groups whose outcomes are all equal teach nothing. drop: leave them out; max_refills: how many more batches of
    prompts may be sampled in a step to replace what was dropped, by this or by rollout.keep."""

    drop: bool = True
    max_refills: int = Field(default=0, ge=0)


class ObjectiveConfig(Options):
    """shaping: changes of the outcome between verdict and advantage, in this order (`trainer/shaping`)."""

    advantage: Part
    loss: Part
    reduce: Literal["token", "sequence", "sequence_sum", "constant"] = "token"
    constant_tokens: int | None = Field(default=None, ge=1)
    shaping: list[Part] = []
    kl: KLConfig = KLConfig()
    mismatch: MismatchConfig = MismatchConfig()
    overlong: OverlongConfig = OverlongConfig()
    zero_variance: ZeroVarianceConfig = ZeroVarianceConfig()

    @model_validator(mode="after")
    def _constant(self) -> Self:
        if (self.reduce == "constant") != (self.constant_tokens is not None):
            raise ValueError("objective.constant_tokens is for reduce=constant, and needed there")
        return self


class CriticConfig(Options):
    """The values of estimators with a critic. trunk: own, a model beside the policy that starts as its copy, with an
    optimizer `optim` of its own; shared, a head on the policy's trunk, whose loss is added to the policy's with
    `loss_coef`. clip: how far a value may move in an update, null: as far as it likes. warmup_steps: rounds at the
    start in which only the critic learns."""

    trunk: Literal["own", "shared"] = "own"
    optim: OptimConfig | None = None
    loss_coef: float = Field(default=0.1, gt=0)
    clip: float | None = Field(default=0.5, gt=0)
    warmup_steps: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_optimizer(self) -> Self:
        if (self.trunk == "own") != (self.optim is not None):
            raise ValueError("critic.optim is for critic.trunk=own, and needed there: a shared trunk has the policy's")
        if self.trunk == "shared" and self.warmup_steps:
            raise ValueError("critic.warmup_steps is for critic.trunk=own: on a shared trunk it would train the policy")
        return self


class WarmStartConfig(Options):
    """Supervised fine-tuning on the solutions of `source` before RL."""

    source: DataPart
    steps: int = Field(ge=1)
    examples_per_step: int = Field(ge=1)
    optim: OptimConfig


class TrainConfig(Options):
    """minibatches_per_step: parts of whole groups that a batch of rollouts is split into, one optimizer step each.
    epochs_per_batch: how often all of them are gone through. max_stale_steps: rollouts may come from weights up to so
    many steps old; the engine gets new ones every max_stale_steps + 1 steps. overlap: the rollouts of a step are made
    while the step before is learnt, from the weights before its update, in a process of their own. shuffle_rewards is a
    control for experiments: outcomes are permuted among the trajectories of a step, so that nothing can be learnt from
    them."""

    steps: int = Field(ge=0)
    minibatches_per_step: int = Field(default=1, ge=1)
    epochs_per_batch: int = Field(default=1, ge=1)
    max_stale_steps: int = Field(default=0, ge=0)
    overlap: bool = False
    max_tokens_per_microbatch: int = Field(ge=1)
    logprob_chunk_tokens: int = Field(default=1024, ge=1)
    shuffle_rewards: bool = False

    @property
    def optimizer_steps_per_batch(self) -> int:
        return self.minibatches_per_step * self.epochs_per_batch


class EvalConfig(Options):
    """scorer: what ranks the samples of a prompt, for the accuracy of the one answer that best-of-n, weighted majority
    and Best-of-Majority choose. mean_logprob: the mean log-prob of the response's tokens under the policy itself.
    bom_alpha: share of the samples that Best-of-Majority asks of an answer; null: two samples."""

    every_steps: int | None = Field(default=None, ge=1)
    samples_per_prompt: int = Field(default=4, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_response_tokens: int | None = Field(default=None, ge=1)
    bootstrap_samples: int = Field(default=1000, ge=100)
    scorer: Literal["mean_logprob"] | None = None
    bom_alpha: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _something_to_choose_from(self) -> Self:
        k = self.samples_per_prompt
        if self.scorer is not None and k < 2:
            raise ValueError("eval.scorer chooses among the samples of a prompt: set eval.samples_per_prompt to at "
                             "least 2")  # fmt: skip
        if self.bom_alpha is not None and self.scorer is None:
            raise ValueError("eval.bom_alpha is for Best-of-Majority, which needs eval.scorer")
        if self.bom_alpha is not None and self.bom_alpha <= 1 / k:
            raise ValueError(f"eval.bom_alpha={self.bom_alpha:g} is not above 1 / eval.samples_per_prompt = {1 / k:g}, "
                             "so no answer is ever too rare: raise one of them")  # fmt: skip
        return self


class CheckpointConfig(Options):
    """every_steps: None saves at the end only (and on SIGTERM). best_by: metric of an evaluation, e.g.
    ``mawps/avg@4``."""

    every_steps: int | None = Field(default=None, ge=1)
    keep_last: int = Field(default=2, ge=1)
    best_by: str | None = None


class AlarmConfig(Options):
    """max_fault_share: share of trajectories of a step that could not be judged above which the run stops.
    max_logprob_gap: mean |engine - learner| log-prob of a step above which the run warns (bf16: 0.05 is usual).
    max_engine_gap: the same in the preflight and the probes of an engine that is not ours, above which the run stops.
    max_label_share: share of a step's questions that a voting source gave the same label, above which the run warns: a
    policy that answers everything alike agrees with itself."""

    max_fault_share: float = Field(default=0.05, ge=0, le=1)
    max_logprob_gap: float = Field(default=0.1, gt=0)
    max_engine_gap: float = Field(default=0.1, gt=0)
    max_label_share: float = Field(default=0.9, gt=0, le=1)


class RecordConfig(Options):
    trajectories: bool = True
    tensorboard: bool = True


class DistributedConfig(ShardingOptions):
    """For a run of several processes (torchrun); nothing here changes what is trained. replicas: whole copies of the
    sharded model, each over ranks / replicas ranks (HSDP). exchange_timeout_s: how long a rank waits for the others at
    an exchange, so longer than the longest generation and verification may differ. silence_timeout_s: a rank that gives
    no sign of life for so long is taken for dead, and the job ends."""

    replicas: int = Field(default=1, ge=1)
    exchange_timeout_s: float = Field(default=1800, gt=0)
    silence_timeout_s: float = Field(default=60, gt=0)


class HardwareConfig(Options):
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    attention: Literal["auto", "sdpa", "flash"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    distributed: DistributedConfig = DistributedConfig()


class RunConfig(Options):
    """resume: auto continues an unfinished run of the same folder, never refuses a folder that is not empty, must fails
    where there is nothing to continue."""

    dir: str = "runs"
    resume: Literal["auto", "never", "must"] = "auto"


class Config(Options):
    """One recipe. name: of the run, and so of its folder. recipe: the file it was composed from (filled in when it is
    loaded). description: the line that `assay recipes` shows. engine: whose training loop runs it, ours or verl's
    (docs/verl.md)."""

    recipe: str = ""
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    description: str
    seed: int = Field(ge=0)
    model: ModelConfig
    data: DataConfig
    template: TemplateOptions
    verifier: VerifierConfig
    sources: list[SourcePart] = Field(min_length=1)
    rollout: RolloutConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    train: TrainConfig
    critic: CriticConfig | None = None
    warm_start: WarmStartConfig | None = None
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    alarms: AlarmConfig = AlarmConfig()
    record: RecordConfig = RecordConfig()
    hardware: HardwareConfig = HardwareConfig()
    run: RunConfig = RunConfig()
    engine: Literal["assay", "verl"] = "assay"
    verl: VerlOptions = VerlOptions()

    @property
    def num_views(self) -> int:
        """Groups that one training question makes."""
        return 2 if self.data.views == "both" else 1

    @property
    def questions_per_batch(self) -> int:
        """Training examples drawn at once."""
        return self.rollout.prompts_per_batch // self.num_views

    @model_validator(mode="after")
    def _possible_combinations(self) -> Self:
        groups = self.rollout.prompts_per_step
        zero_variance, keep = self.objective.zero_variance, self.rollout.keep
        if zero_variance.max_refills and not (zero_variance.drop or keep.drops):
            raise ValueError(f"objective.zero_variance: max_refills={zero_variance.max_refills} replaces dropped "
                             "groups: set drop=true or max_refills=0")  # fmt: skip
        if keep.put_back_surplus and keep.oversample == 1 and not zero_variance.max_refills:
            raise ValueError("rollout.keep.put_back_surplus does nothing where no step samples more groups than it "
                             "trains on: set rollout.keep.oversample or zero_variance.max_refills")  # fmt: skip
        if keep.pass_rate is not None and not any(source.kind == "rule" for source in self.sources):
            raise ValueError("rollout.keep.pass_rate needs verdicts, and no source gives them: add the source rule")
        if self.data.views == "both" and groups % 2:
            raise ValueError(f"rollout.prompts_per_step={groups} counts both views of a question (data.views=both): "
                             "make it even")  # fmt: skip
        if groups % self.train.minibatches_per_step:
            raise ValueError(f"train.minibatches_per_step={self.train.minibatches_per_step} must divide "
                             f"rollout.prompts_per_step={groups}")  # fmt: skip
        if self.train.overlap and self.train.max_stale_steps:
            raise ValueError("train.overlap and train.max_stale_steps both make rollouts old: set one of them")
        if self.train.overlap and self.objective.mismatch.kind == "none":
            raise ValueError("train.overlap trains on samples of the policy before the last update: set "
                             "objective.mismatch.kind=truncated (or zeroed, bypass)")  # fmt: skip
        if self.train.max_stale_steps and self.objective.mismatch.kind == "none":
            raise ValueError(f"train.max_stale_steps={self.train.max_stale_steps} trains on samples of an older "
                             "policy: set objective.mismatch.kind=truncated (or zeroed, bypass) or "
                             "train.max_stale_steps=0")  # fmt: skip
        if self.objective.mismatch.kind == "bypass" and self.objective.loss.kind == "reinforce":
            raise ValueError("objective.mismatch.kind=bypass corrects through the loss's ratio, and reinforce has "
                             "none: set kind=truncated")  # fmt: skip
        if self.rollout.top_p < 1 and self.objective.mismatch.kind == "none":
            raise ValueError("rollout.top_p < 1 samples from another distribution than the policy that is trained: set "
                             "objective.mismatch.kind=truncated or rollout.top_p=1.0")  # fmt: skip
        if self.critic is not None and self.critic.warmup_steps >= self.train.steps > 0:
            raise ValueError(f"critic.warmup_steps={self.critic.warmup_steps} leaves no round of train.steps="
                             f"{self.train.steps} to the policy")  # fmt: skip
        waits = [source.options.get("warmup_steps", 0) for source in self.sources]
        if any(isinstance(steps, int) and steps >= self.train.steps > 0 for steps in waits):
            raise ValueError(f"a source's warmup_steps leave no round of train.steps={self.train.steps} to the policy")
        if self.model.lora is not None and self.warm_start is not None and self.objective.kl.coef > 0:
            raise ValueError("with LoRA the reference of the KL term is the model without its adapter, which pulls "
                             "back to before the warm start: set objective.kl.coef=0, or drop model.lora")  # fmt: skip
        if self.checkpoint.best_by is not None:
            names = [f"{e.name}/" for e in self.data.eval]
            if self.eval.every_steps is None or not any(self.checkpoint.best_by.startswith(n) for n in names):
                raise ValueError(f"checkpoint.best_by={self.checkpoint.best_by!r} needs eval.every_steps and one of "
                                 f"the evaluation sets {names or '(none)'}")  # fmt: skip
        longest = self.data.max_prompt_tokens + self.rollout.max_response_tokens
        if self.model.scratch is not None and longest > self.model.scratch.max_positions:
            raise ValueError(f"data.max_prompt_tokens + rollout.max_response_tokens = {longest} exceeds "
                             f"model.scratch.max_positions={self.model.scratch.max_positions}")  # fmt: skip
        buffer_tokens = self.objective.overlong.buffer_tokens
        if buffer_tokens is not None and buffer_tokens > self.rollout.max_response_tokens:
            raise ValueError(f"objective.overlong.buffer_tokens={buffer_tokens} exceeds "
                             f"rollout.max_response_tokens={self.rollout.max_response_tokens}")  # fmt: skip
        if self.eval.every_steps is not None and not self.data.eval:
            raise ValueError(
                "eval.every_steps is set and data.eval is empty: add an evaluation set or set eval.every_steps=null"
            )
        names_seen = [e.name for e in self.data.eval]
        if len(set(names_seen)) != len(names_seen):
            raise ValueError(f"data.eval has two sets of the same name: {names_seen}")
        return self


DataConfig.model_rebuild()
Config.model_rebuild()
