"""Where steps end in characters, and which tokens are theirs."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data.chain import check_steps
from data.example import Example, Message
from prm.step_source import step_truth
from prm.steps import StepOptions, StepSplitter
from tests.helpers import EOS, tokenizer
from verifiers.errors import ConfigError
from verifiers.options import parse_options

BLANK_LINES = StepOptions(separator="blank_line")
TEXT = st.text(st.sampled_from("ab1 \nß€😀#é\u200d\ufffd"), max_size=40)


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges: most characters beyond ASCII are several tokens."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=275, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    model.train_from_iterator(["a\n\nb" * 9, "aß 1\n" * 9, "ab\na" * 9], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>")


@cache
def metaspace() -> PreTrainedTokenizerFast:
    """Words with their space before them, the first one's dropped by the decoder, as in Llama 2."""
    words = ["<unk>", "<eos>", "▁a", "▁b", "a", "b", "▁", "\n", "1"]
    model = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    model.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>", unk_token="<unk>")


def decode(tokens, ids):
    return tokens.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def check(tokens, ids, options=None):
    """What holds for every response: each token in one step, the text partitioned, each step read by its last token."""
    options = options or StepOptions()
    text = decode(tokens, ids)
    splitter = StepSplitter(options, tokens)
    steps = splitter.split(text, ids)
    if not text:
        assert len(steps) == 0
        return steps
    assert steps.of_token == sorted(steps.of_token)
    assert len(steps.of_token) == len(ids)
    assert set(steps.of_token) == set(range(len(steps)))
    assert steps.ends[-1] == len(ids)
    assert all(a < b for a, b in pairwise([0, *steps.ends]))
    assert "".join(text[a:b] for a, b in steps.spans) == text
    assert all(a < b for a, b in steps.spans)
    read = splitter.token_ends(text, ids)
    assert read == sorted(read)
    assert all(read[end - 1] >= stop for end, (_, stop) in zip(steps.ends, steps.spans, strict=True))
    cuts = {match.end() for match in splitter.pattern.finditer(text)} | {len(text)}
    assert {stop for _, stop in steps.spans} <= cuts
    return steps


# ---- by hand -------------------------------------------------------


def test_a_line_break_belongs_to_the_step_that_it_ends_and_the_end_token_to_the_last():
    ids = [*tokenizer()("1+1\n2\n#2")["input_ids"], EOS]
    steps = check(tokenizer(), ids)
    assert steps.spans == [(0, 4), (4, 6), (6, 8)]
    assert steps.ends == [4, 6, 9]
    assert steps.last_tokens == [3, 5, 8]


def test_an_end_token_after_a_line_break_starts_no_step():
    steps = check(tokenizer(), [*tokenizer()("1\n")["input_ids"], EOS])
    assert steps.ends == [3]


def test_a_response_without_text_has_no_step():
    splitter = StepSplitter(StepOptions(), tokenizer())
    assert splitter.split("", [EOS]).ends == []
    assert splitter.split("", []).ends == []


def test_blank_lines_separate_paragraphs_with_all_their_white_space():
    text = "a\nb\n \n\n c\n\n"
    steps = check(tokenizer(), tokenizer()(text)["input_ids"], BLANK_LINES)
    assert [text[a:b] for a, b in steps.spans] == ["a\nb\n \n\n ", "c\n\n"]


def test_a_pattern_may_look_ahead():
    text = "Step 1: a Step 2: b"
    options = StepOptions(separator="pattern", pattern="(?=Step)")
    steps = check(tokenizer(), tokenizer()(text)["input_ids"], options)
    assert [text[a:b] for a, b in steps.spans] == ["Step 1: a ", "Step 2: b"]


def test_a_token_over_a_border_belongs_to_the_step_that_it_ends():
    tokens = byte_level()
    ids = tokens("a\n\nb", add_special_tokens=False)["input_ids"]
    assert [decode(tokens, [i]) for i in ids] == ["a\n\nb"]  # one token, by training
    steps = check(tokens, [*ids, *ids])
    assert steps.ends == [1, 2]
    assert steps.spans == [(0, 3), (3, 8)]  # four lines, two of them without a token of their own


def test_a_character_of_several_tokens_is_complete_at_the_last_of_them():
    tokens = byte_level()
    ids = tokens("😀\n1", add_special_tokens=False)["input_ids"]
    splitter = StepSplitter(StepOptions(), tokens)
    assert len(ids) == 6
    assert splitter.token_ends("😀\n1", ids) == [0, 0, 0, 1, 2, 3]
    assert check(tokens, ids).ends == [5, 6]


def test_a_response_cut_within_a_character_keeps_every_token():
    tokens = byte_level()
    ids = tokens("1\n😀", add_special_tokens=False)["input_ids"][:-1]
    assert check(tokens, ids).ends == [2, 5]


@pytest.mark.parametrize(
    "options", [{"separator": "pattern"}, {"pattern": "a"}, {"separator": "pattern", "pattern": "("}]
)
def test_a_pattern_that_cannot_be_used_is_refused(options):
    with pytest.raises(ConfigError, match="pattern"):
        parse_options(StepOptions, options)


def test_the_oracles_lines_are_the_steps():
    meta = {"task": "chain", "expression": "1+2+3", "modulus": 5, "precedence": "left_to_right"}
    example = Example("c", (Message("user", "1+2+3="),), "1", meta=meta)
    text = "3+3\n2\n#1"
    steps = check(tokenizer(), [*tokenizer()(text)["input_ids"], EOS])
    assert [(label.start, label.end) for label in check_steps(example, text)] == steps.spans
    assert step_truth(example, text, steps, "on_track") == [1.0, 0.0, 1.0]
    assert step_truth(example, text, steps, "correct") == [1.0, 0.0, 0.0]


# ---- every response --------------------------------------------------


@given(TEXT, st.booleans(), st.sampled_from([StepOptions(), BLANK_LINES]))
@settings(max_examples=50, deadline=None)
def test_characters_as_tokens_are_covered_once(text, ends, options):
    known = "".join(c for c in text if c in "ab1 \n#")
    ids = [*tokenizer()(known)["input_ids"], *([EOS] * ends)]
    steps = check(tokenizer(), ids, options)
    assert [stop for _, stop in steps.spans[:-1]] == steps.ends[:-1]  # one token a character


@given(TEXT, st.booleans(), st.sampled_from([StepOptions(), BLANK_LINES]))
@settings(max_examples=100, deadline=None)
def test_bytes_as_tokens_are_covered_once(text, ends, options):
    tokens = byte_level()
    ids = [*tokens(text, add_special_tokens=False)["input_ids"], *([tokens.eos_token_id] * ends)]
    check(tokens, ids, options)


@given(st.lists(st.integers(0, 274), max_size=25))
@settings(max_examples=100, deadline=None)
def test_any_tokens_that_a_policy_may_sample_are_covered_once(ids):
    check(byte_level(), [i for i in ids if i < len(byte_level())])


@given(st.lists(st.sampled_from([2, 3, 4, 5, 7, 8, 1]), max_size=12))
@settings(max_examples=50, deadline=None)
def test_decoders_that_drop_the_first_space_are_followed(ids):
    check(metaspace(), ids)


def test_special_tokens_in_the_middle_belong_to_what_follows():
    a = tokenizer()("1\n")["input_ids"]
    assert check(tokenizer(), [*a, 1, *a]).ends == [2, 5]  # 1: <bos>
