"""`mbpp`: the 974 Python tasks of MBPP (Austin et al., arXiv:2108.07732), shipped with assay.

    prompt      Write a python function to remove first and last occurrence of a given character from the string.
                Your code must pass tests like:
                assert remove_Occ("hello","l") == "heo"

Without a test in the prompt the name of the function would be unknown. The gold is the row with all of its three tests,
as the verifier `code` reads it: with ``shown_tests: 1`` a program that repeats the one it has seen fails on the others.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data.example import Example, Message
from data.sources import DATA_SOURCES, JsonlSource, resolve_path
from verifiers.options import Options as BaseOptions

PATH = "assets:sandbox/mbpp.jsonl"


@DATA_SOURCES.register("mbpp")
class Mbpp:
    """One split of MBPP, with some of the tests in the prompt. See the module docstring."""

    class Options(BaseOptions):
        """split: by MBPP's ranges of task ids, 374 train, 90 validation, 500 test, 10 prompt. shown_tests: how many of
        the three tests stand in the prompt."""

        split: Literal["train", "validation", "test", "prompt"] = "train"
        shown_tests: int = Field(default=1, ge=1, le=3)

    def __init__(self, options: Options):
        self.options = options

    def load(self) -> list[Example]:
        """The tasks in the order of their ids, with MBPP's own solution as demonstration. Raises `DataError`."""
        rows = JsonlSource(JsonlSource.Options(path=PATH)).rows(resolve_path(PATH))
        return [self._example(dict(row.fields)) for row in rows if row.fields["split"] == self.options.split]

    def _example(self, row: dict) -> Example:
        code, setup = (row[name].replace("\r\n", "\n") for name in ("code", "test_setup_code"))
        given = f"This stands before it:\n{setup}\n" if setup else ""
        shown = "\n".join(row["test_list"][: self.options.shown_tests])
        return Example(
            id=f"mbpp-{row['task_id']}",
            prompt=(Message("user", f"{row['text'].strip()}\n{given}Your code must pass tests like:\n{shown}"),),
            gold={"test_list": row["test_list"], "test_setup_code": setup, "code": code},
            solution=f"```python\n{code}\n```",
            meta={"task": "mbpp", "split": row["split"]},
        )
