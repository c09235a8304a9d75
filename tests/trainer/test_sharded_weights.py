"""Weights that lie on two ranks: what leaves them, and that nobody waits for a rank whose engine fails."""

import os
import socket
from pathlib import Path

import pytest
import torch

from rollout.engine import SamplingParams, SharedEngine
from rollout.models import load_policy
from rollout.packing import Packer
from rollout.sharding import WholeWeights, on_host
from rollout.torch_engine import TorchEngine
from rollout.world import World, join_world
from tests.helpers import CPU, EOS, make_config, prompts, sharpen, tokenizer
from trainer.learner import Learner

RANKS = 2
LORA = {"model.lora": {"rank": 4, "alpha": 8.0}}
CASES = {"full": {}, "tied": {"model.scratch.tie_embeddings": True}, "lora": LORA}
SIZES = {"dtype": torch.float32, "device": CPU, "max_prompt_tokens": 16, "max_response_tokens": 16, "max_rows": 8}


class Failing(TorchEngine):
    """Gives up at the third tensor."""

    def load_weights(self, weights, version):
        for place, _ in enumerate(weights.items()):
            if place == 2:
                raise MemoryError("no room")


class Rounding(TorchEngine):
    """Keeps what it is given."""

    weights_dtype = torch.bfloat16

    def load_weights(self, weights, version):
        self.given = dict(weights.items())


def learner_of(overrides, world):
    config = make_config(overrides)
    policy = load_policy(config.model, config.seed, CPU)
    sharpen(policy.model)
    return Learner(config, policy, CPU, Packer(world))


def engine_of(kind, learner):
    return kind(learner.policy.config, tokenizer(), [EOS], **SIZES)


def found(overrides, world):
    """What one process has, or what each of the ranks has."""
    learner = learner_of(overrides, world)
    shared = SharedEngine(engine_of(TorchEngine, learner), world)
    shared.load_weights(learner.weights(), 1)
    sampled = shared.generate(prompts([5, 9, 3]), 2, SamplingParams(8), seed=0)
    is_streamed = isinstance(learner.weights(), WholeWeights)
    weights = on_host(learner.weights())
    error = ""
    try:
        kind = Failing if world.rank == 0 and world.size > 1 else TorchEngine
        SharedEngine(engine_of(kind, learner), world).load_weights(learner.weights(), 2)
    except MemoryError as caught:
        error = str(caught)
    rounding = engine_of(Rounding, learner)
    SharedEngine(rounding, world).load_weights(learner.weights(), 3)
    return {
        "weights": weights,
        "sampled": [(t.response_ids, t.logp_sampled) for t in sampled],
        "is_streamed": is_streamed,
        "error": error,
        "after_error": world.gather(world.rank),
        "rounded": rounding.given,
    }


def work(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(RANKS), "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    world = join_world("cpu", replicas=1, timeout_s=240)
    torch.save({name: found(overrides, world) for name, overrides in CASES.items()}, Path(folder) / f"{rank}.pt")
    world.leave()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, str(folder)), nprocs=RANKS)  # type: ignore[attr-defined]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone():
    return {name: found(overrides, World()) for name, overrides in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_every_rank_reads_the_weights_of_one_process_tensor_by_tensor(ranks, alone, case):
    expected = alone[case]["weights"]
    for rank in ranks:
        assert rank[case]["is_streamed"]
        assert list(rank[case]["weights"]) == list(expected)
        for name, tensor in rank[case]["weights"].items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-6 if case == "lora" else 0, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_engines_of_two_ranks_sample_what_one_does(ranks, alone, case):
    for rank in ranks:
        assert [ids for ids, _ in rank[case]["sampled"]] == [ids for ids, _ in alone[case]["sampled"]]
        for (_, logps), (_, expected) in zip(rank[case]["sampled"], alone[case]["sampled"], strict=True):
            assert logps == pytest.approx(expected, abs=1e-5)


def test_a_rank_whose_engine_fails_still_gathers_for_the_others(ranks):
    assert [rank["full"]["error"] for rank in ranks] == ["no room", ""]
    assert [rank["full"]["after_error"] for rank in ranks] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("case", ["full", "tied"])
def test_matrices_rounded_before_they_are_gathered_are_those_rounded_afterwards(ranks, alone, case):
    for rank in ranks:
        for name, tensor in rank[case]["rounded"].items():
            assert tensor.dtype == (torch.bfloat16 if tensor.ndim > 1 else torch.float32)
            assert torch.equal(tensor, alone[case]["weights"][name].to(tensor.dtype))
