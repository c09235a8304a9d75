"""Example -> prompt text -> token ids, as the recipe states it: a plain text, or the model's own chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from pydantic import field_validator, model_validator

from data.example import Example
from verifiers.errors import DataError, ModelError
from verifiers.options import Options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION = "{question}"


class TemplateOptions(Options):
    """kind: ``plain`` writes the prompt as it stands; ``chat`` puts it through the tokenizer's chat template.
    system: first message of the chat. prompt: the last user message, with ``{question}`` where the question goes; every
    other brace is text. response_prefix: text that the assistant's turn starts with; it belongs to the prompt.
    """

    kind: Literal["plain", "chat"]
    system: str | None = None
    prompt: str = QUESTION
    response_prefix: str = ""

    @field_validator("prompt")
    @classmethod
    def _holds_the_question(cls, prompt: str) -> str:
        if QUESTION not in prompt:
            raise ValueError(f"must contain {QUESTION}, or every example would ask the same")
        return prompt

    @model_validator(mode="after")
    def _system_needs_chat(self) -> TemplateOptions:
        if self.kind == "plain" and self.system is not None:
            raise ValueError("system needs kind=chat; with kind=plain write the text into prompt")
        return self


def render(example: Example, options: TemplateOptions, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as text, response prefix included. Raises `ModelError` for a tokenizer without a usable chat template,
    `DataError` for an example that does not fit the template."""
    question = options.prompt.replace(QUESTION, example.question)
    if options.kind == "chat":
        return _chat(example, question, options, tokenizer) + options.response_prefix
    if len(example.prompt) > 1:
        raise DataError(
            f"The prompt has {len(example.prompt)} messages, and a plain template takes one.",
            where=f"example {example.id}",
            fix="set template.kind=chat",
        )
    return question + options.response_prefix


def _chat(example: Example, question: str, options: TemplateOptions, tokenizer: PreTrainedTokenizerBase) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ModelError(
            f"The tokenizer {tokenizer.name_or_path} has no chat template.",
            where="template.kind",
            fix="set template.kind=plain, or use an instruction-tuned model",
        )
    turns = [{"role": m.role, "content": m.content} for m in example.prompt[:-1]]
    if options.system is not None:
        if turns and turns[0]["role"] == "system":
            raise DataError(
                "The example brings its own system message, and template.system is set too.",
                where=f"example {example.id}",
                fix="leave template.system out",
            )
        turns.insert(0, {"role": "system", "content": options.system})
    turns.append({"role": "user", "content": question})
    try:
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    except TemplateError as error:
        raise ModelError(
            f"The chat template of {tokenizer.name_or_path} refuses this prompt: {error}.",
            where=f"example {example.id}",
            fix="some templates take no system message, or only alternating roles; write the text into template.prompt",
        ) from error


def encode(example: Example, options: TemplateOptions, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of `render`. A chat template writes its own special tokens; a plain prompt starts with the
    beginning-of-sequence token if this tokenizer puts one there, and never ends with an end-of-sequence token."""
    return _encode_prompt(render(example, options, tokenizer), options, tokenizer)


def encode_demonstration(
    example: Example, options: TemplateOptions, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """(prompt ids as `encode` gives them, ids of the solution and the end-of-sequence token).

    Raises `DataError` if the example has no solution, `ModelError` if the tokenizer has no end-of-sequence token.
    """
    if example.solution is None:
        raise DataError(
            "The example has no solution to demonstrate.",
            where=f"example {example.id}",
            fix="set solution_field, use a source that writes solutions, or train without warm_start",
        )
    eos = cast("int | None", tokenizer.eos_token_id)
    if eos is None:
        raise ModelError(
            f"The tokenizer {tokenizer.name_or_path} has no end-of-sequence token.",
            why="the model could not learn to stop",
            fix="set eos_token in its tokenizer_config.json",
        )
    text = render(example, options, tokenizer)
    prompt_ids = _encode_prompt(text, options, tokenizer)
    # Encoded together first: some tokenizers put a space before text that stands on its own. If the boundary melts into
    # one token, the prompt must stay as it is in a rollout, and the solution is encoded alone.
    joined = _encode_prompt(text + example.solution, options, tokenizer)
    if joined[: len(prompt_ids)] == prompt_ids:
        solution_ids = joined[len(prompt_ids) :]
    else:
        solution_ids = _encode_text(example.solution, tokenizer)
    return prompt_ids, [*solution_ids, eos]


def _encode_prompt(text: str, options: TemplateOptions, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = _encode_text(text, tokenizer)
    bos = cast("int | None", tokenizer.bos_token_id)
    if options.kind == "plain" and bos is not None and tokenizer("")["input_ids"][:1] == [bos]:
        return [bos, *ids]
    return ids


def _encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
