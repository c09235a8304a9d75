"""Engine and learner on the same tokens: before training, and after the first weight updates.

For engines that run code which is not ours (`rollout.engine.ScoringEngine`). An engine that computes another
distribution than it reports, or that goes on with old weights, raises no error by itself: rewards and losses look
plausible and the gradient is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.example import Example
from rollout.engine import Prompt, SamplingParams, ScoringEngine, derive_seed
from rollout.packing import TokenIds
from trainer.config import Config
from trainer.learner import Learner
from verifiers.errors import RunError

PROMPTS, SAMPLES, TOKENS = 8, 2, 32
# mean change of the learner's log-probs, in nats, that an engine in this dtype must show in its own
RESOLUTION = {"float32": 1e-5, "bfloat16": 1e-3}


@dataclass(frozen=True, slots=True)
class Opinion:
    """Log-probs of all probe tokens under the untransformed model."""

    engine_R: Tensor
    learner_R: Tensor

    def gap(self) -> dict[str, float]:
        gap_R = (self.engine_R - self.learner_R).abs()
        return {"engine/probe_gap": float(gap_R.mean()), "engine/probe_gap_max": float(gap_R.max())}


class EngineCheck:
    """Uses the first prompts of the training data. What it finds depends on the weights alone, so that a run that was
    resumed reports what one that was not interrupted would."""

    def __init__(self, config: Config, examples: Sequence[Example], prompt_ids: Mapping[str, list[int]]):
        self.config = config
        ids = [prompt_ids[e.id] for e in examples[:PROMPTS]]
        self.prompts = [Prompt(f"engine-check-{p}", p, tokens) for p, tokens in enumerate(ids)]
        # a prompt cut in two: tokens that both sides have an opinion on and that no weights have chosen
        self.texts = [TokenIds(t[: len(t) // 2], t[len(t) // 2 :][:TOKENS]) for t in ids if len(t) > 1]
        self._before: Opinion | None = None

    def preflight(self, engine: ScoringEngine, learner: Learner) -> dict[str, float]:
        """Metrics of both sides' judgement of the same tokens. Raises `RunError` if they differ too much.

        Twice: responses that the engine samples, against the log-probs that it says it drew them with; and fixed
        tokens under the untransformed model. Top-p is left at 1 there, as the learner knows no nucleus."""
        rollout = self.config.rollout
        sampling = SamplingParams(min(TOKENS, rollout.max_response_tokens), rollout.temperature)
        seed = derive_seed(self.config.seed, "engine check")
        sampled = engine.generate(self.prompts, SAMPLES, sampling, seed)
        reported_R = torch.tensor([logp for t in sampled for logp in t.logp_sampled])
        gap_R = (reported_R - torch.cat(learner.logprobs(sampled))).abs()
        metrics = {"engine/sampled_gap": float(gap_R.mean()), "engine/sampled_gap_max": float(gap_R.max())}
        self._refuse_gap(metrics["engine/sampled_gap"], "on tokens that the engine sampled")
        if self.texts:
            self._before = self._ask(engine, learner)
            metrics |= self._before.gap()
            self._refuse_gap(metrics["engine/probe_gap"], "on given tokens")
        return metrics

    def probe(self, engine: ScoringEngine, learner: Learner, step: int) -> dict[str, float]:
        """Metrics of the proof that the engine has the learner's new weights: the gap on fixed tokens, how far each
        side moved since the last probe, and how alike they moved (correlation over the tokens).

        Raises `RunError` if the gap is too large, or if the engine did not move at all although the learner did."""
        if not self.texts:
            return {}
        now, before = self._ask(engine, learner), self._before
        self._before = now
        metrics = now.gap()
        if before is not None:
            engine_R, learner_R = now.engine_R - before.engine_R, now.learner_R - before.learner_R
            moved = float(learner_R.abs().mean())
            metrics |= {"engine/probe_moved": float(engine_R.abs().mean()), "engine/probe_learner_moved": moved,
                        "engine/probe_follows": correlation(engine_R, learner_R)}  # fmt: skip
            if not engine_R.any() and moved > RESOLUTION[self.config.rollout.dtype]:
                raise RunError(
                    f"The engine did not change when it was given the weights of step {step}.",
                    where="rollout.engine",
                    why=f"the learner's log-probs of fixed tokens moved by {moved:.2e} on average, the engine's by 0: "
                    "it samples from old weights",
                    fix="this is a fault of the weight transfer, not of the recipe",
                )
        self._refuse_gap(metrics["engine/probe_gap"], f"on given tokens, with the weights of step {step}")
        return metrics

    def _ask(self, engine: ScoringEngine, learner: Learner) -> Opinion:
        scored = engine.score(self.texts)
        return Opinion(
            torch.tensor([logp for tokens in scored for logp in tokens]),
            torch.cat(learner.logprobs(self.texts, temperature=1.0)),
        )

    def _refuse_gap(self, gap: float, where: str) -> None:
        limit = self.config.alarms.max_engine_gap
        if gap <= limit:  # a NaN is not
            return
        raise RunError(
            f"Engine and learner disagree: their log-probs differ by {gap:.3g} on average {where}; the limit is "
            f"alarms.max_engine_gap={limit:g}.",
            where=f"rollout.engine={self.config.rollout.engine}",
            why="the rollouts would come from another distribution than the one that is trained",
            fix="give both the same weights and tokenizer; try rollout.dtype=float32 to see what is rounding; raise "
            "the limit knowingly, with objective.mismatch to correct it",
        )


def describe(metrics: Mapping[str, float]) -> str:
    """A preflight in one line."""
    what = {"engine/sampled_gap": "tokens that the engine sampled", "engine/probe_gap": "given tokens"}
    parts = [f"{metrics[name]:.2e} on average, {metrics[name + '_max']:.2e} at most, on {tokens}"
             for name, tokens in what.items() if name in metrics]  # fmt: skip
    return f"engine and learner differ in log-prob by {'; by '.join(parts)}"


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, 0 where one of them does not vary."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else 0.0
