"""Pairs: a question and the same question in other words, with the same answer.

An example has a paraphrase if the source that made it has a static method ``paraphrase(example) -> Example | None``
(an exact one, by program), or if its meta data holds the other question under the key `PARAPHRASE` (a file written by
``assay paraphrase``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data.example import Example, Message
from data.sources import DATA_SOURCES
from verifiers.errors import DataError

PARAPHRASE = "paraphrase"  # key of Example.meta: the question in other words
PAIR = "pair"  # key of Example.meta, of both views: the id of the original
ID_SUFFIX = "/paraphrase"


@dataclass(frozen=True, slots=True)
class Pairs:
    """originals[i] and paraphrases[i] ask the same. without_paraphrase, on_the_other_side: ids of the examples that
    were left out: there is none, or it belongs to the other part of the split."""

    originals: list[Example]
    paraphrases: list[Example]
    without_paraphrase: list[str]
    on_the_other_side: list[str]


def paraphrase_of(example: Example) -> Example | None:
    """The same question in other words; None if there is none, or if it is the same to the letter."""
    task = example.meta.get("task")
    make = getattr(DATA_SOURCES.get(str(task)), "paraphrase", None) if task in DATA_SOURCES.names() else None
    other = make(example) if make is not None else _from_meta(example)
    if other is None or other.content_key() == example.content_key():
        return None
    meta = {key: value for key, value in other.meta.items() if key != PARAPHRASE}
    return replace(other, id=example.id + ID_SUFFIX, meta={**meta, PAIR: example.id})


def _from_meta(example: Example) -> Example | None:
    text = example.meta.get(PARAPHRASE)
    if text is None:
        return None
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"The paraphrase is {text!r}, not a question.",
            where=f"example '{example.id}', meta field '{PARAPHRASE}'",
            fix="write the question in other words, or null where there is none",
        )
    return replace(example, prompt=(*example.prompt[:-1], Message("user", text)), solution=None)


def make_pairs(examples: Sequence[Example], in_part: Callable[[Example], bool]) -> Pairs:
    """The examples that have a paraphrase on their own side of the split, and these.

    Raises `DataError` if no pair is left.
    """
    pairs = Pairs([], [], [], [])
    for example in examples:
        other = paraphrase_of(example)
        if other is None:
            pairs.without_paraphrase.append(example.id)
        elif not in_part(other):
            pairs.on_the_other_side.append(example.id)
        else:
            pairs.originals.append(replace(example, meta={**example.meta, PAIR: example.id}))
            pairs.paraphrases.append(other)
    if not pairs.originals:
        raise DataError(
            f"None of {len(examples)} examples has a paraphrase that can be used.",
            where="data.views",
            why=f"{len(pairs.without_paraphrase)} have none, and of {len(pairs.on_the_other_side)} it belongs to the "
            "other part of the split",
            fix=f"`assay paraphrase` writes a file with them; load it with meta_fields: [{PARAPHRASE}]",
        )
    return pairs
