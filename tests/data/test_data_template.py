"""Prompts are rendered and encoded exactly as the recipe says; the character tokenizer loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data import Example, Message, TemplateOptions, encode, encode_demonstration, load_examples, render
from data.make_char_tokenizer import CHARACTERS, FOLDER, write
from verifiers.errors import DataError, ModelError

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PLAIN = TemplateOptions(kind="plain")
CHAT = TemplateOptions(kind="chat")


def load_tokenizer(**changes) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(FOLDER, **changes)


TOKENIZER = load_tokenizer()
CHAT_TOKENIZER = load_tokenizer(chat_template=CHAT_TEMPLATE, split_special_tokens=False)


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Frames every text as <bos> ... <eos>, as some pretrained tokenizers do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(chat_template=CHAT_TEMPLATE, split_special_tokens=False)
    ids = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=ids)
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    assert tokenizer.encode("a")[-1] == tokenizer.eos_token_id
    return tokenizer


def ask(question: str, solution: str | None = None, *earlier: Message) -> Example:
    return Example("x", (*earlier, Message("user", question)), "?", solution=solution)


def test_plain_is_the_prompt_as_it_stands():
    options = TemplateOptions(kind="plain", prompt="Q: {question}\nA:", response_prefix=" ")
    assert render(ask("3+4="), options, TOKENIZER) == "Q: 3+4=\nA: "
    assert TOKENIZER.decode(encode(ask("3+4="), options, TOKENIZER)) == "Q: 3+4=\nA: "


def test_braces_other_than_the_question_are_text():
    options = TemplateOptions(kind="plain", prompt=r"\boxed{} {x} {0} {question}")
    assert render(ask("{question} {y}"), options, TOKENIZER) == r"\boxed{} {x} {0} {question} {y}"


def test_a_prompt_without_the_question_and_a_plain_system_message_are_refused():
    with pytest.raises(ValidationError, match="question"):
        TemplateOptions(kind="plain", prompt="Q: {qestion}")
    with pytest.raises(ValidationError, match="kind=chat"):
        TemplateOptions(kind="plain", system="Be brief.")


def test_chat_goes_through_the_template_with_system_message_and_response_prefix():
    options = TemplateOptions(kind="chat", system="Be brief.", prompt="{question}?", response_prefix="So: ")
    text = render(ask("1+1"), options, CHAT_TOKENIZER)
    assert text == "<bos>[system]Be brief.\n[user]1+1?\n[assistant]So: "


def test_chat_keeps_earlier_turns_and_templates_only_the_last():
    turns = (Message("system", "S"), Message("user", "U"), Message("assistant", "A"))
    options = TemplateOptions(kind="chat", prompt="<{question}>")
    assert render(ask("q", None, *turns), options, CHAT_TOKENIZER) == (
        "<bos>[system]S\n[user]U\n[assistant]A\n[user]<q>\n[assistant]"
    )


def test_two_system_messages_and_a_chat_under_a_plain_template_are_data_errors():
    example = ask("q", None, Message("system", "S"))
    with pytest.raises(DataError, match=r"template\.system is set too"):
        render(example, TemplateOptions(kind="chat", system="T"), CHAT_TOKENIZER)
    with pytest.raises(DataError, match=r"2 messages.*\n.*x\n.*template\.kind=chat"):
        render(example, PLAIN, TOKENIZER)


def test_a_tokenizer_without_chat_template_is_a_model_error_with_the_fix():
    with pytest.raises(ModelError, match=r"template\.kind=plain"):
        render(ask("q"), CHAT, TOKENIZER)


def test_a_chat_template_that_refuses_is_a_model_error():
    tokenizer = load_tokenizer(chat_template="{{ raise_exception('no system message') }}")
    with pytest.raises(ModelError, match="no system message"):
        render(ask("q"), CHAT, tokenizer)


@pytest.mark.parametrize("tokenizer", [CHAT_TOKENIZER, bos_tokenizer()], ids=["bare", "framing"])
def test_a_chat_prompt_has_its_special_tokens_once(tokenizer):
    ids = encode(ask("q"), CHAT, tokenizer)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "<bos>[user]q\n[assistant]"


def test_a_plain_prompt_starts_as_the_tokenizer_does_and_never_ends_the_sequence():
    framing = bos_tokenizer()
    assert encode(ask("ab"), PLAIN, framing) == [framing.bos_token_id, *TOKENIZER.encode("ab")]
    assert encode(ask("ab"), PLAIN, TOKENIZER) == TOKENIZER.encode("ab")


@pytest.mark.parametrize("tokenizer", [CHAT_TOKENIZER, bos_tokenizer()], ids=["bare", "framing"])
@pytest.mark.parametrize("options", [PLAIN, CHAT], ids=["plain", "chat"])
def test_a_demonstration_is_the_rollout_prompt_then_the_solution_then_eos(tokenizer, options):
    example = ask("3+4*2=", "7*2\n4\n#4")
    prompt_ids, solution_ids = encode_demonstration(example, options, tokenizer)
    assert prompt_ids == encode(example, options, tokenizer)
    assert solution_ids == [*TOKENIZER.encode("7*2\n4\n#4"), tokenizer.eos_token_id]


def test_a_boundary_that_would_merge_keeps_the_rollout_prompt():
    from tokenizers import Tokenizer, models

    merging = Tokenizer(models.BPE({"a": 0, "=": 1, "==": 2, "<eos>": 3}, [("=", "=")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merging, eos_token="<eos>")
    assert tokenizer.encode("a==") == [0, 2]
    assert encode_demonstration(ask("a=", "=a"), PLAIN, tokenizer) == ([0, 1], [1, 0, 3])


def test_a_solution_is_encoded_without_the_space_that_opens_a_text():
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = Tokenizer(models.BPE({"a": 0, "b": 1, "▁": 2, "<eos>": 3}, []))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>")
    assert encode_demonstration(ask("a", "b"), PLAIN, tokenizer) == ([2, 0], [1, 3])


def test_a_demonstration_needs_a_solution_and_an_end_of_sequence_token():
    with pytest.raises(DataError, match="no solution"):
        encode_demonstration(ask("q"), PLAIN, TOKENIZER)
    with pytest.raises(ModelError, match="end-of-sequence"):
        encode_demonstration(ask("q", "a"), PLAIN, load_tokenizer(eos_token=None))


@given(st.text(alphabet=CHARACTERS))
def test_the_character_tokenizer_is_lossless_with_one_token_a_character(text):
    ids = TOKENIZER.encode(text)
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert TOKENIZER.unk_token_id not in ids


@pytest.mark.parametrize("text", ["a , b .", "it 's n't", "  two  spaces  ", "<eos>", "a<pad>b", "\n\n"])
def test_text_that_other_tokenizers_change_comes_back_unchanged(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert len(TOKENIZER.encode(text)) == len(text)


def test_the_character_tokenizer_has_its_special_tokens_and_a_hundred_in_all():
    special = [TOKENIZER.pad_token, TOKENIZER.bos_token, TOKENIZER.eos_token, TOKENIZER.unk_token]
    assert special == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert TOKENIZER.convert_tokens_to_ids(special) == [0, 1, 2, 3]
    assert len(TOKENIZER) == 100
    assert TOKENIZER.encode("é") == [TOKENIZER.unk_token_id]


def test_the_packaged_tokenizer_is_what_the_script_writes(tmp_path):
    write(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes()


@pytest.mark.parametrize("kind", ["chain", "countdown"])
def test_the_generators_use_only_its_characters(kind):
    for example in load_examples(kind, {"count": 300}, key="data.train"):
        prompt_ids, solution_ids = encode_demonstration(example, PLAIN, TOKENIZER)
        assert TOKENIZER.unk_token_id not in prompt_ids + solution_ids
        assert len(prompt_ids + solution_ids) == len(example.question) + len(example.solution) + 1
