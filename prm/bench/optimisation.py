"""Over-optimisation: what the true score does while a proxy is pushed up, by choosing the best of n or by training.

Sources: Gao et al., arXiv:2210.10760 (both curves, and the KL of best-of-n, log n - (n - 1) / n); Coste et al.,
arXiv:2310.02743.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True, slots=True)
class BestOfN:
    """n: samples chosen from. kl: of best-of-n to the policy, in nats, at most. proxy, gold: of the chosen one,
    expected over which n of a problem's samples are drawn, mean over the problems. gold_error: standard error of that
    mean."""

    n: int
    kl: float
    proxy: float
    gold: float
    gold_error: float | None

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def best_of_n(problems: Sequence[Sequence[tuple[float, float]]], sizes: Iterable[int]) -> list[BestOfN]:
    """problems: (proxy, gold) of the samples of each. Sizes above the fewest samples of a problem are left out, so that
    all points are over the same problems. Of equal proxies one is chosen at random."""
    fewest = min((len(samples) for samples in problems), default=0)
    return [_point(problems, n) for n in sorted(set(sizes)) if 1 <= n <= fewest]


def _point(problems: Sequence[Sequence[tuple[float, float]]], n: int) -> BestOfN:
    chosen = [expected_best(samples, n) for samples in problems]
    gold = [g for _, g in chosen]
    mean = math.fsum(gold) / len(gold)
    error = None
    if len(gold) > 1:
        error = math.sqrt(math.fsum((g - mean) ** 2 for g in gold) / (len(gold) - 1) / len(gold))
    return BestOfN(n, math.log(n) - (n - 1) / n, math.fsum(p for p, _ in chosen) / len(chosen), mean, error)


def expected_best(samples: Sequence[tuple[float, float]], n: int) -> tuple[float, float]:
    """(proxy, gold) of the sample of highest proxy among n drawn without replacement, expected exactly: the chance
    that the best lies among samples of one proxy is that of drawing no better one, minus that of drawing none of them
    too."""
    total = math.comb(len(samples), n)
    ordered = sorted(samples, key=lambda sample: sample[0])
    below, proxy, gold = 0, 0.0, 0.0
    for score, tied in groupby(ordered, key=lambda sample: sample[0]):
        golds = [g for _, g in tied]
        chance = (math.comb(below + len(golds), n) - math.comb(below, n)) / total
        proxy += chance * score
        gold += chance * math.fsum(golds) / len(golds)
        below += len(golds)
    return proxy, gold


def overoptimised(proxy: Sequence[float], gold: Sequence[float]) -> dict[str, Any]:
    """Of a curve in order of optimisation: where the true score was highest, what was lost since, and whether the proxy
    rose meanwhile (the sign of a hacked reward)."""
    peak = max(range(len(gold)), key=lambda i: gold[i])
    lost = gold[peak] - gold[-1]
    return {"peak": peak, "lost": lost, "hacked": lost > 0 and proxy[-1] > proxy[peak]}
