"""R1-Reward's composition: the answer counts more when the reasoning supports it.

    reward = format_weight * format + correct * (1 + consistency_weight * consistency)

consistency comes from a referee that reads the reasoning and the answer; it pays only when the answer is right.

Paper: arXiv:2505.02835: consistency 0 or 1. Reference: yfzhang114/r1_reward 3693413a, `get_reward`: -1 for a
contradiction, 0 where the referee did not decide, 1 for agreement; weights 0.5 and 0.5. There an exception while
checking an answer counts as a right answer; here what could not be judged has no reward at all (NaN), see the contract
of reward sources. Not in the registry: it needs a referee's verdict, which only the source that asked has.
"""

from __future__ import annotations


def consistency_reward(
    has_format: bool,
    correct: bool,
    consistency: float,
    format_weight: float = 0.5,
    consistency_weight: float = 0.5,
) -> float:
    """consistency in [-1, 1]; raises ValueError outside."""
    if not -1 <= consistency <= 1:
        raise ValueError(f"consistency={consistency} is not in [-1, 1]")
    return format_weight * has_format + correct * (1 + consistency_weight * consistency)
