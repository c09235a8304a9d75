"""A verifier as verl's custom reward function.

    reward.custom_reward_function.path=pkg://verifiers.adapters.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.kind=math

Source: verl 0.9.1, ``trainer/ppo/reward.py``, ``experimental/reward_loop/reward_manager/naive.py`` and
``trainer/ppo/v1/agent_loop_tq.py``. verl calls it from threads of Ray actors, one response at a time, and has no reward
that means "not judged": NaN would spoil the advantages of the group. So `compute_score` raises `VerifierError` for it.
In verl's v1 trainer this costs that trajectory only: it is logged as an error, the rest of its group is trained on, and
``trainer.v1.sampler.sync_refill_failed_groups`` replaces a group that is left with nothing. Other trainers stop.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from verifiers.errors import ConfigError, VerifierError
from verifiers.runner import Runner
from verifiers.verdict import VerifyRequest

_RUNNERS: dict[str, Runner] = {}
_LOCK = threading.Lock()


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
    timeout_s: float = 5.0,
    memory_mb: int = 1024,
    workers: int = 2,
    **_: Any,
) -> dict[str, Any]:
    """Judge `solution_str` against `ground_truth`; `extra_info` is the verifier's meta.

    kind, options, timeout_s, memory_mb, workers: as for `Runner`, from ``reward_kwargs``; the workers are shared by the
    calls of a process. Further arguments are what verl passes to every reward function, and are not used.
    Returns score, acc (1.0 if correct), pred (the answer, for majority votes; "" if none) and status.
    Raises `VerifierError` if the response could not be judged, `ConfigError` for a wrong kind or option.
    """
    if kind is None:
        raise ConfigError("No verifier is named.", where="reward.custom_reward_function.reward_kwargs.kind")
    runner = _runner(kind, _plain(options or {}), {"timeout_s": timeout_s, "memory_mb": memory_mb, "workers": workers})
    example_id = str((extra_info or {}).get("index", data_source))
    (verdict,) = runner.verify(
        [VerifyRequest(solution_str, _plain(ground_truth), _plain(extra_info or {}), example_id)]
    )
    if verdict.score is None:
        raise VerifierError(
            f"The response could not be judged ({verdict.status}): {verdict.evidence}",
            where=f"{data_source}, example {example_id}",
            why="verl has no reward that means 'not judged', and any number would be taken for the model's doing",
        )
    return {"score": verdict.score, "acc": float(verdict.status == "correct"), "pred": verdict.answer or "",
            "status": str(verdict.status)}  # fmt: skip


def _runner(kind: str, options: Mapping[str, Any], settings: Mapping[str, Any]) -> Runner:
    key = json.dumps([kind, options, settings], sort_keys=True)
    with _LOCK:
        if key not in _RUNNERS:
            _RUNNERS[key] = Runner(kind, options, key="reward_kwargs.options", **settings)
        return _RUNNERS[key]


def _plain(value: Any) -> Any:
    """As plain Python data: verl hands over OmegaConf containers, NumPy scalars and arrays, and objects of its own."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    to_list = getattr(value, "tolist", None)
    if to_list is not None:
        return _plain(to_list())
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
