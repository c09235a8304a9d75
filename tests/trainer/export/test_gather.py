"""What the exported folder holds: read back by plain transformers, in a process that does not know assay."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaForSequenceClassification,
)

from prm.cotrained import CoTrained
from rollout.models import read_weights
from rollout.packing import TokenIds
from tests.helpers import model_setup, sharpen, tiny_architecture
from trainer.compose import load_resolved
from trainer.export.check import sequences_of
from trainer.export.gather import shard_bytes
from verifiers.errors import ConfigError, ModelError, RunError

CRITIC = "objective=ppo"
SHARED = "objective=ppo_shared"
PRIME = ("prime_chain", "rollout.keep.pass_rate=null")


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "assay" / "export.json").read_text())


def in_plain_python(code: str, **names: Any) -> Any:
    """What `code` prints as JSON, in a fresh interpreter in which assay cannot be imported, installed or not."""
    head = """
import json, sys
class NoAssay:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("data", "prm", "recipes", "rollout", "trainer", "verifiers"):
            raise ModuleNotFoundError(f"no module named {name!r}: assay is not there")
sys.meta_path.insert(0, NoAssay)
import torch
"""
    head += "".join(f"{name} = {value!r}\n" for name, value in names.items())
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-I", "-c", head + code], cwd="/", env=environment, capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def trained_logp(run: Path, sequences: list[TokenIds], step: int = 2) -> list[list[float]]:
    """By the trainer's own packed forward, from the checkpoint."""
    config = load_resolved(run / "resolved.yaml")
    model = CoTrained(model_setup(config), "lm", None)
    model.load(run / "checkpoints" / f"step-{step:06d}" / "hf", {})
    return [logp_T.tolist() for logp_T in model.outputs(sequences)]


# ---- the policy --------------------------------------------------


def test_a_process_without_assay_loads_the_policy_and_gives_the_trainers_logprobs(runs, export):
    run = runs("quickstart")
    folder = export(run)
    sequences = sequences_of(run, load_resolved(run / "resolved.yaml"))
    found = in_plain_python(
        """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(folder)
out = []
for prompt, response in sequences:
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([prompt + response])).logits[0], -1)
    out.append([float(logp[len(prompt) - 1 + t, token]) for t, token in enumerate(response)])
print(json.dumps(out))
""",
        folder=str(folder),
        sequences=[(s.prompt_ids, s.response_ids) for s in sequences],
    )
    for a, b in zip(found, trained_logp(run, sequences), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_weights_are_the_checkpoints_bit_for_bit(runs, export):
    run = runs("quickstart")
    folder = export(run)
    saved = read_weights(run / "checkpoints" / "step-000002" / "hf")
    found = read_weights(folder)
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[n], saved[n]) for n in saved)


def test_an_untied_head_is_exported_too(runs, export):
    folder = export(runs("quickstart", "model.scratch.tie_embeddings=false"))
    assert "lm_head.weight" in read_weights(folder)


def test_no_shard_is_larger_than_asked_and_the_index_has_the_total(runs, export):
    folder = export(runs("quickstart"), "--max-shard-size", "300KB")
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {shard.name: load_file(shard) for shard in shards}
    sizes = [sum(t.numel() * t.element_size() for t in held.values()) for held in tensors.values()]
    assert len(shards) > 5
    assert max(sizes) <= 300_000
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"] == {name: file for file, held in tensors.items() for name in held}
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) * 4 == sum(sizes)


@pytest.mark.parametrize(("size", "expected"), [("5GB", 5_000_000_000), ("1.5 mb", 1_500_000), ("300KB", 300_000)])
def test_sizes_are_decimal(size, expected):
    assert shard_bytes(size) == expected


@pytest.mark.parametrize("size", ["5", "5GiB", "-5GB", "0GB", "GB"])
def test_what_is_not_a_size_is_refused(size):
    with pytest.raises(ConfigError, match="not a size"):
        shard_bytes(size)


def test_tokenizer_template_and_generation_config_are_the_checkpoints(run, export):
    saved = run / "checkpoints" / "step-000002" / "hf"
    (saved / "chat_template.jinja").write_text("{{ messages[0]['content'] }}|")
    folder = export(run)
    a, b = AutoTokenizer.from_pretrained(saved), AutoTokenizer.from_pretrained(folder)
    assert a.get_vocab() == b.get_vocab()
    assert b.apply_chat_template([{"role": "user", "content": "1+1="}], tokenize=False) == "1+1=|"
    assert GenerationConfig.from_pretrained(folder).to_dict() == GenerationConfig.from_pretrained(saved).to_dict()


