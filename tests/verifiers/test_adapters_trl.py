"""The verifiers as a TRL reward function: alone, and in the real `GRPOTrainer`."""

import logging
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from verifiers import ConfigError, DataError
from verifiers.adapters.trl import reward_func

ROOT = Path(__file__).parents[2]


def test_it_is_imported_without_trl_and_not_by_the_registry():
    code = (
        "import sys; from verifiers import VERIFIERS; VERIFIERS.names();"
        "heavy = {'trl', 'verl', 'torch', 'http.server', 'http.client', 'verifiers.adapters.trl'};"
        "seen = heavy & set(sys.modules);"
        "import verifiers.adapters.trl, verifiers.adapters.verl;"
        "sys.exit(str(seen or ({'trl', 'verl', 'torch', 'ray'} & set(sys.modules)) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    "completions",
    [
        [r"\boxed{4}", r"\boxed{5}"],
        [[{"role": "assistant", "content": r"\boxed{4}"}], [{"role": "assistant", "content": r"\boxed{5}"}]],
        [[{"role": "assistant", "content": "let me see"}, {"role": "tool", "content": "9"},
          {"role": "assistant", "content": [{"type": "text", "text": r"\boxed{4}"}]}], []],
    ],
)  # fmt: skip
def test_text_and_messages_are_judged(completions):
    judge = reward_func("exact")
    assert judge(prompts=["p", "p"], completions=completions, gold=["4", "4"], trainer_state=None) == [1.0, 0.0]


def test_what_cannot_be_judged_is_none_and_is_told(caplog):
    judge = reward_func("exact", gold_column="solution", name="mine")
    metrics = {}
    with caplog.at_level(logging.WARNING):
        rewards = judge(completions=["4", "4"], solution=["4", None], log_metric=metrics.__setitem__)
    assert rewards == [1.0, None]
    assert metrics == {"mine/unjudged_share": 0.5}
    assert "1 of 2 completions could not be judged" in caplog.text


def test_columns_become_gold_and_meta():
    judge = reward_func("choice", gold_column="answer", meta_columns=["choices"])
    assert judge(completions=["Rome", "(A)"], answer=[1, 1], choices=[["Oslo", "Rome"]] * 2) == [1.0, 0.0]
    with pytest.raises(DataError) as caught:
        judge(completions=["x"], label=["A"], prompts=["p"])
    assert "no column 'answer'" in str(caught.value)
    assert "label" in str(caught.value)


def test_it_has_a_name_and_can_be_pickled():
    judge = pickle.loads(pickle.dumps(reward_func("exact", {"marker": "####"}, name="mine")))
    assert judge.__name__ == "mine"
    assert reward_func("exact").__name__ == "exact_reward"
    assert judge(completions=["#### 4"], gold=["4"]) == [1.0]


def test_a_wrong_option_is_refused_at_once():
    with pytest.raises(ConfigError, match="did you mean 'marker'"):
        reward_func("exact", {"maker": "#"})


def test_grpo_trainer_trains_with_it_and_leaves_out_what_was_not_judged(tmp_path):
    pytest.importorskip("trl")
    trainer, judge = tiny_trainer(tmp_path)
    trainer.train()
    rewards = [
        row["rewards/exact_reward/mean"] for row in trainer.state.log_history if "rewards/exact_reward/mean" in row
    ]
    # Half of the golds are blank: their completions are left out of the mean, and the others can be right or wrong.
    assert len(rewards) == 2
    assert all(0 <= reward <= 1 for reward in rewards)
    shares = [row["exact_reward/unjudged_share"] for row in trainer.state.log_history if "loss" in row]
    assert shares == [0.5, 0.5]
    logs = trainer._logs
    unjudged = [math.isnan(reward) for reward in logs["rewards"]["exact_reward"]]
    assert unjudged == [prompt == "3 4" for prompt in logs["prompt"]]
    assert all(advantage == 0 for advantage, none in zip(logs["advantages"], unjudged, strict=True) if none)
    assert all(math.isfinite(row["grad_norm"]) for row in trainer.state.log_history if "loss" in row)
    judge.close()


def tiny_model():
    """A random Llama and its tokenizer of digits."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {str(n): n + 3 for n in range(10)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def tiny_data():
    """Half of the golds cannot be read."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": "1 2", "solution": "7"}, {"prompt": "3 4", "solution": " "}] * 2)


def tiny_trainer(folder):
    """TRL's trainer, and its reward function."""
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = tiny_model()
    judge = reward_func("exact", {"case_sensitive": False}, gold_column="solution")
    arguments = GRPOConfig(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=4, num_generations=2, max_completion_length=4,
        use_cpu=True, report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True, bf16=False,
        shuffle_dataset=False,
    )  # fmt: skip
    return GRPOTrainer(model, judge, args=arguments, train_dataset=tiny_data(), processing_class=tokenizer), judge
