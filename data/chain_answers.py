"""`chain_answers`: responses to `chain` expressions with the reference answer, labelled by program, for a VerifyRM.

Half are right; the others are wrong solutions of the form of the demonstration, carried through to another answer.
"""

from __future__ import annotations

import random

from data.chain import Chain
from data.chain_labels import wrong_solution
from data.labelled import LABELLED_DATA, LabelledResponse


@LABELLED_DATA.register("chain_answers")
class ChainAnswers:
    class Options(Chain.Options):
        """As of the data source `chain`; one response an expression."""

    def __init__(self, options: ChainAnswers.Options):
        self.options = options

    def load(self) -> list[LabelledResponse]:
        rng = random.Random(f"chain_answers/{self.options.seed}")
        rows = []
        for example in Chain(self.options).load():
            right = rng.random() < 0.5
            assert example.solution is not None
            response = example.solution if right else wrong_solution(example, rng)
            rows.append(LabelledResponse(example.id, example.prompt, response, float(right), example.gold))
        return rows
