"""The memory estimate: every term by hand, the activations against what autograd really keeps."""

import dataclasses
import importlib
import pkgutil
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prm
from prm.signal import SOURCES, Source
from rollout.models import load_config, load_policy, load_tokenizer
from rollout.packing import TokenIds, pack
from tests.helpers import CPU, make_config, source_context
from trainer.calibrate import work
from trainer.compose import load_any
from trainer.config import Config
from trainer.fit import check_fit
from trainer.fit_config import FitConfig
from trainer.learner import Learner
from trainer.memory import (
    CPU_RESIDUE,
    MB,
    PROCESS_MB,
    Memory,
    ModelFacts,
    estimate,
    estimate_fit,
    layer_bytes_a_token,
    model_facts,
    planned_models,
)
from trainer.preflight import check, disk_need_mb
from verifiers.errors import ConfigError
from verifiers.options import parse_options
from verifiers.runner import Runner

P, LAYER, V, E, F, L = 1000 * MB, 100 * MB, 1024, 512, 1024, 8
FACTS = ModelFacts(
    parameters=P, layer_parameters=LAYER, vocab_size=V, hidden_size=E, intermediate_size=F, num_layers=L, num_heads=8,
    num_kv_heads=2, head_dim=64, tied=False, adapter_parameters=10 * MB, adapted_parameters=600 * MB,
)  # fmt: skip
OPTIM = {"lr": 1e-4}
VERIFY = {"train": {"prompts": 4, "steps": 1, "solutions_per_step": 4}, "optim": OPTIM}
OPTIONS: dict[str, list[dict[str, Any]]] = {  # of every source that has models, each way it can have them
    "implicit": [
        {"optim": OPTIM},
        {"optim": OPTIM, "reference": "moving"},
        {"update": "none", "weights": "FOLDER"},
    ],
    "token_credit": [{"optim": OPTIM}],
    "step_prm": [{"optim": OPTIM, "update_every": 1}, {"path": "FOLDER"}],
    "orm": [{"optim": OPTIM, "update_every": 1}, {"path": "FOLDER"}],
    "agreement": [{"version": "II", "votes": "boxed_text"}],
    "verify_rm": [VERIFY],
    "cooper": [{**VERIFY, "assistant": {"kind": "oracle"}}],
    "ensemble": [{"members": [{"kind": "verify_rm", **VERIFY}, {"kind": "verify_rm", **VERIFY}]}],
    "hybrid": [{"model": {"kind": "verify_rm", **VERIFY}}],
}
BF16 = {"model.compute_dtype": "bfloat16", "rollout.dtype": "bfloat16"}
LORA = {"model.lora": {"rank": 4, "alpha": 8.0}}


def memory(overrides: dict[str, Any] | None = None, ranks: int = 1, device: str = "cpu", **facts: Any) -> Memory:
    return estimate(make_config(overrides), dataclasses.replace(FACTS, **facts), ranks, device)


def updates(found: Memory, name: str = "policy") -> dict[str, dict[str, float]]:
    return {k.rpartition(", ")[2]: v for k, v in found.phases.items() if k.startswith(f"update of {name},")}


# ---- weights, optimizer, models beside ---------------------------


def test_full_float32_training_holds_weights_and_two_moments_always_and_gradients_in_the_update() -> None:
    found = memory()
    assert found.resident == {"weights": 4000, "optimizer": 8000}
    assert updates(found)["gradients"]["gradients"] == 4000


def test_mixed_precision_keeps_a_copy_of_the_weights_for_the_backward_pass() -> None:
    found = memory({**BF16, "objective.kl.coef": 0.1})
    assert found.resident == {"weights": 4000, "optimizer": 8000, "reference": 2000}
    assert updates(found)["logits"]["compute_copy"] == 2000
    assert found.phases["rollout"]["engine_weights"] == 2000
    assert "compute_copy" not in updates(memory({**BF16, "model.gradient_checkpointing": True}))["logits"]


