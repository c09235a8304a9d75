"""The engine in a process of its own gives what it gives in ours."""

import os
import signal
import threading

import pytest
import torch

from rollout.engine import Prompt, SamplingParams
from rollout.process_engine import ProcessEngine
from tests.helpers import CPU, EOS, make_engine, tiny_model, tokenizer
from verifiers.errors import RunError

PROMPTS = [Prompt(f"e{i}", i, [5, 6, 7 + i]) for i in range(5)]
SAMPLING = SamplingParams(12)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def engine(model):
    options = {"dtype": torch.float32, "device": CPU, "max_prompt_tokens": 32, "max_response_tokens": 32, "max_rows": 8}
    made = ProcessEngine("torch", (model.config, tokenizer(), (EOS,)), options, threads=1)
    yield made
    made.close()


def test_the_same_trajectories_as_in_this_process_and_every_group_as_it_ends(model, engine):
    own = make_engine(model, max_rows=8)
    weights = model.state_dict()
    own.load_weights(weights, 3)
    engine.load_weights(weights, 3)
    groups = []
    found = engine.generate(PROMPTS, 2, SAMPLING, 11, groups.append)
    assert found == own.generate(PROMPTS, 2, SAMPLING, 11)
    assert sorted(group[0].group for group in groups) == [0, 1, 2, 3, 4]
    assert all(len(group) == 2 for group in groups)


def test_weights_may_change_once_they_were_given(model, engine):
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    engine.load_weights(weights, 0)
    first = engine.generate(PROMPTS, 1, SAMPLING, 1)
    for tensor in weights.values():
        tensor.zero_()
    assert engine.generate(PROMPTS, 1, SAMPLING, 1) == first


def test_an_error_of_the_engine_is_raised_here_and_it_goes_on(model, engine):
    with pytest.raises(RunError, match="no weights"):
        engine.generate(PROMPTS, 1, SAMPLING, 1)
    engine.load_weights(model.state_dict(), 0)
    assert len(engine.generate(PROMPTS, 1, SAMPLING, 1)) == 5


def test_a_process_that_was_killed_is_an_error_that_says_so(model, engine):
    engine.load_weights(model.state_dict(), 0)
    os.kill(engine._process.pid, signal.SIGKILL)
    with pytest.raises(RunError, match="exit code -9"):
        engine.generate(PROMPTS, 1, SAMPLING, 1)


def test_closing_does_not_wait_for_a_generation(model, engine):
    engine.load_weights(model.state_dict(), 0)
    started, failed = threading.Event(), []

    def generate():
        try:
            engine.generate(PROMPTS, 2, SAMPLING, 1, lambda group: started.set() or threading.Event().wait(0.5))
        except RunError as error:
            failed.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    assert started.wait(60)
    engine.close()
    thread.join(30)
    assert not thread.is_alive()
    assert not engine._process.is_alive()
