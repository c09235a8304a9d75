"""Every error a user can cause or must act on, in one hierarchy.

Contract: an `AssayError` says what happened, where (file, key, example id), why it matters and what to do. Anything
else that escapes is a bug in assay. Errors about input are raised before compute is spent.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AssayError(Exception):
    """Base class. `str(error)` is the whole message a user reads."""

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, fix: str | None = None):
        self.what, self.where, self.why, self.fix = what, where, why, fix
        lines = [what]
        lines += [f"  where: {where}"] if where else []
        lines += [f"  why it matters: {why}"] if why else []
        lines += [f"  what to do: {fix}"] if fix else []
        super().__init__("\n".join(lines))


class ConfigError(AssayError):
    """A recipe or override that cannot be run as written."""


class DataError(AssayError):
    """A dataset that is missing, malformed, or whose gold answers do not verify."""


class ModelError(AssayError):
    """A model or tokenizer that cannot be used for this recipe."""


class RunError(AssayError):
    """The machine or the run folder does not allow the run to go on (disk, permissions, non-finite values)."""


class VerifierError(AssayError):
    """The verifier itself is broken (not: the answer is wrong)."""


class BadGold(AssayError):
    """A verifier cannot read the gold answer: the verdict is `bad_gold`, and nobody's response is judged by it."""


class NoReference(BadGold):
    """A gold that can be read and judges responses, but holds no answer of its own to check it with."""


class MissingExtraError(AssayError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, needed_for: str):
        super().__init__(
            f"{needed_for} needs the package '{package}', which is not installed.",
            fix=f"pip install 'assay-rl[{extra}]'",
        )


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? valid: a, b, c"`` for an unknown `word`."""
    choices = sorted(set(valid))
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}valid: {', '.join(choices) if choices else '(none)'}"