def test_lora_trains_the_adapters_and_merges_them_for_the_engine() -> None:
    found = memory({**LORA, "objective.kl.coef": 0.1})
    assert found.resident == {"weights": 4000 + 40, "optimizer": 80}  # the frozen base serves as the reference
    assert updates(found)["gradients"]["gradients"] == 40
    assert found.phases["weights to the engine"] == {"engine_weights": 4000, "merged_weights": 4 * 600 / L}


def test_the_adapters_are_counted_from_the_layers_they_are_put_on() -> None:
    config = make_config(LORA)
    facts = model_facts(load_config(config.model, load_tokenizer(config.model)), config.model.lora)
    model = load_policy(config.model, 0, CPU).model
    assert facts.adapter_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert facts.parameters == sum(p.numel() for p in model.parameters()) - facts.adapter_parameters
    assert facts.num_layers * facts.layer_parameters + facts.root_parameters == facts.parameters


def test_a_critic_is_a_model_with_moments_and_updates_of_its_own() -> None:
    critic = {"critic": {"optim": OPTIM}, "objective.advantage": {"kind": "gae"}}
    found = memory(critic)
    assert found.resident["critic"] == 12000
    assert updates(found, "critic")["gradients"]["gradients"] == 4000
    shared = memory({"critic": {"trunk": "shared"}, "objective.advantage": {"kind": "gae"}})
    assert shared.resident["weights"] == pytest.approx(4000 + 3 * 4 * (E + 1) / MB)


def test_models_of_sources_are_counted_trained_with_moments_and_frozen_without() -> None:
    sources = [{"kind": "rule"}, {"kind": "implicit", "optim": OPTIM}]
    found = memory({"sources": sources, "objective.advantage": {"kind": "prime_rloo"}})
    assert found.resident["implicit/prm"] == 12000
    assert found.resident["implicit/reference"] == 4000
    assert updates(found, "implicit/prm")
    assert not updates(found, "implicit/reference")


def test_stale_rollouts_keep_a_copy_of_the_weights_and_overlap_keeps_the_engine() -> None:
    truncated = {"objective.mismatch": {"kind": "truncated"}}
    stale = memory({**truncated, "train.max_stale_steps": 2})
    assert stale.resident["stale_weights"] == 4000
    ahead = memory({**truncated, "train.overlap": True})
    assert ahead.resident["engine_weights"] == 4000  # beside the update
    assert "rollout" not in ahead.phases


def test_the_engine_has_a_head_of_its_own_where_embeddings_are_tied() -> None:
    assert memory(tied=True).phases["rollout"]["engine_weights"] == 4000 + 4 * V * E / MB


# ---- what a micro-batch and the cache take ---------------------------


def test_the_cache_has_a_column_for_every_response_token_and_a_prompt_once() -> None:
    cached = 8 * (16 + 8) + 4 * 32  # 8 rows of 16 tokens and 8 of slack; 4 prompts
    assert memory().phases["rollout"]["kv_cache"] == pytest.approx(cached * L * 2 * 128 * 4 / MB)


def test_the_logits_are_those_of_a_chunk_twice() -> None:
    tokens = 4 * 48
    found = updates(memory({"train.max_tokens_per_microbatch": tokens, "train.logprob_chunk_tokens": 20}))
    assert found["logits"]["logits"] == pytest.approx(2 * 20 * V * 4 / MB)
    few = updates(memory({"train.max_tokens_per_microbatch": tokens, "train.logprob_chunk_tokens": 1024}))
    assert few["logits"]["logits"] == pytest.approx(2 * 4 * 16 * V * 4 / MB)  # no more than response tokens
    assert few["gradient of logits"]["logits"] == pytest.approx(4 * 16 * V * 4 / MB)


def test_gradients_wait_beside_the_activations_only_with_several_micro_batches() -> None:
    assert "gradients" not in updates(memory())["logits"]
    assert updates(memory({"train.max_tokens_per_microbatch": 96}))["logits"]["gradients"] == 4000