def test_bfloat16_is_rounded_once_and_said(runs, export):
    folder = export(runs("quickstart"), "--dtype", "bfloat16")
    facts = manifest(folder)
    assert facts["logits"]["rounding"] > 1e-3 > facts["logits"]["largest_difference"]
    assert {t.dtype for t in read_weights(folder).values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    assert "`bfloat16` (trained in `float32` masters" in (folder / "README.md").read_text()


def test_the_same_checkpoint_gives_the_same_bytes(runs, export):
    a, b = (export(runs("quickstart"), name=name) for name in ("a", "b"))
    assert {p.relative_to(a): p.read_bytes() for p in a.rglob("*") if p.is_file()} == {
        p.relative_to(b): p.read_bytes() for p in b.rglob("*") if p.is_file()
    }


# ---- LoRA --------------------------------------------------------


def test_lora_is_merged_in_one_dtype(lora_run, export, base):
    folder = export(lora_run)
    merged, before = read_weights(folder), read_weights(base)
    assert merged.keys() == before.keys()
    assert any(not torch.equal(merged[n], before[n]) for n in before)
    assert manifest(folder)["logits"]["largest_difference"] < 1e-4
    assert "LoRA merged into the base" in (folder / "README.md").read_text()


def test_an_adapter_on_its_base_is_the_merged_model(lora_run, export, base):
    from peft import PeftModel

    folder = export(lora_run, "--lora", "adapter", "--base-model", "org/base", name="adapter")
    assert not (folder / "config.json").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    head = (folder / "README.md").read_text()
    assert "base_model_relation: adapter" in head
    assert "library_name: peft" in head
    merged = AutoModelForCausalLM.from_pretrained(export(lora_run, name="merged"))
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    ids = torch.arange(5, 25)[None]
    plain = AutoModelForCausalLM.from_pretrained(base)(ids).logits
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, atol=1e-5, rtol=0)
    assert float((plain - merged(ids).logits).detach().abs().max()) > 1e-3


def test_an_adapter_on_a_base_in_bfloat16_is_compared_on_that_base(runs, export, base):
    run = runs("quickstart", "model.scratch=null", f"model.path={base}", "model.tokenizer=null",
               "model.lora={rank: 4, alpha: 8}", "warm_start=null", "optim.lr=0.05",
               "model.compute_dtype=bfloat16", "rollout.dtype=bfloat16")  # fmt: skip
    folder = export(run, "--lora", "adapter", "--base-model", "org/base")
    assert manifest(folder)["logits"]["largest_difference"] < 1e-5


def test_an_adapter_without_a_named_base_is_refused(lora_run, export):
    with pytest.raises(ModelError, match="must name the model it belongs on"):
        export(lora_run, "--lora", "adapter")


def test_a_run_without_lora_has_no_adapter(runs, export):
    with pytest.raises(ModelError, match="has no adapter"):
        export(runs("quickstart"), "--lora", "adapter")


# ---- models beside the policy ------------------------------------


@pytest.mark.parametrize("objective", [CRITIC, SHARED])
def test_a_critic_gives_its_values_at_the_state_before_each_token(runs, export, objective):
    run = runs("quickstart", objective)
    folder = export(run, "--what", "critic")
    model, info = AutoModelForTokenClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    checkpoint = run / "checkpoints" / "step-000002"
    if objective == CRITIC:
        live = CoTrained(model_setup(load_resolved(run / "resolved.yaml")), "scalar", None)
        live.load(checkpoint / "critic", {})
    else:
        head = torch.load(checkpoint / "state.pt", weights_only=True)["learner"]["value_head"]
        live = CoTrained(model_setup(load_resolved(run / "resolved.yaml")), "scalar", None)
        trunk = {n: t for n, t in read_weights(checkpoint / "hf").items() if n.startswith("model.")}
        live.start_from(trunk)
        live.head.load_state_dict(head)
    sequences = sequences_of(run, load_resolved(run / "resolved.yaml"))
    for s, values_T in zip(sequences, live.outputs(sequences), strict=True):
        numbers = model(torch.tensor([s.prompt_ids + s.response_ids])).logits[0, :, 0]
        n = len(s.prompt_ids)
        torch.testing.assert_close(numbers[n - 1 : -1], values_T, atol=1e-5, rtol=0)
        assert float(values_T.abs().max()) > 0


def test_a_prm_is_found_by_its_name_its_source_or_both(runs, export):
    run = runs(*PRIME)
    checkpoint = run / "checkpoints" / "step-000002"
    saved = read_weights(checkpoint / "sources" / "implicit" / "prm")
    for what in ("prm", "implicit/prm"):
        found = read_weights(export(run, "--what", what))
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[n], saved[n]) for n in saved)
    policy = read_weights(checkpoint / "hf")
    assert any(not torch.equal(saved[n], policy[n]) for n in saved)


