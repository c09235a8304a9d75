"""Steps of a response: character spans between separators, and the tokens that are theirs, exactly.

Token in, token out: nothing is tokenised again. How many characters each sampled token completes is read off the
tokenizer's decoder, also where a character is spread over several tokens or a token over several characters.

Shapes: T response tokens; K steps.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from verifiers.options import Options

_PATTERNS = {"line": r"\n", "blank_line": r"\n[^\S\n]*\n\s*"}
_INCOMPLETE = "\ufffd"  # what decoders give for bytes that are no character (yet)


class StepOptions(Options):
    """separator: a step ends after a line break, after a blank line, or where a match of the regular expression
    `pattern` ends (a look-ahead ends a step before what it sees)."""

    separator: Literal["line", "blank_line", "pattern"] = "line"
    pattern: str | None = None

    @model_validator(mode="after")
    def _pattern_compiles(self) -> Self:
        if (self.separator == "pattern") != (self.pattern is not None):
            raise ValueError("pattern is for separator=pattern, and needed there")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern={self.pattern!r} is no regular expression: {error}") from error
        return self


@dataclass(frozen=True, slots=True)
class Steps:
    """spans: characters (start, end) of each step; they partition the text. ends: one past the last token of each
    step [K], rising to T: every token belongs to exactly one step. A response without text has no step."""

    spans: list[tuple[int, int]]
    ends: list[int]

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def of_token(self) -> list[int]:
        """The step of each token [T]."""
        return [k for k, (start, end) in enumerate(pairwise([0, *self.ends])) for _ in range(start, end)]

    @property
    def last_tokens(self) -> list[int]:
        """The index of the last token of each step [K]."""
        return [end - 1 for end in self.ends]

    def place(self, value_K: Tensor, tokens: int) -> Tensor:
        """[T]: the value of each step at its last token, 0 elsewhere."""
        out_T = torch.zeros(tokens, dtype=value_K.dtype)
        out_T[self.last_tokens] = value_K
        return out_T


class StepSplitter:
    """Splits responses that were sampled with `tokenizer`."""

    def __init__(self, options: StepOptions, tokenizer: PreTrainedTokenizerBase):
        self.pattern = re.compile(options.pattern or _PATTERNS[options.separator])
        self.tokenizer = tokenizer
        # decoders may treat the first token in a way of its own (no space before it), so none is decoded alone
        self._anchor = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        self._anchor_text = self.decode(self._anchor)
        self._pieces: dict[int, str] = {}

    def split(self, text: str, ids: Sequence[int]) -> Steps:
        """The steps of a response `text`, which is what `ids` decode to without special tokens."""
        cuts = {match.end() for match in self.pattern.finditer(text)} - {0, len(text)}
        return self.cut(text, ids, sorted(cuts))

    def cut(self, text: str, ids: Sequence[int], cuts: Sequence[int]) -> Steps:
        """The steps between given characters, rising and within the text.

        A token belongs to the step of its first character (one without characters, as an end-of-sequence token, to
        that of the next one, or to the last): where a token reaches over a border, the state after it has read all
        of the step that it ends. A step without a token of its own is part of the one before it.
        """
        if not text or not ids:
            return Steps([], [])
        starts = [0, *cuts]
        first_characters = [0, *self.token_ends(text, ids)[:-1]]
        step_T = [bisect_right(starts, character) - 1 if character < len(text) else len(starts) - 1
                  for character in first_characters]  # fmt: skip
        runs = [(step, len(list(tokens))) for step, tokens in groupby(step_T)]
        borders = [*(starts[step] for step, _ in runs), len(text)]
        return Steps(list(pairwise(borders)), list(accumulate(count for _, count in runs)))

    def token_ends(self, text: str, ids: Sequence[int]) -> list[int]:
        """How many characters of `text` are complete after each token [T]; the last number is all of them."""
        ends = self._by_pieces(text, ids)
        if ends is None:  # a decoder whose pieces depend on more than their neighbours
            decoded = [self.decode(ids[: i + 1]) for i in range(len(ids))]
            ends = list(accumulate((len(d.rstrip(_INCOMPLETE)) for d in decoded), max))
        return [min(end, len(text)) for end in ends[:-1]] + [len(text)]

    def _by_pieces(self, text: str, ids: Sequence[int]) -> list[int] | None:
        """Token by token, each token decoded once in its life; only bytes of split characters are decoded together.
        None if the pieces do not add up to the text."""
        ends: list[int] = []
        joined = ""
        for broken, run in groupby(ids, lambda i: _INCOMPLETE in self._piece(i)):
            if not broken:
                for i in run:
                    joined += self._piece(i)
                    ends.append(len(joined))
                continue
            members = list(run)
            decoded = [self._after_anchor(members[: n + 1]) for n in range(len(members))]
            complete = accumulate((len(d.rstrip(_INCOMPLETE)) for d in decoded[:-1]), max)
            ends += [len(joined) + n for n in complete]
            joined += decoded[-1]
            ends.append(len(joined))
        offset = joined.find(text)  # 1: the space before the first word, which decoders drop
        return [max(0, end - offset) for end in ends] if offset in (0, 1) else None

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self._after_anchor([token])
        return self._pieces[token]

    def _after_anchor(self, ids: Sequence[int]) -> str:
        return self.decode([*self._anchor, *ids])[len(self._anchor_text) :]

    def decode(self, ids: Sequence[int]) -> str:
        """As the engine decodes a response: its special tokens are left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
