"""TP-GRPO as the paper writes it: a reward for each thought, and an advantage that sums those that end at or after a
token. The estimator has the table that comes out of it; this is its oracle."""

from itertools import accumulate

from prm.thoughts import merge


def thought_rewards(labels, correct, rhat, process_reward):
    """One reward a thought; the answer is the last step and key, and the thought it is in has the outcome alone."""
    assert labels[-1]
    rewards = []
    for thought in merge(labels):
        if correct:
            rewards.append(process_reward if thought.is_key else -process_reward)
        else:
            rewards.append(rhat if thought.is_key else -rhat)
    return [*rewards[:-1], rhat]


def by_cumulative_sum(rewards):
    """The advantage of each thought's tokens."""
    return list(accumulate(reversed(rewards)))[::-1]
