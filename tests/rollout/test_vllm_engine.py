"""The vLLM engine on vLLM itself, in this process and as a server. Needs vLLM (its CPU build is enough).

The tiny model has heads of 32: vLLM's CPU attention has no kernel for smaller ones.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rollout.engine import Engine, SamplingParams, ScoringEngine
from rollout.trajectory import Finish
from rollout.vllm_engine import VllmEngine
from tests.helpers import (
    CPU,
    EOS,
    VOCABULARY,
    forward_logits,
    make_config,
    make_engine,
    make_learner,
    prompts,
    reference_log_probs,
    sharpen,
    tokenizer,
)
from trainer.engine_check import EngineCheck
from verifiers.errors import ModelError, RunError

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

LENGTHS = [5, 1, 12, 12]
# 128 tokens a step: not all prompts of a test fit, and one that does not must wait whole
SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 2**27, "max_num_batched_tokens": 128}
SIZES = {"dtype": torch.float32, "device": CPU, "max_prompt_tokens": 40, "max_response_tokens": 64, "max_rows": 16}


def tiny(tied=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=EOS,
        pad_token_id=0,
    )  # fmt: skip
    return sharpen(LlamaForCausalLM(config), scale=0.05).eval()


@pytest.fixture(scope="module")
def engine():
    built = VllmEngine(tiny().config, tokenizer(), [EOS], **SIZES, options=VllmEngine.Options(arguments=SMALL))
    yield built
    built.close()


def essence(trajectories):
    return [(t.example_id, t.sample, t.response_ids, t.finish, t.text) for t in trajectories]


def gaps(model, trajectories, sampling):
    """|engine - fresh forward|, at most: (as sampled, untransformed)."""
    worst = [0.0, 0.0]
    for t in trajectories:
        logits = forward_logits(model, t.prompt_ids, t.response_ids)
        target = torch.tensor(t.response_ids)[:, None]
        expected = reference_log_probs(logits, sampling.temperature, sampling.top_p).gather(1, target)[:, 0]
        plain = torch.log_softmax(logits.double(), -1).gather(1, target)[:, 0]
        for k, (found, right) in enumerate([(t.logp_sampled, expected), (t.logp_model, plain)]):
            worst[k] = max(worst[k], float((torch.tensor(found) - right).abs().max()))
    return worst


def test_it_is_an_engine_that_can_be_checked(engine):
    assert isinstance(engine, Engine)
    assert isinstance(engine, ScoringEngine)


@pytest.mark.parametrize("stop", [(), ("7", "ab")], ids=["no stop string", "stop strings"])
def test_greedy_tokens_ends_and_texts_are_those_of_the_torch_engine(engine, stop):
    model = tiny()
    engine.load_weights(model.state_dict(), 3)
    sampling = SamplingParams(48, stop=stop, greedy=True)
    ours = make_engine(model, version=3).generate(prompts(LENGTHS), 1, sampling, seed=1)
    theirs = engine.generate(prompts(LENGTHS), 1, sampling, seed=1)
    assert essence(theirs) == essence(ours)
    assert [t.logp_sampled for t in theirs] == [t.logp_sampled for t in ours]
    torch.testing.assert_close([t.logp_model for t in theirs], [t.logp_model for t in ours], atol=1e-4, rtol=0)
    assert {t.weights_version for t in theirs} == {3}


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.8, 0.9), (1.3, 0.7)])
def test_log_probs_are_those_of_the_distribution_really_sampled_from(engine, temperature, top_p):
    model = tiny()
    engine.load_weights(model.state_dict(), 0)
    sampling = SamplingParams(24, temperature=temperature, top_p=top_p)
    trajectories = engine.generate(prompts(LENGTHS), 3, sampling, seed=11)
    assert max(gaps(model, trajectories, sampling)) < 1e-4


def test_a_sampled_response_ends_with_the_token_that_completes_a_stop_string(engine):
    engine.load_weights(tiny().state_dict(), 0)
    found = engine.generate(prompts(LENGTHS), 4, SamplingParams(64, stop=("7", "a")), seed=5)
    stopped = [t for t in found if t.finish is Finish.STOP and t.response_ids[-1] != EOS]
    assert stopped
    for t in stopped:
        assert t.text[-1] in "7a"
        assert not any(c in t.text[:-1] for c in "7a")
    cut = [t for t in found if t.finish is Finish.LENGTH]
    assert all(len(t.response_ids) == 64 and not any(c in t.text for c in "7a") for t in cut)


def test_an_end_token_is_kept_in_the_ids_and_left_out_of_the_text(engine):
    engine.load_weights(tiny().state_dict(), 0)
    found = engine.generate(prompts(LENGTHS), 8, SamplingParams(64), seed=6)
    ended = [t for t in found if t.finish is Finish.STOP]
    assert ended
    for t in ended:
        assert t.response_ids[-1] == EOS
        assert EOS not in t.response_ids[:-1]
        assert "</s>" not in t.text


def test_samples_of_a_group_differ_and_do_not_depend_on_what_is_around_them(engine):
    engine.load_weights(tiny().state_dict(), 0)
    sampling = SamplingParams(24, temperature=0.9)
    groups = []
    all_of_them = engine.generate(prompts(LENGTHS), 4, sampling, seed=7, on_group=groups.append)
    assert sorted([t.sample for t in g] for g in groups) == [[0, 1, 2, 3]] * len(LENGTHS)
    assert len({tuple(t.response_ids) for t in all_of_them[:4]}) == 4
    alone = engine.generate(prompts(LENGTHS)[2:3], 2, sampling, seed=7)
    assert [t.response_ids for t in alone] == [t.response_ids for t in all_of_them[8:10]]
    assert essence(engine.generate(prompts(LENGTHS), 4, sampling, seed=7)) == essence(all_of_them)
    other = engine.generate(prompts(LENGTHS), 4, sampling, seed=8)
    assert essence(other) != essence(all_of_them)


def test_the_global_random_state_is_not_moved(engine):
    engine.load_weights(tiny().state_dict(), 0)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    engine.generate(prompts(LENGTHS), 2, SamplingParams(8), seed=7)
    assert torch.equal(torch.rand(3), expected)


def test_an_error_in_the_callback_leaves_nothing_behind(engine):
    engine.load_weights(tiny().state_dict(), 0)

    def fail(group):
        raise KeyError("judge")

    with pytest.raises(KeyError):
        engine.generate(prompts(LENGTHS), 2, SamplingParams(8), seed=7, on_group=fail)
    assert len(engine.generate(prompts(LENGTHS), 2, SamplingParams(8), seed=7)) == 8


def test_it_asks_for_weights_after_sleep(engine):
    engine.load_weights(tiny().state_dict(), 0)
    engine.sleep()
    with pytest.raises(RunError, match="load_weights"):
        engine.generate(prompts(LENGTHS), 1, SamplingParams(4), seed=0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_new_weights_are_used_at_once_prefix_cache_and_tied_head_included(engine, seed):
    model = tiny()
    engine.load_weights(model.state_dict(), 0)
    long = prompts([40, 40, 40])  # whole blocks in the prefix cache
    engine.generate(long, 2, SamplingParams(8), seed=0)
    sharpen(model, seed=seed, scale=0.05)
    engine.load_weights(model.state_dict(), 1)
    sampling = SamplingParams(8)
    assert max(gaps(model, engine.generate(long, 2, sampling, seed=0), sampling)) < 1e-4


def scorable(lengths):
    return [SimpleNamespace(prompt_ids=p.ids[:3], response_ids=p.ids[3:]) for p in prompts(lengths)]


def test_scores_are_the_model_s_own_log_probs(engine):
    model = tiny()
    engine.load_weights(model.state_dict(), 0)
    for text, found in zip(scorable([9, 30]), engine.score(scorable([9, 30])), strict=True):
        logits = forward_logits(model, text.prompt_ids, text.response_ids)
        right = torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(text.response_ids)[:, None])[:, 0]
        assert (torch.tensor(found) - right).abs().max() < 1e-4


def test_a_second_engine_in_one_process_is_refused(engine):
    """vLLM's groups of processes are global: closing one engine would break the other."""
    with pytest.raises(ModelError, match="has one vLLM engine"):
        VllmEngine(tiny().config, tokenizer(), [EOS], **SIZES, options=VllmEngine.Options(arguments=SMALL))


