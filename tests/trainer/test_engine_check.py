"""The check of engine against learner, with an engine that is right and with the faults it is for."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from rollout.engine import ScoringEngine
from rollout.torch_engine import TorchEngine
from tests.helpers import CPU, EOS, forward_logits, make_config, make_learner, prompts, sharpen, tokenizer
from trainer.engine_check import EngineCheck, correlation, describe
from trainer.session import Session
from verifiers.errors import RunError

TEXTS = prompts([12, 20, 9])
EXAMPLES = [SimpleNamespace(id=p.example_id) for p in TEXTS]
IDS = {p.example_id: p.ids for p in TEXTS}


class Scoring(TorchEngine):
    """The torch engine, which also scores by a plain forward of the weights that it was given. stuck: it ignores new
    ones."""

    def __init__(self, learner):
        super().__init__(learner.policy.config, tokenizer(), [EOS], dtype=torch.float32, device=CPU,
                         max_prompt_tokens=40, max_response_tokens=40, max_rows=16)  # fmt: skip
        config = copy.deepcopy(learner.policy.config)  # building a model writes into it
        self.model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        self.stuck = False

    def load_weights(self, weights, version):
        if not self.stuck:
            super().load_weights(weights, version)
            self.model.load_state_dict(weights)

    def score(self, sequences):
        out = []
        for s in sequences:
            logits = forward_logits(self.model, s.prompt_ids, s.response_ids)
            target = torch.tensor(s.response_ids)[:, None]
            out.append(torch.log_softmax(logits, -1).gather(1, target)[:, 0].tolist())
        return out


def parts(**overrides):
    settings = {"rollout.temperature": 0.8} | {k.replace("__", "."): v for k, v in overrides.items()}
    learner = make_learner(settings)
    engine = Scoring(learner)
    engine.load_weights(learner.weights(), 0)
    return EngineCheck(make_config(settings), EXAMPLES, IDS), engine, learner  # type: ignore[arg-type]


def learn(learner):
    learner.supervised_step([SimpleNamespace(prompt_ids=p.ids[:4], response_ids=p.ids[4:]) for p in TEXTS])


def test_an_engine_with_the_learner_s_weights_passes_and_its_difference_is_rounding():
    check, engine, learner = parts()
    assert isinstance(engine, ScoringEngine)
    found = check.preflight(engine, learner)
    assert max(found.values()) < 1e-4
    assert "tokens that the engine sampled" in describe(found)


def test_the_preflight_compares_at_the_temperature_of_the_rollouts():
    check, engine, learner = parts()
    learner.packed.temperature = 2.0
    with pytest.raises(RunError, match="on tokens that the engine sampled"):
        check.preflight(engine, learner)


def test_other_weights_are_refused_above_the_limit_and_the_message_names_its_key():
    check, engine, learner = parts(alarms__max_engine_gap=0.01)
    sharpen(learner.model, seed=9)
    with pytest.raises(RunError, match=r"alarms\.max_engine_gap=0\.01"):
        check.preflight(engine, learner)


def test_a_log_prob_that_is_no_number_is_refused():
    check, engine, learner = parts()
    engine.score = lambda sequences: [[math.nan] * len(s.response_ids) for s in sequences]
    with pytest.raises(RunError, match="differ by nan"):
        check.preflight(engine, learner)


def test_a_probe_follows_the_learner_over_updates():
    check, engine, learner = parts()
    check.preflight(engine, learner)
    for step in (1, 2):
        learn(learner)
        engine.load_weights(learner.weights(), step)
        found = check.probe(engine, learner, step)
        assert found["engine/probe_learner_moved"] > 1e-3
        assert found["engine/probe_moved"] == pytest.approx(found["engine/probe_learner_moved"], rel=1e-3)
        assert found["engine/probe_follows"] > 0.999


def test_an_engine_that_keeps_old_weights_is_refused_even_below_the_limit():
    check, engine, learner = parts(alarms__max_engine_gap=1e3)
    check.preflight(engine, learner)
    engine.stuck = True
    learn(learner)
    engine.load_weights(learner.weights(), 1)
    with pytest.raises(RunError, match="did not change when it was given the weights of step 1"):
        check.probe(engine, learner, 1)


def test_a_step_that_changed_nothing_is_no_fault_of_the_engine():
    check, engine, learner = parts()
    check.preflight(engine, learner)
    engine.load_weights(learner.weights(), 1)
    found = check.probe(engine, learner, 1)
    assert found["engine/probe_learner_moved"] == found["engine/probe_moved"] == 0.0


def test_a_resumed_run_reports_what_an_uninterrupted_one_does():
    check, engine, learner = parts()
    check.preflight(engine, learner)
    for step in (1, 2):
        before = {name: tensor.clone() for name, tensor in learner.weights().items()}
        learn(learner)
        engine.load_weights(learner.weights(), step)
        uninterrupted = check.probe(engine, learner, step)
    again, engine, _ = parts()
    after = {name: tensor.clone() for name, tensor in learner.weights().items()}
    learner.model.load_state_dict(before)
    engine.load_weights(learner.weights(), 1)
    again.preflight(engine, learner)
    learner.model.load_state_dict(after)
    engine.load_weights(learner.weights(), 2)
    assert again.probe(engine, learner, 2) == uninterrupted


@pytest.mark.parametrize(("probe_steps", "expected"), [(2, [True, True, False]), (None, [True] * 3), (0, [False] * 3)])
def test_the_first_updates_are_probed(probe_steps, expected):
    check, engine, learner = parts()
    config = make_config({"rollout.probe_steps": probe_steps})
    session = SimpleNamespace(config=config, engine=engine, learner=learner, engine_check=check, stale=None,
                              _scoring_engine=lambda: engine)  # fmt: skip
    assert [bool(Session.probe_engine(session, step)) for step in (1, 2, 3)] == expected  # type: ignore[arg-type]


def test_an_engine_that_was_to_keep_stale_weights_is_not_probed():
    check, engine, learner = parts()
    stale = SimpleNamespace(step=3)
    session = SimpleNamespace(config=make_config(), engine=engine, learner=learner, engine_check=check, stale=stale,
                              _scoring_engine=lambda: engine)  # fmt: skip
    assert Session.probe_engine(session, 4) == {}  # type: ignore[arg-type]
    assert Session.probe_engine(session, 3) != {}  # type: ignore[arg-type]


def test_correlation_is_pearson_s_and_zero_where_nothing_varies():
    a = torch.tensor([1.0, 2.0, 4.0])
    assert correlation(a, 3 * a + 1) == pytest.approx(1.0)
    assert correlation(a, -a) == pytest.approx(-1.0)
    assert correlation(a, torch.zeros(3)) == 0.0