def test_checkpointing_keeps_the_input_of_each_layer_and_one_layer() -> None:
    plain, checkpointed = updates(memory()), updates(memory({"model.gradient_checkpointing": True}))
    tokens = 8 * 48
    ends = 4 * (3 * E + 2 * 64) * tokens
    layer = layer_bytes_a_token(FACTS, "float32", False, None) * tokens
    assert plain["logits"]["activations"] == pytest.approx((L * layer + ends) / MB)
    assert checkpointed["logits"]["activations"] == pytest.approx((L * 4 * E * tokens + ends) / MB)
    wide = 3 * F * tokens * 4
    assert checkpointed["layers"]["activations"] == pytest.approx((L * 4 * E * tokens + ends + layer + wide) / MB)


def kept_bytes(config: Config) -> tuple[float, int]:
    """(bytes that autograd keeps of a forward pass beside the parameters, tokens)."""
    learner = Learner(config, load_policy(config.model, 0, CPU), CPU)
    sequence = TokenIds(list(range(5, 25)), list(range(30, 74)))
    batch = pack([sequence] * 4, 4096)[0]
    known = {p.untyped_storage().data_ptr() for p in learner.model.parameters()}
    shapes = {tuple(p.shape) for p in learner.model.parameters()}
    shapes |= {tuple(reversed(shape)) for shape in shapes}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known and tuple(tensor.shape) not in shapes:  # nor a cast of one
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = learner.packed(batch)
    assert outputs[0] is not None
    return sum(t.untyped_storage().nbytes() for t in kept.values()), batch.ids_T.numel()


@pytest.mark.parametrize(
    ("overrides", "precision"),
    [
        ({}, "float32"),
        ({"num_kv_heads": 4}, "float32"),
        (BF16, "autocast"),
        ({**BF16, "model.master_dtype": "bfloat16"}, "half"),
        (LORA, "float32"),
        ({**LORA, **BF16}, "half"),
        ({"model.lora": {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "v_proj", "down_proj"]}}, "float32"),
    ],
)
def test_the_activations_of_a_layer_are_what_autograd_keeps(overrides: dict[str, Any], precision: Any) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_heads": 4, "num_kv_heads": 2, "max_positions": 256}
    overrides = dict(overrides)
    sizes |= {key: overrides.pop(key) for key in ("num_kv_heads",) if key in overrides}
    configs = [make_config({**overrides, "model.scratch": {**sizes, "num_layers": layers}}) for layers in (2, 3)]
    (two, tokens), (three, _) = map(kept_bytes, configs)
    config = configs[0]
    facts = model_facts(load_config(config.model, load_tokenizer(config.model)), config.model.lora)
    expected = layer_bytes_a_token(facts, precision, False, config.model.lora)
    assert (three - two) / tokens == pytest.approx(expected, rel=0.02)


# ---- ranks -------------------------------------------------------------


def test_ranks_share_weights_gradients_and_moments_but_not_the_engine() -> None:
    one, four = memory(BF16, 1, "cuda"), memory(BF16, 4, "cuda")
    for name in ("weights", "optimizer"):
        assert four.resident[name] == one.resident[name] / 4
    assert updates(four)["gradients"]["gradients"] == 1000
    assert four.phases["rollout"]["engine_weights"] == one.phases["rollout"]["engine_weights"] == 2000
    one_at_a_time = (FACTS.head_parameters + LAYER) * 4 / MB
    assert four.phases["weights to the engine"]["gathered_weights"] == pytest.approx(one_at_a_time)


def test_fsdp_gathers_two_layers_and_the_rest_and_the_gradients_of_one() -> None:
    root = P - L * LAYER
    found = updates(memory(BF16, 4, "cuda"))["logits"]
    assert found["gathered_weights"] == pytest.approx(((root + 2 * LAYER) * 2 + (root + LAYER) * 4) / MB)
    held = updates(memory({**BF16, "hardware.distributed.reshard_after_forward": False}, 4, "cuda"))["logits"]
    assert held["gathered_weights"] == pytest.approx((P * 2 + (root + LAYER) * 4) / MB)