# ---- with the learner -----------------------------------------------------------------------------------------------

MODEL = {"model.scratch": {"hidden_size": 128, "intermediate_size": 96, "num_layers": 2, "num_heads": 4,
                           "num_kv_heads": 2, "max_positions": 512, "tie_embeddings": True},
         "rollout.temperature": 0.8, "optim.lr": 1e-2}  # fmt: skip
EXAMPLES = [SimpleNamespace(id=p.example_id) for p in prompts([12, 20, 9])]
IDS = {p.example_id: p.ids for p in prompts([12, 20, 9])}


def checked(engine, overrides=None):
    config = make_config(MODEL | (overrides or {}))
    learner = make_learner(MODEL | (overrides or {}))
    engine.load_weights(learner.weights(), 0)
    return EngineCheck(config, EXAMPLES, IDS), learner  # type: ignore[arg-type]


def demonstrations():
    return [SimpleNamespace(prompt_ids=p.ids[:4], response_ids=p.ids[4:]) for p in prompts([16, 16])]


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8.0}], ids=["full", "lora"])
def test_preflight_and_probe_pass_over_real_updates(engine, lora):
    check, learner = checked(engine, {"model.lora": lora})
    found = check.preflight(engine, learner)
    assert max(found.values()) < 1e-4
    assert {"engine/sampled_gap", "engine/probe_gap"} <= found.keys()
    for step in range(1, 4):
        learner.supervised_step(demonstrations())
        engine.load_weights(learner.weights(), step)
        metrics = check.probe(engine, learner, step)
        assert metrics["engine/probe_gap_max"] < 1e-4
        assert metrics["engine/probe_learner_moved"] > 1e-3
        assert metrics["engine/probe_follows"] > 0.999


