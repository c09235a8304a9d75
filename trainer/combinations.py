"""Which parts of an objective go together: what cannot work is a `ConfigError`, what is unusual a warning.

Estimators and sources are judged by what they declare (`AdvantageEstimator`, `Source.gives`), yours as ours; the few
kinds named here are those of which one formula alone says so.
"""

from __future__ import annotations

from prm.signal import SOURCES
from trainer.advantages.base import ADVANTAGES, AdvantageEstimator
from trainer.config import Config, Part
from verifiers.errors import ConfigError
from verifiers.options import Options, parse_options

SEQUENCE_LOSSES = ("gspo", "gmpo", "sapo", "stable_reinforce")
NEEDS_VERDICTS = ("cosine", "relative_length")


def check_objective(config: Config) -> None:
    """Raises `ConfigError` for an objective that would train something else than it says, or stop after compute was
    spent."""
    objective = config.objective
    estimator = ADVANTAGES.get(objective.advantage.kind, key="objective.advantage.kind")
    _check_samples(config, estimator)
    _check_needs(config, estimator)
    _check_reduction(config)
    _check_flat_groups(config, estimator)
    _check_shaping(config, estimator)
    _check_sources(config, estimator)
    _check_views(config, estimator)


def warnings(config: Config) -> list[str]:
    """What is allowed and differs from how the method was published, one line each."""
    objective = config.objective
    loss, advantage = objective.loss.kind, objective.advantage.kind
    several = config.train.optimizer_steps_per_batch
    out = []
    if loss in SEQUENCE_LOSSES and objective.reduce not in ("sequence", "sequence_sum"):
        out.append(f"objective.loss.kind={loss} is published with objective.reduce=sequence; this recipe has "
                   f"{objective.reduce}, which is another objective")  # fmt: skip
    if several > 1 and loss == "reinforce":
        out.append(f"objective.loss.kind=reinforce has no ratio: after the first of the {several} optimizer steps on a "
                   "batch its gradient is biased")  # fmt: skip
    if (several > 1 or config.train.max_stale_steps or config.train.overlap) and advantage == "opo":
        out.append("objective.advantage.kind=opo is meant for on-policy training: one optimizer step on a fresh batch")
    kl = config.objective.kl
    if kl.coef > 0 and kl.place == "loss" and kl.estimator == "k1" and kl.gradient == "estimator":
        out.append("objective.kl.estimator=k1 in the loss has an expected gradient of 0 and holds nothing back: "
                   "set objective.kl.gradient=reverse_kl, or place=reward")  # fmt: skip
    estimator = ADVANTAGES.get(advantage, key="objective.advantage.kind")
    for i, gives in enumerate(given_by_sources(config)):
        if "token_label_R" in gives and "token_label_R" not in estimator.needs:
            out.append(f"sources.{i} ({config.sources[i].kind}) labels tokens, and objective.advantage.kind="
                       f"{advantage} does not use labels: choose tp_grpo, or drop the source")  # fmt: skip
    return out + _about_step_rewards(config, estimator)


def given_by_sources(config: Config) -> list[tuple[str, ...]]:
    """`Source.gives` of each source."""
    kinds = [SOURCES.get(part.kind, key=f"sources.{i}.kind") for i, part in enumerate(config.sources)]
    return [getattr(kind, "gives", ()) for kind in kinds]


def _about_step_rewards(config: Config, estimator: AdvantageEstimator) -> list[str]:
    if not estimator.uses_rewards_to_go:
        return []
    advantage = config.objective.advantage.kind
    return [
        f"sources.{i}.refine.kind=delta with objective.advantage.kind={advantage}: rewards to go leave out the -rho "
        "that stands before each step and pay for one more true line; choose kind=clip_delta, or "
        "objective.advantage.kind=total_return"
        for i, source in enumerate(config.sources)
        if (source.options.get("refine") or {}).get("kind") == "delta"
    ]


def _check_samples(config: Config, estimator: AdvantageEstimator) -> None:
    advantage = config.objective.advantage
    if config.rollout.samples_per_prompt < 2 and estimator.compares_samples(_options(config, estimator)):
        raise ConfigError(
            f"objective.advantage.kind={advantage.kind} compares samples of one prompt: "
            "rollout.samples_per_prompt must be at least 2.",
            where="rollout.samples_per_prompt",
            why="a sample alone has nothing to be compared with: nothing would be learnt",
            fix="rollout.samples_per_prompt=2 or more, or an estimator without a group: reinforce_pp, gae",
        )


def _options(config: Config, estimator: AdvantageEstimator) -> Options:
    return parse_options(estimator.options, config.objective.advantage.options, "objective.advantage")


def _check_needs(config: Config, estimator: AdvantageEstimator) -> None:
    kind = config.objective.advantage.kind
    fixes = {
        "value_R": "add a critic (objective=ppo, or critic={optim: {lr: 1e-5}}); rloo and reinforce_pp need none",
        "token_label_R": "add a source that labels tokens: thoughts",
    }
    given = {"stream_RK", "baseline_N", "correct_N"} | ({"value_R"} if config.critic is not None else set())
    given |= {name for gives in given_by_sources(config) for name in gives}
    missing = [need for need in estimator.needs if need not in given]
    if missing:
        raise ConfigError(
            f"objective.advantage.kind={kind} needs {', '.join(missing)}, and nothing in this recipe gives it.",
            where="objective.advantage.kind",
            why="the run would stop at its first update",
            fix=fixes.get(missing[0], "choose another estimator"),
        )
    if config.critic is not None and estimator.returns is None:
        raise ConfigError(
            f"There is a critic, and objective.advantage.kind={kind} does not use its values.",
            where="critic",
            why="it would cost time and memory, and do nothing",
            fix="critic=null, or objective.advantage.kind=gae",
        )
    if kind == "multi_stream" and config.objective.overlong.kind == "soft":
        raise ConfigError("The soft length penalty belongs to no reward stream.", where="objective.overlong.kind",
                          why="multi_stream would leave it out",
                          fix="objective.overlong.kind=none or mask")  # fmt: skip
    kl = config.objective.kl
    streams = len(config.sources) + len(config.objective.shaping) + (kl.coef > 0 and kl.place == "reward")
    gammas = config.objective.advantage.options.get("gammas")
    if kind == "multi_stream" and isinstance(gammas, list) and len(gammas) != streams:
        raise ConfigError(
            f"{len(gammas)} discounts for {streams} reward streams: every source is one, then every shaping, "
            "then a KL in the reward.",
            where="objective.advantage.gammas",
            fix=f"give {streams} numbers, in this order",
        )


