"""The verifiers of the report behind one interface: ours, and each peer as a `Verifier` class that a worker process
builds, so that a peer that hangs or dies costs one case.

A worker judges in its main thread, the only one in which math-verify's own time limits work: each peer is measured with
the protection its authors gave it. A peer's exception is a `verifier_fault` and its abstention (None) a `bad_gold`:
neither counts as a wrong answer.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verifiers.errors import ConfigError, did_you_mean
from verifiers.options import Options as BaseOptions
from verifiers.text import final_boxes
from verifiers.verdict import Status, Verdict, VerifyRequest


@dataclass(frozen=True, slots=True)
class Contestant:
    """name: in the report. kind: for `Runner`. packages: what has to be installed. about: how it is called."""

    name: str
    kind: str
    about: str
    packages: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


class Peer:
    """What the peers share: options there are none, and a perfect response is a box."""

    isolated = True

    class Options(BaseOptions):
        pass

    def __init__(self, options: Options):
        del options
        self.verify(VerifyRequest("\\boxed{1}", "1"))  # imports and compiles, before the first case is timed

    def verify(self, request: VerifyRequest) -> Verdict:
        score = self.score(request.response, str(request.gold))
        if score is None:
            return Verdict(None, Status.BAD_GOLD, "abstained")
        return Verdict(float(score), Status.CORRECT if score else Status.WRONG)

    def score(self, response: str, gold: str) -> float | bool | None:
        raise NotImplementedError

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        return f"\\boxed{{{gold}}}"


class MathVerifyPeer(Peer):
    """math-verify as its README calls it, with its own defaults and time limits."""

    def score(self, response: str, gold: str) -> bool:
        from math_verify import parse, verify

        return verify(parse(f"${gold}$"), parse(response))


class TrlPeer(Peer):
    """TRL's `accuracy_reward` on one completion."""

    def score(self, response: str, gold: str) -> float | None:
        from trl.rewards import accuracy_reward  # pyright: ignore[reportMissingImports]

        (score,) = accuracy_reward([[{"role": "assistant", "content": response}]], [f"${gold}$"])
        return score


class VerlPeer(Peer):
    """verl's math-verify wrapper, which boxes the gold itself."""

    def score(self, response: str, gold: str) -> float:
        from verl.utils.reward_score.math_verify import compute_score  # pyright: ignore[reportMissingImports]

        return compute_score(response, gold)


_DROPPED = re.compile(
    r"\\left|\\right|\\[!,;: ]|\\\$|\$|\\%|%|\^\{?\\circ\}?|\s|(?<!\d)0(?=\.\d)|\.$|\\(?:math)?(?:rm|bf)"
)
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf)\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"\\frac(\w)(\w)")
_SHORT_ROOT = re.compile(r"\\sqrt(\w)")


class StringMatchPeer(Peer):
    """The last box and the gold as strings, evened out like in the MATH reference grader.

    Spaces, \\left and \\right, dollar, percent and degree signs, \\text{}, \\dfrac, \\frac12, \\sqrt3. Source:
    Hendrycks et al., "Measuring Mathematical Problem Solving With the MATH Dataset", 2021.
    """

    def score(self, response: str, gold: str) -> bool:
        boxes = final_boxes(response)
        return bool(boxes) and normalised(boxes[-1]) == normalised(gold)


def normalised(text: str) -> str:
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _DROPPED.sub("", _TEXT.sub(r"\1", text))
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text))
    head, equals, tail = text.partition("=")
    return tail if equals and len(head) <= 2 else text


def _peer(name: str, peer: type[Peer], *packages: str) -> Contestant:
    about = str(peer.__doc__).split("\n")[0]
    return Contestant(name, f"{__name__}:{peer.__name__}", about, packages)


OURS = "assay"
CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(OURS, "math", "The kind `math` of this package."),
        _peer("math-verify", MathVerifyPeer, "math_verify"),
        _peer("trl", TrlPeer, "trl", "math_verify"),
        _peer("verl", VerlPeer, "verl", "math_verify"),
        _peer("string-match", StringMatchPeer),
    )
}


def contestants(names: list[str]) -> list[Contestant]:
    """Raises `ConfigError` for a name that does not exist."""
    for name in names:
        if name not in CONTESTANTS:
            raise ConfigError(f"Unknown verifier '{name}'.", where="--verifiers", fix=did_you_mean(name, CONTESTANTS))
    return [CONTESTANTS[name] for name in names]