def test_an_engine_that_keeps_its_old_weights_is_caught(engine):
    check, learner = checked(engine)
    check.preflight(engine, learner)
    learner.supervised_step(demonstrations())  # and the engine is not told
    with pytest.raises(RunError, match="did not change when it was given the weights of step 1"):
        check.probe(engine, learner, 1)


def test_a_learner_at_another_temperature_is_refused_before_training(engine):
    check, learner = checked(engine)
    learner.packed.temperature = 1.6
    with pytest.raises(RunError, match="Engine and learner disagree"):
        check.preflight(engine, learner)


def test_a_learner_with_other_weights_is_refused_before_training(engine):
    check, learner = checked(engine, {"alarms.max_engine_gap": 0.01})
    sharpen(learner.model, seed=9, scale=0.05)
    with pytest.raises(RunError, match=r"max_engine_gap=0\.01"):
        check.preflight(engine, learner)


# ---- server ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server_url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    tiny().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", "float32",
               "--enforce-eager", "--max-model-len", "128", "--logprobs-mode", "processed_logprobs", "--host",
               "127.0.0.1", "--port", str(port), "--max-num-seqs", "16", "--no-enable-chunked-prefill",
               "--max-num-batched-tokens", "128", "--kv-cache-memory-bytes", str(2**27)]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    environment |= {"VLLM_SERVER_DEV_MODE": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_up(url, process, folder / "log")
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def wait_until_up(url, process, log):
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url + "/health", timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    pytest.fail(f"the server did not come up: {log.read_text()[-2000:]}")


def test_a_server_gets_weights_by_folder_and_samples_what_the_library_samples(engine, server_url, tmp_path):
    options = VllmEngine.Options(server_url=server_url, weights_folder=str(tmp_path))
    model = tiny()
    served = VllmEngine(model.config, tokenizer(), [EOS], **SIZES, options=options)
    try:
        for version in range(2):
            sharpen(model, seed=20 + version, scale=0.05)
            served.load_weights(model.state_dict(), version)
            engine.load_weights(model.state_dict(), version)
            sampling = SamplingParams(24, temperature=0.8, top_p=0.9, stop=("7",))
            found = served.generate(prompts(LENGTHS), 3, sampling, seed=11)
            assert max(gaps(model, found, sampling)) < 1e-4
            assert essence(found) == essence(engine.generate(prompts(LENGTHS), 3, sampling, seed=11))
            assert [p.name for p in tmp_path.iterdir()] == [f"weights-{version}"]
            with urllib.request.urlopen(server_url + "/weight_info") as answer:
                assert json.load(answer) == {"weight_version": str(version)}
        check, learner = EngineCheck(make_config(MODEL), EXAMPLES, IDS), make_learner(MODEL)  # type: ignore[arg-type]
        served.load_weights(learner.weights(), 0)
        check.preflight(served, learner)
        learner.supervised_step(demonstrations())
        served.load_weights(learner.weights(), 1)
        assert check.probe(served, learner, 1)["engine/probe_follows"] > 0.999
    finally:
        served.close()


def test_what_nccl_would_send_declares_what_it_yields():
    from rollout.vllm_server import NcclPush

    pusher = NcclPush("127.0.0.1", 29600, torch.bfloat16)
    pusher._weights = tiny().state_dict()
    source = pusher.source()
    declared = [(m.name, m.dtype, m.shape) for m in source.metadata()]
    assert declared == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source]
