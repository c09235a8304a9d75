"""Filters on examples. Each returns (kept examples in order, ids of the dropped ones)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from data.example import Example
from verifiers.errors import ConfigError, DataError

MAX_IDS_SHOWN = 10


def by_prompt_tokens(
    examples: Sequence[Example],
    prompt_ids: Sequence[Sequence[int]],
    max_prompt_tokens: int,
    on_too_long: Literal["stop", "skip"],
) -> tuple[list[Example], list[str]]:
    """Keep examples whose prompt (prompt_ids[i], as `data.template.encode` gives it) has at most `max_prompt_tokens`.

    Raises `DataError` naming the ids and lengths if any is too long and `on_too_long` is stop, or if all are.
    """
    too_long = {e.id: len(ids) for e, ids in zip(examples, prompt_ids, strict=True) if len(ids) > max_prompt_tokens}
    if too_long and (on_too_long == "stop" or len(too_long) == len(examples)):
        shown = ", ".join(f"{name} ({length} tokens)" for name, length in list(too_long.items())[:MAX_IDS_SHOWN])
        longest = max(too_long.values())
        raise DataError(
            f"{len(too_long)} of {len(examples)} prompts are longer than data.max_prompt_tokens={max_prompt_tokens}.",
            where=shown + (" ..." if len(too_long) > MAX_IDS_SHOWN else ""),
            why="a prompt is never cut: the model would be rewarded for answering another question",
            fix=f"raise data.max_prompt_tokens (the longest has {longest}), or set data.on_too_long=skip to drop some",
        )
    return [e for e in examples if e.id not in too_long], list(too_long)


def by_pass_rate(
    examples: Sequence[Example], pass_rate: Mapping[str, float], low: float, high: float
) -> tuple[list[Example], list[str]]:
    """Keep examples with low <= pass rate <= high; `pass_rate` maps id -> share of probe samples that were correct.

    Raises `ConfigError` for bounds that are no band within 0 .. 1, `DataError` if an example was not probed or none is
    kept.
    """
    if not 0.0 <= low <= high <= 1.0:
        raise ConfigError(f"The pass rate band {low} .. {high} is impossible.", fix="set 0 <= low <= high <= 1")
    unknown = [e.id for e in examples if e.id not in pass_rate]
    if unknown:
        raise DataError(
            f"{len(unknown)} examples have no measured pass rate.",
            where=", ".join(unknown[:MAX_IDS_SHOWN]) + (" ..." if len(unknown) > MAX_IDS_SHOWN else ""),
            fix="probe the same examples that you filter",
        )
    kept = [e for e in examples if low <= pass_rate[e.id] <= high]
    if not kept:
        rates = [pass_rate[e.id] for e in examples]
        found = f"they range over {min(rates):.2f} .. {max(rates):.2f}" if rates else "there are no examples"
        raise DataError(f"No example has a pass rate in {low} .. {high}: {found}.", fix="widen the band")
    return kept, [e.id for e in examples if not low <= pass_rate[e.id] <= high]


def by_repetition(
    examples: Sequence[Example], pass_rate: Mapping[str, float], bands: Sequence[tuple[float, float, int]]
) -> list[Example]:
    """Each example as often as its pass rate asks for: `times` for the first (low, high, times) with low <= pass rate <
    high, not at all if there is none. Copies stand together; the sampler shuffles them.

    Raises `DataError` if none is left. Source: OREAL, arXiv:2502.06781 (6, 4, 4 and 2 times below 0.2, 0.4, 0.6, 0.8).
    """
    out: list[Example] = []
    for example in examples:
        rate = pass_rate[example.id]
        out += [example] * next((times for low, high, times in bands if low <= rate < high), 0)
    if not out:
        raise DataError("No example has a pass rate in any of the bands to repeat.", where="data.difficulty.repeat",
                        fix="widen the bands: they are [low, high), so 1.0 is in none that ends there")  # fmt: skip
    return out