def test_replicas_divide_over_fewer_ranks_and_offload_moves_to_the_host() -> None:
    assert memory({"hardware.distributed.replicas": 2}, 4, "cuda").resident["weights"] == 2000
    found = memory({"hardware.distributed.offload": True}, 4, "cuda")
    assert found.resident == {}
    assert found.host["optimizer"] == 2000
    assert found.host["gradients"] == 1000


@given(ranks=st.sampled_from([1, 2, 4, 8]), tokens=st.integers(48, 4096))
def test_more_ranks_never_need_more_and_more_tokens_never_less(ranks: int, tokens: int) -> None:
    def peak(tokens: int, ranks: int) -> float:
        batch = {"rollout.prompts_per_step": 2048, "train.max_tokens_per_microbatch": tokens}  # several micro-batches
        found = memory({**BF16, **batch}, max(2, ranks), "cuda")
        return sum(found.resident.values()) + max(sum(v.values()) for v in updates(found).values())

    assert peak(tokens, 2 * ranks) <= peak(tokens, ranks) + 1e-6
    assert peak(tokens + 100, ranks) >= peak(tokens, ranks) - 1e-6


def test_ranks_that_the_run_would_refuse_are_an_error() -> None:
    with pytest.raises(ConfigError, match="replicas"):
        memory({"hardware.distributed.replicas": 3}, 4)


@pytest.mark.parametrize(("device", "gpus", "text"), [("cpu", 8, "hardware=gpu"), ("cuda", 0, "at least 1"),
                                                      ("cuda", 16, "8 trajectories")])  # fmt: skip
