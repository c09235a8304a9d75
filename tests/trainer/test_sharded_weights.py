"""Weights that lie on two ranks: how they come there, what leaves them, and that nobody waits for a rank whose engine
fails."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from prm.cotrained import CoTrained
from rollout.engine import SamplingParams, SharedEngine
from rollout.models import load_policy
from rollout.options import OptimConfig
from rollout.packing import Packer
from rollout.sharding import WholeWeights, on_host
from rollout.torch_engine import TorchEngine
from rollout.world import World, join_world
from tests.helpers import CPU, EOS, make_config, prompts, random_trajectories, sharpen, tiny_model, tokenizer
from trainer.learner import Learner
from trainer.session import model_setup

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


class Server(Rounding):
    """As a server that all ranks ask; says who gave it weights."""

    weights_dtype = None
    serves_all_ranks = True
    given = None

    def took(self, version):
        self.took_version = version


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
    server = engine_of(Server, learner)
    SharedEngine(server, world).load_weights(learner.weights(), 4)
    return {
        "server": (server.given and list(server.given), getattr(server, "took_version", None)),
        "weights": weights,
        "sampled": [(t.response_ids, t.logp_sampled) for t in sampled],
        "is_streamed": is_streamed,
        "error": error,
        "after_error": world.gather(world.rank),
        "rounded": rounding.given,
    }


def loaded(overrides, world):
    """A policy, its reference and a scorer with a random head, as a session makes them."""
    config = make_config(overrides)
    policy = load_policy(config.model, config.seed, CPU, world)
    devices = {p.device.type for p in policy.model.parameters()}
    setup = model_setup(config, CPU, world)
    learner = Learner(config, policy, CPU, setup.packer)
    learner.freeze_reference()
    scorer = CoTrained(setup, "scalar", OptimConfig(lr=1e-3))
    asked = random_trajectories()
    reference = learner.reference_logprobs(asked) if learner.reference is not None else []
    return {
        "devices": devices,
        "weights": on_host(learner.weights()),
        "scorer": on_host(scorer.weights()),
        "logps": torch.cat([*learner.logprobs(asked), *reference, *scorer.outputs(asked)]),
        "trained": len(learner.trainable()),
        "random": torch.get_rng_state(),
        "eos_ids": policy.eos_ids,
    }


def origins(folder):
    """Recipes by where their models come from. folder: with one to read, in bfloat16 and with tied embeddings."""
    read = {"model.scratch": None, "model.path": str(folder)}
    return {
        "scratch": {"objective.kl.coef": 0.1},
        "scratch, tied": CASES["tied"],
        "scratch, lora": LORA,
        "folder": read | {"objective.kl.coef": 0.1},
        "folder, lora": read | LORA,
    }


ORIGINS = list(origins(""))


def work(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(RANKS), "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    world = join_world("cpu", replicas=1, timeout_s=240)
    out = {name: found(overrides, world) for name, overrides in CASES.items()}
    out |= {name: loaded(overrides, world) for name, overrides in origins(Path(folder) / "model").items()}
    torch.save(out, Path(folder) / f"{rank}.pt")
    world.leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    model: Any = tiny_model("qwen2", tied=True)
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, str(folder)), nprocs=RANKS)  # type: ignore[attr-defined]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone(folder):
    out = {name: found(overrides, World()) for name, overrides in CASES.items()}
    return out | {name: loaded(overrides, World()) for name, overrides in origins(folder / "model").items()}


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_model_is_whole_on_rank_0_only_and_the_one_of_a_single_process_when_it_is_shared(ranks, alone, origin):
    expected = alone[origin]
    assert [rank[origin]["devices"] for rank in ranks] == [{"cpu"}, {"meta"}]
    for rank in ranks:
        for what in ("weights", "scorer"):
            assert list(rank[origin][what]) == list(expected[what])
            for name, tensor in rank[origin][what].items():
                assert tensor.dtype == expected[what][name].dtype
                assert torch.equal(tensor, expected[what][name]), name
        # buffers too: rotary frequencies make the log-probs
        torch.testing.assert_close(rank[origin]["logps"], expected["logps"], atol=1e-6, rtol=1e-6)
        assert torch.equal(rank[origin]["random"], expected["random"])
        assert rank[origin]["trained"] == expected["trained"]
        assert rank[origin]["eos_ids"] == expected["eos_ids"]


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


@pytest.mark.parametrize("case", CASES)
def test_a_server_for_all_ranks_is_given_the_weights_once(ranks, alone, case):
    names = list(alone[case]["weights"])
    assert [rank[case]["server"] for rank in ranks] == [(names, 4), (None, 4)]


@pytest.mark.parametrize("case", ["full", "tied"])
def test_matrices_rounded_before_they_are_gathered_are_those_rounded_afterwards(ranks, alone, case):
    for rank in ranks:
        for name, tensor in rank[case]["rounded"].items():
            assert tensor.dtype == (torch.bfloat16 if tensor.ndim > 1 else torch.float32)
            assert torch.equal(tensor, alone[case]["weights"][name].to(tensor.dtype))
