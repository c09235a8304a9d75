"""A verifier as a TRL reward function: ``GRPOTrainer(reward_funcs=reward_func("math"), ...)``.

Source: TRL 1.16.0, ``GRPOTrainer._calculate_rewards`` and ``_generate_and_score_completions``. TRL takes None for "not
applicable": such a completion is left out of its group's mean and deviation and gets advantage 0. That holds as long as
every reward function says None; where another one gives a reward, TRL adds 0 for ours. So use one of ours alone, or
combine verifiers in one kind, if a fault must never look like a wrong answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from verifiers.errors import ConfigError, DataError
from verifiers.runner import Runner
from verifiers.verdict import VerifyRequest

logger = logging.getLogger(__name__)


def reward_func(
    kind: str,
    options: Mapping[str, Any] | None = None,
    *,
    gold_column: str = "gold",
    meta_columns: Sequence[str] = (),
    name: str | None = None,
    timeout_s: float = 5.0,
    memory_mb: int = 1024,
    workers: int = 2,
) -> VerifierReward:
    """The reward function of verifier `kind`, to be given as an element of `reward_funcs`.

    gold_column: the dataset's column with the gold answers. meta_columns: columns that the verifier finds in
    ``request.meta`` under their names. name: as TRL logs it. The rest is as for `Runner`.
    Raises `ConfigError` at once for an unknown kind or option.
    """
    settings = {"timeout_s": timeout_s, "memory_mb": memory_mb, "workers": workers}
    return VerifierReward(
        kind, dict(options or {}), gold_column, tuple(meta_columns), name or f"{kind}_reward", settings
    )


class VerifierReward:
    """See `reward_func`. Can be pickled; each process starts its own workers when it first judges."""

    def __init__(
        self,
        kind: str,
        options: Mapping[str, Any],
        gold_column: str,
        meta_columns: tuple[str, ...],
        name: str,
        settings: Mapping[str, Any],
    ):
        self.__name__ = name
        self._arguments = (kind, options, gold_column, meta_columns, name, settings)
        self._gold_column, self._meta_columns = gold_column, meta_columns
        self._runner = Runner(kind, options, key="reward_func", **settings)

    def __reduce__(self) -> tuple[type[VerifierReward], tuple[Any, ...]]:
        return VerifierReward, self._arguments

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One reward per completion; None where the verifier could not judge."""
        golds = self._column(self._gold_column, columns)
        metas = [self._column(name, columns) for name in self._meta_columns]
        requests = [
            VerifyRequest(
                _text(completion), golds[i], {n: m[i] for n, m in zip(self._meta_columns, metas, strict=True)}
            )
            for i, completion in enumerate(completions)
        ]
        verdicts = self._runner.verify(requests)
        faults = [verdict for verdict in verdicts if verdict.is_fault]
        if faults:
            logger.warning("%s: %d of %d completions could not be judged, e.g. %s: %s", self.__name__, len(faults),
                           len(verdicts), faults[0].status, faults[0].evidence)  # fmt: skip
        if "log_metric" in columns and verdicts:
            columns["log_metric"](f"{self.__name__}/unjudged_share", len(faults) / len(verdicts))
        return [verdict.score for verdict in verdicts]

    def close(self) -> None:
        """End the worker processes; they also end with this process."""
        self._runner.close()

    @staticmethod
    def _column(name: str, columns: Mapping[str, Any]) -> Any:
        if name not in columns:
            given = sorted(set(columns) - {"prompts", "completion_ids", "trainer_state", "log_extra", "log_metric"})
            raise DataError(
                f"The dataset has no column '{name}'.",
                where="reward_func(gold_column=..., meta_columns=...)",
                fix=f"name one of its columns: {', '.join(given) or '(it has none besides the prompt)'}",
            )
        return columns[name]


def _text(completion: Any) -> str:
    """A completion is text, or messages, of which the last one is the answer; content is text or a list of blocks."""
    if isinstance(completion, str):
        return completion
    if not completion:
        return ""
    content = completion[-1].get("content")
    if isinstance(content, list):
        return "".join(block.get("text") or "" for block in content)
    if content is None or isinstance(content, str):
        return content or ""
    raise ConfigError(f"A completion's content must be text or a list of blocks, not {type(content).__name__}.")