def _check_reduction(config: Config) -> None:
    if config.objective.advantage.kind == "oreal" and config.objective.reduce != "token":
        raise ConfigError(
            f"objective.advantage.kind=oreal needs objective.reduce=token, and this recipe has "
            f"{config.objective.reduce}.",
            where="objective.reduce",
            why="its correct and wrong tokens have means of their own, which it makes from the token mean",
            fix="objective.reduce=token",
        )


def _check_flat_groups(config: Config, estimator: AdvantageEstimator) -> None:
    if config.objective.zero_variance.drop and estimator.teaches_from_flat_groups(_options(config, estimator)):
        raise ConfigError(
            "objective.zero_variance.drop=true leaves out groups of equal rewards, and "
            f"{config.objective.advantage.kind} learns from them.",
            where="objective.zero_variance.drop",
            why="its baseline is not the group's: prompts that are always solved, or never, would silently be missing",
            fix="objective.zero_variance.drop=false objective.zero_variance.max_refills=0",
        )


def _check_shaping(config: Config, estimator: AdvantageEstimator) -> None:
    kinds = [SOURCES.get(part.kind, key=f"sources.{i}.kind") for i, part in enumerate(config.sources)]
    has_verdicts = any(getattr(kind, "gives_verdicts", False) for kind in kinds)
    for i, part in enumerate(config.objective.shaping):
        if part.kind in NEEDS_VERDICTS and not has_verdicts:
            raise ConfigError(f"The shaping '{part.kind}' must know which responses are right, and no source says so.",
                              where=f"objective.shaping.{i}.kind", fix="add the source rule")  # fmt: skip
        if _is_dense(part) and not estimator.takes_rewards_by_token:
            raise ConfigError(
                f"The shaping '{part.kind}' with form=dense rewards single tokens, and "
                f"objective.advantage.kind={config.objective.advantage.kind} does not use them.",
                where=f"objective.shaping.{i}.form",
                why="the penalty would do nothing",
                fix="form=sparse, or an estimator with rewards to go: reinforce_pp, multi_stream",
            )


def _check_sources(config: Config, estimator: AdvantageEstimator) -> None:
    for i, (part, gives) in enumerate(zip(config.sources, given_by_sources(config), strict=True)):
        if "token_reward_R" in gives and not estimator.takes_rewards_by_token:
            raise ConfigError(
                f"The source '{part.kind}' rewards single tokens, and objective.advantage.kind="
                f"{config.objective.advantage.kind} does not use them.",
                where=f"sources.{i}.kind",
                why="its model would cost time and memory, and do nothing",
                fix="an estimator of token rewards: prime_rloo, returns_to_go, total_return, gae, reinforce_pp",
            )
        unknown = config.rollout.top_p < 1 and config.rollout.temperature != 1
        if part.kind == "implicit" and part.options.get("reference") == "moving" and unknown:
            raise ConfigError(
                "The engine gives no log-probs of the tempered policy without top-p, which reference=moving needs.",
                where=f"sources.{i}.reference",
                fix="rollout.top_p=1.0, rollout.temperature=1.0, or reference=frozen",
            )


def _check_views(config: Config, estimator: AdvantageEstimator) -> None:
    for i, part in enumerate(config.sources):
        source = SOURCES.get(part.kind, key=f"sources.{i}.kind")
        if getattr(source, "judges", "responses") == "groups" and "baseline_N" in estimator.needs:
            raise ConfigError(
                f"The source '{part.kind}' judges the samples of a prompt together, and objective.advantage.kind="
                f"{config.objective.advantage.kind} needs the reward of one greedy response.",
                where="objective.advantage.kind",
                why="a single response always agrees with itself",
                fix="an estimator that takes the group as its baseline: grpo, rloo",
            )
        needs = getattr(source, "needs_both_views", None)
        options = parse_options(source.Options, part.options, f"sources.{i}")
        if needs is not None and needs(options) and config.data.views != "both":
            raise ConfigError(
                f"The source '{part.kind}' compares a question with its paraphrase, and only one of them is sampled.",
                where=f"sources.{i}",
                fix="data.views=both, with data that has paraphrases (docs/methods/co_reward.md)",
            )
        teacher = part.options.get("teacher") or {}
        if teacher.get("is_kl_reference") and (config.objective.kl.coef == 0 or config.model.lora is not None):
            raise ConfigError(
                "The teacher is to be the reference of the KL term, and there is none that could move.",
                where=f"sources.{i}.teacher.is_kl_reference",
                fix="objective.kl.coef above 0, and no model.lora",
            )


def _is_dense(part: Part) -> bool:
    return part.kind == "repetition" and part.options.get("form", "dense") == "dense"
