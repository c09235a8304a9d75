"""The sampler is a fixed stream: seeded, resumable at every example, the same for any number of workers."""

import json
import subprocess
import sys
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Sampler, shard
from verifiers.errors import DataError


def flat(parts: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def batches(sampler: Sampler, sizes: list[int]) -> list[list[int]]:
    return [sampler.next(n) for n in sizes]


def test_each_epoch_uses_every_example_once_in_a_fresh_order():
    sampler = Sampler(12, seed=3)
    epochs = [flat(batches(sampler, [4, 4, 4])) for _ in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert all(a != b for a, b in pairwise(epochs))


@given(st.integers(1, 15), st.lists(st.integers(1, 15), max_size=20), st.integers(0, 5))
def test_no_batch_repeats_an_example_and_no_epoch_loses_one(num_examples, sizes, seed):
    sizes = [min(n, num_examples) for n in sizes]
    drawn = batches(Sampler(num_examples, seed), sizes)
    assert all(len(set(batch)) == n for batch, n in zip(drawn, sizes, strict=True))
    stream = flat(drawn)
    for start in range(0, len(stream) - num_examples + 1, num_examples):
        assert sorted(stream[start : start + num_examples]) == list(range(num_examples))


def test_the_stream_resumes_exactly_at_every_position_through_json():
    sizes = [3, 5, 2, 7, 7, 1, 6, 4, 5, 3, 7, 7]
    whole = batches(Sampler(7, seed=1), sizes)
    for stop in range(len(sizes) + 1):
        first, second = Sampler(7, seed=1), Sampler(7, seed=1)
        batches(first, sizes[:stop])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert batches(second, sizes[stop:]) == whole[stop:]
        assert second.state_dict() == _state_after(sizes)


def _state_after(sizes: list[int]) -> dict:
    sampler = Sampler(7, seed=1)
    batches(sampler, sizes)
    return sampler.state_dict()


def test_a_saved_state_does_not_change_when_the_sampler_goes_on():
    sampler = Sampler(5, seed=0)
    batches(sampler, [3, 3])
    state = sampler.state_dict()
    before = json.dumps(state)
    batches(sampler, [4, 4, 4])
    assert json.dumps(state) == before


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_workers_together_use_every_example_of_the_batch_once(world_size):
    batch = Sampler(20, seed=0).next(8)
    shards = [shard(batch, rank, world_size) for rank in range(world_size)]
    assert flat(shards) == batch
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_resumed_with_another_world_size_continues_at_the_exact_example(before, after):
    def run(world_size: int, states: list[dict] | None, steps: int) -> tuple[list[int], list[dict]]:
        workers = [Sampler(11, seed=4) for _ in range(world_size)]
        for worker in workers if states else []:
            worker.load_state_dict(states[0])
        used = []
        for _ in range(steps):
            used += flat([shard(worker.next(6), rank, world_size) for rank, worker in enumerate(workers)])
        return used, [worker.state_dict() for worker in workers]

    whole, _ = run(1, None, 9)
    first, states = run(before, None, 5)
    second, _ = run(after, states, 4)
    assert all(state == states[0] for state in states)
    assert first + second == whole


def test_the_order_depends_on_the_seed_alone_and_not_on_the_process():
    code = "from data import Sampler; import sys; sys.stdout.write(str(Sampler(50, 7).next(50)))"
    environment = {"PYTHONHASHSEED": "123", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == str(Sampler(50, 7).next(50))
    assert Sampler(50, 7).next(50) != Sampler(50, 8).next(50)
    assert Sampler(8, 0).next(8) == [7, 1, 5, 2, 3, 0, 6, 4]


@pytest.mark.parametrize(("num_examples", "seed", "named"), [(8, 0, "num_examples"), (7, 1, "seed")])
def test_a_state_of_other_data_or_another_seed_is_refused(num_examples, seed, named):
    with pytest.raises(DataError, match=f"{named}=7|{named}=0"):
        Sampler(num_examples, seed).load_state_dict(Sampler(7, 0).state_dict())


def test_a_batch_larger_than_the_dataset_is_refused():
    with pytest.raises(DataError, match="at most 7"):
        Sampler(7, 0).next(8)


def test_a_rank_outside_the_world_is_a_programming_error():
    with pytest.raises(ValueError, match="rank 2"):
        shard([1, 2], 2, 2)
    with pytest.raises(ValueError, match="at least one"):
        Sampler(3, 0).next(0)


# ---- put back ------------------------------------------------------


def test_what_is_put_back_comes_first_and_once():
    sampler, plain = Sampler(9, seed=2), Sampler(9, seed=2)
    first = sampler.next(4)
    assert plain.next(4) == first
    sampler.put_back(first[2:])
    assert sampler.next(4) == first[2:] + plain.next(2)
    assert sampler.next(3) == plain.next(3)


def test_more_than_a_batch_put_back_waits_in_order():
    sampler = Sampler(9, seed=2)
    sampler.put_back([8, 3, 5, 1])
    assert sampler.next(2) == [8, 3]
    assert sampler.next(2) == [5, 1]


@given(st.integers(2, 9), st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), max_size=16), st.integers(0, 3))
def test_with_prompts_put_back_no_batch_repeats_one_and_none_is_lost(num_examples, plan, seed):
    sampler, drawn, returned = Sampler(num_examples, seed), [], []
    for n, back in plan:
        batch = sampler.next(min(n, num_examples))
        assert len(set(batch)) == len(batch) == min(n, num_examples)
        drawn += batch
        returned += batch[len(batch) - min(back, len(batch)) :]
        sampler.put_back(batch[len(batch) - min(back, len(batch)) :])
    state = sampler.state_dict()
    net = sorted(drawn + state["put_back"])
    for i in returned:
        net.remove(i)
    counts = [net.count(i) for i in range(num_examples)]
    assert max(counts) - min(counts) <= 1  # as the epochs alone would have given


def test_the_stream_with_prompts_put_back_resumes_exactly():
    def run(sampler, sizes):
        out = []
        for n in sizes:
            batch = sampler.next(n)
            sampler.put_back(batch[n // 2 :])
            out.append(batch)
        return out

    sizes = [4, 7, 2, 5, 6, 7, 3, 7]
    whole = run(Sampler(7, seed=1), sizes)
    for stop in range(len(sizes) + 1):
        first, second = Sampler(7, seed=1), Sampler(7, seed=1)
        run(first, sizes[:stop])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert run(second, sizes[stop:]) == whole[stop:]


def test_a_saved_state_keeps_what_was_put_back_then():
    sampler = Sampler(7, seed=1)
    sampler.put_back([3, 4])
    state = sampler.state_dict()
    sampler.next(5)
    assert state["put_back"] == [3, 4]
    sampler.load_state_dict(state)
    assert sampler.next(2) == [3, 4]
