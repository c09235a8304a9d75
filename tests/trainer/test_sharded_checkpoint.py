"""A sharded checkpoint written and read by one process, and what ranks say to each other. Real ones: e2e."""

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from rollout.world import World
from tests.helpers import make_learner, random_trajectories, training_batch
from trainer.sharded_checkpoint import FOLDER, read_policy, read_tensors, tensors
from verifiers.errors import RunError

LORA = {"model.lora": {"rank": 4, "alpha": 8.0}}
SHARED = {"objective.advantage": {"kind": "gae"}, "critic": {"trunk": "shared"}}


@pytest.mark.parametrize("overrides", [{}, LORA], ids=["full", "lora"])
def test_a_learner_filled_from_it_goes_on_bit_for_bit(tmp_path, overrides):
    batch = training_batch(random_trajectories())
    first = make_learner(overrides)
    first.update(batch)
    save(tensors(first, {}), checkpoint_id=tmp_path / FOLDER, no_dist=True)
    second = make_learner(overrides)
    for parameter in second.trainable():
        parameter.data.add_(1.0)
    read_tensors(tmp_path, tensors(second, {}))
    second.load_plain_state(first.plain_state())
    assert first.update(batch) == second.update(batch)
    for a, b in zip(first.trainable(), second.trainable(), strict=True):
        assert torch.equal(a, b)


def test_the_trained_parameters_are_read_without_a_model(tmp_path):
    learner = make_learner(LORA)
    learner.update(training_batch(random_trajectories()))
    save(tensors(learner, {}), checkpoint_id=tmp_path / FOLDER, no_dist=True)
    found = read_policy(tmp_path)
    trained = {n: p for n, p in learner.model.named_parameters() if p.requires_grad}
    assert found["policy"].keys() == trained.keys()
    assert all(torch.equal(found["policy"][n], p) for n, p in trained.items())
    assert found["value_head"] == {}


def test_a_world_of_one_hands_everything_through():
    world = World()
    world.leave()
    assert world.is_main
    assert world.gather(3) == [3]
    assert world.union({1: "a"}) == {1: "a"}
    assert world.total({"x": 1.5}) == {"x": 1.5}
    assert world.shared_work([1, 2, 3], lambda items: [2 * i for i in items]) == [2, 4, 6]
    world.check_same("nothing", [torch.zeros(2)])


class TwoRanks(World):
    """Rank 0 of two, of which the other says what it is told to."""

    def __init__(self, other):
        super().__init__(rank=0, size=2)
        object.__setattr__(self, "other", other)

    def gather(self, value):
        return [value, self.other(value)]


def test_ranks_that_drift_apart_are_told_so_and_equal_ones_are_not():
    TwoRanks(lambda digest: digest).check_same("the batch of a step", [torch.ones(2)])
    with pytest.raises(RunError, match="no longer agree on the batch of a step"):
        TwoRanks(lambda digest: "0" * 12).check_same("the batch of a step", [torch.ones(2)])


def test_shares_partition_what_there_is_to_do():
    for size in (1, 2, 3, 5):
        shares = [World(rank, size).share(7) for rank in range(size)]
        assert sorted(i for share in shares for i in share) == list(range(7))
