r"""What the tests of the kind ``math`` share: one verifier, and tables of pairs to judge with it."""

from __future__ import annotations

import pytest

from verifiers.math.verifier import MathVerifier
from verifiers.verdict import Verdict, VerifyRequest

VERIFIER = MathVerifier(MathVerifier.Options())


def box(answer: str) -> str:
    return f"So the answer is $\\boxed{{{answer}}}$."


def judge(gold: str, answer: str, verifier: MathVerifier = VERIFIER) -> Verdict:
    return verifier.verify(VerifyRequest(box(answer), gold))


def pairs(table: dict[str, str]) -> list[object]:
    """(gold, answer) of every line ``gold <- answer ;; another answer``, with ids by what they show."""
    return [
        pytest.param(gold, answer, id=f"{shows}: {gold} <- {answer}")
        for shows, lines in table.items()
        for line in lines.strip().splitlines()
        for gold, _, answers in [line.strip().partition(" <- ")]
        for answer in answers.split(" ;; ")
    ]