def test_gpus_that_the_profile_has_not_or_that_have_nothing_to_do_are_an_error(
    device: str, gpus: int, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        check(make_config({"hardware.device": device}), gpus)


# ---- reward models that a recipe trains ----------------------------

FIT = ["model.compute_dtype=bfloat16", "hardware.device=cuda"]


def fit_memory(head: Any = "scalar", ranks: int = 1, *changes: str, tied: bool = False) -> Memory:
    config = load_any("verify_rm_chain", [*FIT, "train.max_tokens_per_microbatch=512", *changes])
    assert isinstance(config, FitConfig)
    return estimate_fit(config, dataclasses.replace(FACTS, tied=tied), head, step_tokens=2048, longest=128, ranks=ranks)


def test_a_reward_model_of_one_number_has_neither_logits_nor_a_head_of_its_own() -> None:
    found, writes = fit_memory(), fit_memory("lm")
    head = V * E * 4 / MB
    assert writes.resident == {"weights": 4000, "optimizer": 8000}
    assert found.resident == {"weights": 4000 - head, "optimizer": 8000 - 2 * head}
    assert fit_memory(tied=True).resident == writes.resident  # a tied head is the embedding, which stays
    assert set(updates(found, "the reward model")) == {"layers", "gradients"}
    assert set(updates(writes, "the reward model")) == {"logits", "gradient of logits", "layers", "gradients"}


def test_ranks_share_the_examples_and_the_weights_of_a_reward_model() -> None:
    one, four = fit_memory("lm"), fit_memory("lm", 4)
    assert four.resident["weights"] == one.resident["weights"] / 4
    assert "gradients" in updates(one, "the reward model")["layers"]
    assert "gradients" not in updates(four, "the reward model")["layers"]  # one micro-batch each
    offloaded = fit_memory("lm", 4, "hardware.distributed.offload=true")
    assert offloaded.resident == {}
    assert offloaded.host == {"weights": 1000, "optimizer": 2000, "gradients": 1000}
    with pytest.raises(ConfigError, match="replicas"):
        fit_memory("lm", 4, "hardware.distributed.replicas=3")


def test_check_prints_the_memory_of_a_rank_that_trains_a_reward_model() -> None:
    config = load_any("verify_rm_chain", [*FIT, "data.train.count=100", "data.eval=[]", "eval.every_steps=null"])
    assert isinstance(config, FitConfig)
    derived = check_fit(config, gpus=4).derived
    assert derived["ranks"] == 4
    total = derived["memory_total_mb"]
    assert isinstance(total, float)
    assert 600 < total < 700
    with pytest.raises(ConfigError, match="hardware=gpu"):
        check_fit(config.model_copy(update={"hardware": make_config().hardware}), gpus=4)


# ---- the peak ------------------------------------------------------------


def test_the_peak_is_the_process_what_is_always_there_and_the_fullest_phase() -> None:
    found = memory()
    assert found.process == PROCESS_MB["cpu"]
    sums = {name: sum(terms.values()) for name, terms in found.phases.items()}
    update = max(v for k, v in sums.items() if k.startswith("update"))
    rest = max(v for k, v in sums.items() if not k.startswith("update"))
    assert found.slack == pytest.approx(CPU_RESIDUE * min(update, rest))
    assert found.total == pytest.approx(found.process + 12000 + max(update, rest) + found.slack)
    assert sums[found.fullest] == max(sums.values())


# ---- sources declare their models ----------------------------------


def registered() -> list[str]:
    for module in pkgutil.walk_packages(prm.__path__, "prm."):
        if "bench" not in module.name:
            importlib.import_module(module.name)
    return sorted(SOURCES.names())


def with_models() -> list[str]:
    return [kind for kind in registered() if SOURCES.get(kind, key="kind").models is not Source.models]


@pytest.mark.parametrize("kind", with_models())
def test_a_source_declares_the_models_that_it_builds(kind: str, tmp_path: Any) -> None:
    source = SOURCES.get(kind, key="kind")
    assert kind in OPTIONS, f"add options of '{kind}' to OPTIONS here, so that its planned_models can be compared"
    config = make_config()
    load_policy(config.model, 0, CPU).model.save_pretrained(tmp_path)
    runner = Runner("exact", {})
    try:
        for values in OPTIONS[kind]:
            values = {k: str(tmp_path) if v == "FOLDER" else v for k, v in values.items()}
            options = parse_options(source.Options, values, "sources.0")
            built = source(options, source_context(runner, config)).models()
            expected = {name: "frozen" if model.optimizer is None else "trained" for name, model in built.items()}
            assert source.planned_models(options) == expected
    finally:
        runner.close()


def test_a_source_without_models_plans_none() -> None:
    assert planned_models(make_config()) == {}


# ---- disk and time ------------------------------------------------------


def test_checkpoints_hold_the_models_of_sources_too() -> None:
    plain = disk_need_mb(make_config(), FACTS)
    assert plain == 64 + 3 * 3 * 4000
    sources = [{"kind": "rule"}, {"kind": "implicit", "optim": OPTIM}]
    prime = make_config({"sources": sources, "objective.advantage": {"kind": "prime_rloo"}})
    assert disk_need_mb(prime, FACTS) - plain == 3 * 4 * 4000


def test_the_work_of_a_step_counts_every_model_and_pass() -> None:
    tokens = 8 * 48
    assert work(make_config()).learnt == tokens
    assert work(make_config()).decoded == 8 * 16
    several = work(make_config({"train.epochs_per_batch": 2, "objective.kl.coef": 0.1}))
    assert (several.learnt, several.forward) == (2 * tokens, 2 * tokens)  # old log-probs and the reference's
    sources = [{"kind": "rule"}, {"kind": "implicit", "optim": OPTIM}]
    prime = work(make_config({"sources": sources, "objective.advantage": {"kind": "prime_rloo"}}), eval_examples=3)
    assert (prime.learnt, prime.forward) == (2 * tokens, 2 * tokens)
    assert prime.evaluation == 2 * 3 * 4 * 16


# ---- against measurement -------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small, one micro-batch", "LoRA"])
def test_the_estimate_is_within_15_percent_of_the_measured_peak(name: str) -> None:
    from benchmarks.memory import LIMIT, compare, measure

    assert abs(compare(name, measure(name, threads=1))["error"]) <= LIMIT