def test_a_scorer_of_responses_is_a_token_classifier(runs, export):
    folder = export(runs("orm_chain", "sources.1.train={prompts: 8, steps: 2, solutions_per_step: 4}"), "--what", "orm")
    assert AutoModelForTokenClassification.from_pretrained(folder).num_labels == 1
    assert "the probability that it is right" in (folder / "README.md").read_text()
    assert AutoTokenizer.from_pretrained(folder).get_vocab()


def test_a_sequence_classifier_of_a_source_is_exported_with_its_head(run, export):
    folder = run / "checkpoints" / "step-000002" / "sources" / "rule" / "verify_rm"
    config = tiny_architecture()
    config.num_labels = 1
    sharpen(LlamaForSequenceClassification(config)).save_pretrained(folder)
    out = export(run, "--what", "verify_rm")
    a, b = (
        AutoModelForSequenceClassification.from_pretrained(f)(torch.arange(5, 20)[None]).logits for f in (folder, out)
    )
    assert torch.equal(a, b)
    assert "pipeline_tag: text-classification" in (out / "README.md").read_text()


# ---- choosing ----------------------------------------------------


def test_an_unknown_model_names_the_nearest(runs, export):
    with pytest.raises(ModelError, match="did you mean 'policy'"):
        export(runs("quickstart"), "--what", "polici")


def test_a_name_of_two_models_asks_which(run, export):
    for source in ("a", "b"):
        shutil.copytree(run / "checkpoints" / "step-000002" / "hf",
                        run / "checkpoints" / "step-000002" / "sources" / source / "prm")  # fmt: skip
    with pytest.raises(ModelError, match=r"means several models") as error:
        export(run, "--what", "prm")
    assert "a/prm, b/prm" in str(error.value)


def test_no_such_run_names_the_nearest(runs, export):
    run = runs("quickstart")
    with pytest.raises(RunError, match="did you mean 'small'"):
        export(run.parent / "smal")


def test_a_run_without_checkpoints_is_refused(run, export):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="has no checkpoint"):
        export(run)


def test_a_step_that_is_not_kept_names_those_that_are(runs, export):
    with pytest.raises(RunError, match="no checkpoint of step 7") as error:
        export(runs("quickstart"), "--step", "7")
    assert "0 or 1 or 2" in str(error.value)
    with pytest.raises(ConfigError, match="neither a number nor"):
        export(runs("quickstart"), "--step", "last")


def test_best_is_the_first_checkpoint_of_the_best_evaluation(run, runs, export):
    with pytest.raises(ConfigError, match="does not say what is best"):
        export(run, "--step", "best")
    text = (run / "resolved.yaml").read_text().replace("best_by: null", "best_by: chain/avg@4")
    (run / "resolved.yaml").write_text(text)
    newest = run / "checkpoints" / "step-000002" / "meta.json"
    meta = json.loads(newest.read_text())
    for step, value in (("0", 0.1), ("1", 0.5), ("2", 0.5)):
        meta["evaluations"][step]["chain/avg@4"]["value"] = value
    newest.write_text(json.dumps(meta))
    assert manifest(export(run, "--step", "best"))["step"] == 1


def test_a_folder_that_is_no_export_is_not_replaced(runs, export, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="not an export"):
        export(runs("quickstart"))
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    export(runs("quickstart"), name="again")
    export(runs("quickstart"), name="again")


def test_a_full_disk_is_said_before_anything_is_written(runs, export, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.records.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 2**20))
    with pytest.raises(RunError, match=r"1 MB are free, and the run needs \d+ MB"):
        export(runs("quickstart"))
    assert not list(tmp_path.iterdir())


# ---- vLLM --------------------------------------------------------


@pytest.mark.slow
def test_vllm_loads_the_folder(runs, export):
    pytest.importorskip("vllm", reason="vLLM is not installed in this Python")
    from vllm import LLM, SamplingParams, TokensPrompt

    run = runs("quickstart")
    sequences = sequences_of(run, load_resolved(run / "resolved.yaml"))
    llm = LLM(str(export(run)), dtype="float32", max_model_len=128, enforce_eager=True)
    greedy = SamplingParams(temperature=0, max_tokens=1, logprobs=1)
    outputs = llm.generate([TokensPrompt(prompt_token_ids=s.prompt_ids) for s in sequences], greedy)
    model = AutoModelForCausalLM.from_pretrained(export(run))
    for s, output in zip(sequences, outputs, strict=True):
        assert output.outputs[0].token_ids[0] == int(model(torch.tensor([s.prompt_ids])).logits[0, -1].argmax())
