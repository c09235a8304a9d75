"""Checkpoints: whole or not at all, exact, and readable by transformers alone."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.helpers import make_config, make_learner, random_trajectories, tokenizer, training_batch
from trainer.checkpoint import (
    checkpoint_step,
    list_checkpoints,
    load_checkpoint,
    prune,
    remove_partial,
    save_checkpoint,
)
from verifiers.errors import RunError

TIED = {"model.scratch": make_config().model.scratch.model_dump() | {"tie_embeddings": True}}
LORA = {"model.lora": {"rank": 4, "alpha": 8.0}}
KINDS = pytest.mark.parametrize("overrides", [{}, TIED, LORA], ids=["untied", "tied", "lora"])


def save(folder, step, learner, **state):
    return save_checkpoint(folder, step, learner, tokenizer(), state, {"note": "test"})


def train(learner, steps=2):
    return [learner.update(training_batch(random_trajectories(), seed=s)) for s in range(steps)]


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- exact -------------------------------------------------------


@KINDS
@pytest.mark.parametrize("kl", [0.0, 0.1], ids=["no reference", "reference"])
def test_a_restored_learner_continues_bit_for_bit(tmp_path, overrides, kl):
    overrides = overrides | {"objective.kl.coef": kl, "optim.warmup_steps": 5, "optim.schedule": "cosine"}
    learner = make_learner(overrides)
    train(learner)
    path = save(tmp_path, 2, learner, sampler={"at": 7})
    expected_metrics = train(learner, 3)
    restored = make_learner(overrides)
    for p in restored.model.parameters():
        if p.requires_grad:
            p.data.normal_()
    assert load_checkpoint(path, restored) == {"sampler": {"at": 7}}
    assert restored.optimizer_steps == 2
    assert train(restored, 3) == expected_metrics
    found = restored.weights()
    assert all(torch.equal(t, found[n]) for n, t in learner.weights().items())


def test_optimizer_moments_are_restored_exactly(tmp_path):
    learner, restored = make_learner(), make_learner()
    train(learner)
    load_checkpoint(save(tmp_path, 1, learner), restored)
    before, after = (m.optimizer.state_dict()["state"] for m in (learner, restored))
    assert before.keys() == after.keys() != set()
    for i, moments in before.items():
        assert moments.keys() >= {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(after[i][n])) for n, v in moments.items())


def test_every_random_state_is_restored(tmp_path):
    learner = make_learner()
    random.seed(3)
    random.gauss(0, 1)  # leaves a cached second number behind
    torch.manual_seed(4)
    path = save(tmp_path, 1, learner)
    expected = (random.gauss(0, 1), random.random(), torch.rand(3))
    random.seed(5)
    torch.manual_seed(6)
    load_checkpoint(path, learner)
    found = (random.gauss(0, 1), random.random(), torch.rand(3))
    assert found[:2] == expected[:2]
    assert torch.equal(found[2], expected[2])


def test_saving_changes_nothing_of_the_learner_or_the_random_state(tmp_path):
    a, b = make_learner(LORA), make_learner(LORA)
    state = torch.get_rng_state()
    save(tmp_path, 1, a)
    assert torch.equal(torch.get_rng_state(), state)
    assert a.policy.config._attn_implementation == "assay_packed"
    assert train(a) == train(b)


# ---- export ------------------------------------------------------


@KINDS
def test_the_export_loads_with_transformers_alone_and_gives_the_live_weights(tmp_path, overrides):
    learner = make_learner(overrides)
    train(learner)
    folder = save(tmp_path, 1, learner) / "hf"
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    live = learner.weights()
    found = loaded.state_dict()
    assert found.keys() == live.keys()
    assert all(torch.equal(t, found[n]) for n, t in live.items())
    twin = AutoModelForCausalLM.from_config(loaded.config, attn_implementation="sdpa").eval()
    twin.load_state_dict(live)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(loaded.eval()(ids).logits, twin(ids).logits)
    assert loaded.config.use_cache
    assert loaded.config.tie_word_embeddings == (overrides is TIED)


def test_the_exports_logits_equal_the_learners_log_probs(tmp_path):
    learner = make_learner(LORA)
    loaded = AutoModelForCausalLM.from_pretrained(save(tmp_path, 1, learner) / "hf")
    (t,) = random_trajectories(1, 1)
    logits = loaded(torch.tensor([t.prompt_ids + t.response_ids])).logits[0, len(t.prompt_ids) - 1 : -1]
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(t.response_ids)[:, None])[:, 0]
    torch.testing.assert_close(learner.logprobs([t])[0], expected.detach(), atol=1e-5, rtol=0)


def test_the_export_names_the_tokens_and_brings_the_tokenizer(tmp_path):
    folder = save(tmp_path, 1, make_learner()) / "hf"
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded("1+1=2")["input_ids"] == tokenizer()("1+1=2")["input_ids"]
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id in (2, [2])
    assert generation.pad_token_id == 0
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert "assay" not in (folder / "config.json").read_text()


# ---- atomic ------------------------------------------------------


def test_a_checkpoint_has_its_name_its_meta_and_no_partial_left(tmp_path):
    path = save(tmp_path, 20, make_learner())
    assert path == tmp_path / "step-000020"
    assert json.loads((path / "meta.json").read_text()) == {"step": 20, "note": "test"}
    assert list_checkpoints(tmp_path) == list(tmp_path.iterdir()) == [path]
    assert checkpoint_step(path) == 20


@pytest.mark.parametrize("crash", [KeyboardInterrupt, OSError])
def test_a_crash_before_the_rename_leaves_the_older_checkpoints_as_they_were(tmp_path, monkeypatch, crash):
    learner = make_learner()
    older = save(tmp_path, 1, learner)
    before = contents(older)
    train(learner, 1)

    def fail(self, target):
        raise crash(5, "input/output error") if crash is OSError else crash

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(RunError if crash is OSError else crash):
            save(tmp_path, 2, learner)
    assert list_checkpoints(tmp_path) == [older]
    assert contents(older) == before
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [older]


def test_a_full_disk_is_said_to_be_full_and_leaves_no_partial(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="disk is full") as caught:
        save(tmp_path, 3, make_learner())
    assert "step-000003" in str(caught.value)
    assert "checkpoint.keep_last" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bug_is_not_reported_as_a_disk_error(tmp_path, monkeypatch):
    def bug(*_, **__):
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(torch, "save", bug)
    with pytest.raises(RuntimeError, match="size mismatch"):
        save(tmp_path, 3, make_learner())


def test_a_step_saved_twice_is_written_once(tmp_path):
    """The same step of the same run has the same state, so nothing is deleted that a crash could lose."""
    learner = make_learner()
    path = save(tmp_path, 1, learner)
    written = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    assert save(tmp_path, 1, learner) == path
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == written
    assert list(tmp_path.iterdir()) == [path]


# ---- damage ------------------------------------------------------


def halve(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("state.pt", halve),
        ("state.pt", lambda p: p.write_bytes(b"")),
        ("state.pt", lambda p: p.write_bytes(b"not a checkpoint at all")),
        ("state.pt", lambda p: p.write_bytes(bytes(4096))),
        ("state.pt", lambda p: p.unlink()),
        ("hf/model.safetensors", halve),
        ("hf/model.safetensors", lambda p: p.write_bytes(b"")),
        ("hf/model.safetensors", lambda p: p.unlink()),
    ],
    ids=["state cut", "state empty", "state garbage", "state zeros", "state gone", "weights cut", "weights empty",
         "weights gone"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_an_error_that_names_it_and_leaves_the_learner_alone(tmp_path, file, damage):
    path = save(tmp_path, 1, make_learner({"seed": 1}))
    damage(path / file)
    learner = make_learner()
    before = {n: t.clone() for n, t in learner.weights().items()}
    with pytest.raises(RunError, match="cannot be read") as caught:
        load_checkpoint(path, learner)
    assert "step-000001" in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in learner.weights().items())


# ---- keeping -----------------------------------------------------


def folders(tmp_path, *steps):
    for step in steps:
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "meta.json").write_text("{}")


def kept(tmp_path):
    return [checkpoint_step(p) for p in list_checkpoints(tmp_path)]


@pytest.mark.parametrize(
    ("keep_last", "best", "expected"),
    [(2, None, [30, 1000000]), (1, 5, [5, 1000000]), (2, 30, [30, 1000000]), (9, None, [5, 20, 30, 1000000])],
)
def test_the_last_few_and_the_best_are_kept(tmp_path, keep_last, best, expected):
    folders(tmp_path, 5, 20, 30, 1000000)
    prune(tmp_path, keep_last, best)
    assert kept(tmp_path) == expected


def test_only_complete_checkpoints_are_listed_in_the_order_of_their_steps(tmp_path):
    folders(tmp_path, 1000000, 20, 3)
    (tmp_path / "step-000004").mkdir()  # without meta.json
    (tmp_path / ".partial-step-000005").mkdir()
    (tmp_path / "step-000006.bak").mkdir()
    assert kept(tmp_path) == [3, 20, 1000000]
    assert list_checkpoints(tmp_path / "nowhere") == []
