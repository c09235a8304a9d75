"""Groups are handed over as they end, while others are being generated, and nothing else changes."""

import torch

from rollout.engine import SamplingParams
from tests.helpers import make_engine, prompts, tiny_model

LENGTHS = [3, 9, 5, 7, 4]
PLAIN = SamplingParams(24)
EAGER_ENDS = list(range(2, 22))


def test_every_group_is_handed_over_once_whole_and_in_order_of_samples():
    engine = make_engine(tiny_model(), eos_ids=EAGER_ENDS, max_rows=4)
    groups = []
    trajectories = engine.generate(prompts(LENGTHS), 3, PLAIN, 31, groups.append)
    assert sorted(group[0].group for group in groups) == list(range(5))
    assert all([t.sample for t in group] == [0, 1, 2] for group in groups)
    assert sorted((t for g in groups for t in g), key=lambda t: (t.group, t.sample)) == trajectories
    assert engine.generate(prompts(LENGTHS), 3, PLAIN, 31) == trajectories


def test_a_group_is_handed_over_while_others_are_still_generated():
    engine = make_engine(tiny_model(), eos_ids=[], max_rows=3)
    steps, seen_at = 0, []
    decode = engine.decoder.step

    def counted(*arguments):
        nonlocal steps
        steps += 1
        return decode(*arguments)

    engine.decoder.step = counted
    engine.generate(prompts(LENGTHS), 3, PLAIN, 32, lambda group: seen_at.append(steps))
    assert seen_at == sorted(seen_at)
    assert seen_at[0] < seen_at[-1] / 4
    assert len(set(seen_at)) == 5


def test_the_callback_may_make_tensors_that_are_trained_on():
    made = []
    engine = make_engine(tiny_model())
    engine.generate(prompts([3]), 2, PLAIN, 33, lambda group: made.append(torch.ones(2)))
    assert not made[0].is_inference()
