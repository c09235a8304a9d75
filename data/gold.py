"""Before training, every gold answer is verified against itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from data.example import Example
from verifiers.errors import BadGold, DataError, NoReference, VerifierError
from verifiers.verdict import Status, Verdict, VerifyRequest

MAX_GOLDS_SHOWN = 10


def check_golds(
    examples: Sequence[Example],
    verify: Callable[[list[VerifyRequest]], list[Verdict]],
    gold_response: Callable[[Any, Mapping[str, Any]], str],
    on_bad_gold: Literal["stop", "skip"],
) -> tuple[list[Example], list[tuple[str, Verdict]], list[str]]:
    """Return (examples whose gold verifies or cannot be checked, (id, verdict) of the others, ids of those that could
    not be checked: without a gold, or with one that holds no answer).

    gold_response(gold, meta): a response that gives the gold as its answer; raises `BadGold` if the gold is unreadable,
    `NoReference` if it is readable and holds no answer.
    Raises `DataError` if any gold fails and `on_bad_gold` is stop, or if all fail.
    """
    verdicts: dict[str, Verdict] = {}
    requests: list[VerifyRequest] = []
    unchecked: list[str] = []
    for example in examples:
        if example.gold is None:
            unchecked.append(example.id)
            continue
        try:
            response = gold_response(example.gold, example.meta)
        except NoReference:
            unchecked.append(example.id)
            continue
        except BadGold as error:
            verdicts[example.id] = Verdict(None, Status.BAD_GOLD, error.what)
            continue
        requests.append(VerifyRequest(response, example.gold, example.meta, example.id))
    answers = verify(requests)
    if len(answers) != len(requests):
        raise VerifierError(f"The verifier was asked {len(requests)} times and gave {len(answers)} verdicts.")
    verdicts |= {request.example_id: verdict for request, verdict in zip(requests, answers, strict=True)}
    bad = [(e.id, verdicts[e.id]) for e in examples
           if e.id in verdicts and verdicts[e.id].status is not Status.CORRECT]  # fmt: skip
    if bad and (on_bad_gold == "stop" or len(bad) == len(examples)):
        raise _bad_golds(bad, len(examples))
    dropped = {name for name, _ in bad}
    return [e for e in examples if e.id not in dropped], bad, unchecked


def _bad_golds(bad: list[tuple[str, Verdict]], num_examples: int) -> DataError:
    shown = [f"{name}: {verdict.status} ({verdict.evidence})" for name, verdict in bad[:MAX_GOLDS_SHOWN]]
    more = [f"... and {len(bad) - MAX_GOLDS_SHOWN} more"] if len(bad) > MAX_GOLDS_SHOWN else []
    return DataError(
        f"{len(bad)} of {num_examples} gold answers do not verify against themselves.",
        where="\n    ".join(["", *shown, *more]),
        why="a gold that cannot be read makes every reward of its row wrong",
        fix="correct these rows or choose the verifier that fits them; data.on_bad_gold=skip leaves bad rows out",
    )
