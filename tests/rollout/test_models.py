"""Policies and tokenizers: what is loaded, in which form, and what is refused before compute."""

import json
import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rollout import attention
from rollout.models import load_config, load_policy, load_tokenizer
from tests.helpers import CHAR_TOKENIZER, CPU, EOS, VOCABULARY, make_config, make_learner, tiny_model, tokenizer
from verifiers.errors import ModelError


def tokenizer_folder(tmp_path, **changes):
    """The character tokenizer with entries of its config changed (None removes one)."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(CHAR_TOKENIZER, folder)
    file = folder / "tokenizer_config.json"
    config = {k: v for k, v in (json.loads(file.read_text()) | changes).items() if v is not None}
    file.write_text(json.dumps(config))
    return str(folder)


def saved_model(tmp_path, model=None, with_tokenizer=True):
    folder = tmp_path / "model"
    (model or tiny_model()).save_pretrained(folder)
    if with_tokenizer:
        tokenizer().save_pretrained(folder)
    return str(folder)


def options(**changes):
    return make_config({f"model.{k}": v for k, v in changes.items()}).model


def from_path(path, **changes):
    return options(scratch=None, path=path, **({"tokenizer": None} | changes))


# ---- tokenizers --------------------------------------------------


def test_a_tokenizer_without_pad_token_is_refused_with_the_key_to_set(tmp_path):
    folder = tokenizer_folder(tmp_path, pad_token=None)
    with pytest.raises(ModelError, match="no pad token") as caught:
        load_tokenizer(options(tokenizer=folder))
    assert "model.pad_token=" in str(caught.value)


@pytest.mark.parametrize("token", ["<bos>", "<unk>", "<eos>", "~"])
def test_any_existing_token_can_be_named_as_pad_token(tmp_path, token):
    loaded = load_tokenizer(options(tokenizer=tokenizer_folder(tmp_path, pad_token=None), pad_token=token))
    assert loaded.pad_token == token
    assert loaded.pad_token_id == tokenizer().convert_tokens_to_ids(token)


def test_a_pad_token_that_does_not_exist_is_refused_rather_than_added():
    with pytest.raises(ModelError, match="'<padd>' is not a token"):
        load_tokenizer(options(pad_token="<padd>"))


def test_a_tokenizer_without_end_token_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no end-of-sequence"):
        load_tokenizer(options(tokenizer=tokenizer_folder(tmp_path, eos_token=None)))


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"model\.tokenizer") as caught:
        load_tokenizer(options(tokenizer=str(tmp_path / "nowhere")))
    assert "nowhere" in str(caught.value)


# ---- models ------------------------------------------------------


def test_a_scratch_model_has_the_sizes_asked_for_and_is_ready_to_train():
    policy = load_policy(options(), 0, CPU)
    c = policy.config
    assert (c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads) == (32, 2, 4, 2)
    assert (c.vocab_size, c.eos_token_id, c.pad_token_id) == (VOCABULARY, EOS, 0)
    assert policy.eos_ids == (EOS,)
    assert policy.model.training
    assert policy.model.config._attn_implementation == attention.NAME
    assert all(p.requires_grad for p in policy.model.parameters())


def test_scratch_weights_depend_on_the_seed_alone():
    torch.rand(3)
    a, b, c = (load_policy(options(), seed, CPU).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(t, b[n]) for n, t in a.items())
    assert any(not torch.equal(t, c[n]) for n, t in a.items())


def test_a_model_from_a_folder_is_the_saved_one_in_packed_form(tmp_path):
    model = tiny_model("qwen3")
    policy = load_policy(from_path(saved_model(tmp_path, model)), 0, CPU)
    assert policy.model.config._attn_implementation == attention.NAME
    assert all(torch.equal(t, policy.model.state_dict()[n]) for n, t in model.state_dict().items())


def test_every_end_token_of_the_generation_config_ends_a_response(tmp_path):
    model = tiny_model()
    model.generation_config.eos_token_id = [2, 40, 7]
    assert load_policy(from_path(saved_model(tmp_path, model)), 0, CPU).eos_ids == (2, 7, 40)


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"model\.path"):
        load_config(from_path(str(tmp_path / "nowhere")), tokenizer())


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    path = saved_model(tmp_path, tiny_model(vocabulary=60), with_tokenizer=False)
    with pytest.raises(ModelError, match="100 tokens, the model only 60"):
        load_config(from_path(path, tokenizer=str(CHAR_TOKENIZER)), tokenizer())


def test_capped_logits_are_refused(tmp_path):
    config = LlamaConfig(vocab_size=100, final_logit_softcapping=30.0)
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="final_logit_softcapping"):
        load_config(from_path(str(tmp_path), tokenizer=str(CHAR_TOKENIZER)), tokenizer())


@pytest.mark.parametrize(
    ("compute", "master"), [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]
)
def test_weights_are_in_the_master_dtype(compute, master):
    policy = load_policy(options(compute_dtype=compute, master_dtype=master), 0, CPU)
    assert {str(p.dtype) for p in policy.model.parameters()} == {f"torch.{master}"}


# ---- LoRA -----------------------------------------------------------------------------------------------------------


def test_lora_trains_the_adapter_in_the_master_dtype_over_a_frozen_base_in_the_compute_dtype():
    policy = load_policy(options(compute_dtype="bfloat16", lora={"rank": 4, "alpha": 8.0}), 0, CPU)
    kinds = {("lora_" in n, p.requires_grad, p.dtype) for n, p in policy.model.named_parameters()}
    assert kinds == {(True, True, torch.float32), (False, False, torch.bfloat16)}
    assert isinstance(policy.model.get_base_model(), LlamaForCausalLM)


def test_a_layer_that_lora_cannot_find_is_named():
    with pytest.raises(ModelError, match=r"model\.lora\.target_modules"):
        load_policy(options(lora={"rank": 4, "alpha": 8.0, "target_modules": ["query"]}), 0, CPU)


@pytest.mark.parametrize(("module", "tied"), [("lm_head", False), ("embed_tokens", True)])
def test_lora_on_the_head_is_refused_because_log_probs_would_leave_it_out(module, tied):
    scratch = make_config().model.scratch.model_dump() | {"tie_embeddings": tied}
    lora = {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj", module]}
    with pytest.raises(ModelError, match="LoRA on the output head"):
        load_policy(options(scratch=scratch, lora=lora), 0, CPU)


def test_lora_on_untied_embeddings_is_fine_and_reaches_the_engine():
    lora = {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "embed_tokens"]}
    learner = make_learner({"model.lora": lora})
    base = learner.model.get_base_model().model.embed_tokens.base_layer.weight
    merged = learner.weights()["model.embed_tokens.weight"]
    assert merged.shape == base.shape
    assert not torch.equal(merged, base)
