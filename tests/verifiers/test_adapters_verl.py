"""The verifiers as verl's reward function: alone, and loaded and called by verl's own code."""

import asyncio
import threading

import pytest

from verifiers import ConfigError, VerifierError
from verifiers.adapters import verl as adapter
from verifiers.adapters.verl import compute_score


@pytest.fixture(autouse=True)
def _fresh_runners():
    yield
    for runner in adapter._RUNNERS.values():
        runner.close()
    adapter._RUNNERS.clear()


def test_the_score_and_what_goes_with_it():
    right = compute_score("gsm8k", r"\boxed{4}", "4", kind="exact")
    assert right == {"score": 1.0, "acc": 1.0, "pred": "4", "status": "correct"}
    none = compute_score("gsm8k", r"\boxed{}", "4", {"index": 3}, kind="exact", reward_router_address=None)
    assert none == {"score": 0.0, "acc": 0.0, "pred": "", "status": "no_answer"}
    assert {type(value) for value in right.values()} == {float, str}


def test_a_partial_score_is_not_accuracy():
    got = compute_score("x", "<think>a</think>b", None, kind="format", options={"score": "share"})
    assert 0 < got["score"] < 1
    assert got["acc"] == 0.0


def test_extra_info_is_the_meta_and_arrays_are_lists():
    np = pytest.importorskip("numpy")
    info = {"choices": np.array(["Oslo", "Rome"]), "index": np.int64(3), "num_turns": None}
    assert compute_score("x", "Rome", np.int64(1), info, kind="choice")["score"] == 1.0
    gold = {"numbers": np.array([1, 2]), "target": np.int64(3)}
    assert compute_score("x", "1+2", gold, kind="countdown")["score"] == 1.0


@pytest.mark.parametrize("gold", [None, " "])
def test_what_cannot_be_judged_raises_and_has_no_score(gold):
    with pytest.raises(VerifierError, match="bad_gold") as caught:
        compute_score("gsm8k", "4", gold, {"index": 17}, kind="exact")
    assert "example 17" in str(caught.value)


def test_a_wrong_kind_or_option_is_named():
    for arguments, word in (
        ({}, "kind"),
        ({"kind": "exakt"}, "exact"),
        ({"kind": "exact", "options": {"m": 1}}, r"options\.m"),
    ):
        with pytest.raises(ConfigError, match=word):
            compute_score("x", "4", "4", **arguments)


def test_the_calls_of_a_process_share_one_runner():
    def call():
        compute_score("x", "echo 1", "", kind="hostile_kinds:Commanded", options={"greeting": "a"})

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(adapter._RUNNERS) == 1
    compute_score("x", "4", "4", kind="exact", options={"numeric": True})
    compute_score("x", "4", "4", kind="exact", options={"numeric": False})
    assert len(adapter._RUNNERS) == 3


@pytest.mark.parametrize("path", ["pkg://verifiers.adapters.verl", adapter.__file__])
def test_verl_loads_it_and_its_reward_manager_calls_it(path):
    pytest.importorskip("verl")
    manager = load_manager(path, {"kind": "math", "options": {}})
    right, wrong = score(manager, r"so \boxed{\frac12}", "0.5"), score(manager, r"so \boxed{3}", "0.5")
    assert (right["reward_score"], wrong["reward_score"]) == (1.0, 0.0)
    assert right["reward_extra_info"]["acc"] == 1.0
    assert list(right["reward_extra_info"]) == list(wrong["reward_extra_info"])


def test_in_verl_what_cannot_be_judged_is_an_error_of_that_sample_only():
    pytest.importorskip("verl")
    manager = load_manager("pkg://verifiers.adapters.verl", {"kind": "exact"})
    with pytest.raises(VerifierError, match="bad_gold"):
        score(manager, "4", " ")
    assert score(manager, "4", "4")["reward_score"] == 1.0


class CharacterTokenizer:
    """One token per character: all that verl's reward manager asks of a tokenizer is `decode`."""

    def decode(self, ids, **_):
        return "".join(chr(i) for i in ids.tolist())


def load_manager(path, reward_kwargs):
    """The manager as verl makes it: its own loader, its own default reward manager."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import load_reward_manager

    function = {"path": path, "name": "compute_score", "reward_kwargs": reward_kwargs}
    manager = {"source": "register", "name": "naive", "module": None}
    reward = {"custom_reward_function": function, "reward_manager": manager}
    return load_reward_manager(OmegaConf.create({"reward": reward}), CharacterTokenizer())


def score(manager, response, gold):
    import numpy as np
    import torch
    from verl import DataProto

    ids = torch.tensor([[ord(character) for character in response]])
    data = DataProto.from_dict(
        tensors={"responses": ids, "attention_mask": torch.ones(1, 3 + ids.shape[1], dtype=torch.long)},
        non_tensors={
            "data_source": np.array(["own"], dtype=object),
            "reward_model": np.array([{"ground_truth": gold}], dtype=object),
            "extra_info": np.array([{"index": 0}], dtype=object),
        },
    )
    return asyncio.get_event_loop_policy().get_event_loop().run_until_complete(manager.run_single(data))
