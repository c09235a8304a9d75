"""What a relation names and what value it gives the name: x = 5, f(x) = x^2, (x, y) = (1, 2), a = b = 3."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from verifiers.math import scalars
from verifiers.math.evaluate import Undefined, mp
from verifiers.math.shapes import has_pi, is_label
from verifiers.math.syntax import (
    Builder,
    Node,
    Op,
    Rel,
    Seq,
    Sym,
    is_scalar,
    substitute,
    variables,
)


def reading(node: Node) -> tuple[tuple[Node, ...], Node | None] | None:
    """(names, value) of 'x = y = 5' and its like; no value if it is a true equation or inequality; None if it is
    false ('7 = 8') or says two things ('x = 7 = 9')."""
    if not isinstance(node, Rel):
        return (), node
    if any(op not in ("=", "~") for op in node.ops):
        return (), None
    labels = tuple(item for item in node.items if is_label(item))
    values = [item for item in node.items if not is_label(item)]
    if not values:  # f(y) = y, x = y
        return node.items[:1], node.items[-1]
    constants = [v for v in values if is_scalar(v) and not variables(v)]
    is_constant = frozenset(constants).__contains__
    for first, second, op in zip(node.items, node.items[1:], node.ops, strict=False):
        if is_constant(first) and is_constant(second) and not _agree(first, second, rounded=op == "~"):
            return None
    if len(constants) > 1:
        exact_first, rounded = constants[0], "~" in node.ops
        if not all(_agree(exact_first, c, rounded=rounded) for c in constants[1:]):
            return None
        if len(constants) == len(values):
            return labels, exact_first if rounded else constants[-1]
    if labels or len(constants) == len(values):
        return labels, values[-1]
    return (), None


def named_value(node: Node) -> Node:
    """2 pi of 'C = 2 pi'; a relation without names as it is."""
    if isinstance(node, Rel):
        found = reading(node)
        if found is not None and found[0] and found[1] is not None:
            return found[1]
    return node


def _agree(a: Node, b: Node, *, rounded: bool) -> bool:
    if scalars.equal(a, b):
        return True
    if scalars.rounds_to(b, a) or scalars.rounds_to(a, b):
        return True
    if not rounded:
        return False
    try:
        x, y = scalars.constant(a), scalars.constant(b)
    except Undefined:
        return False
    return bool(abs(x - y) <= mp.mpf("0.005") * max(abs(x), abs(y)))


def rename_argument(gold_label: Node, answer_label: Node, answer: Node) -> Node | None:
    """f(z) = z and f(x) = x are one function: `answer` in the gold's argument."""
    for label in (gold_label, answer_label):
        if not (isinstance(label, Op) and label.name.startswith("call:") and len(label.args) == 1):
            return None
    assert isinstance(gold_label, Op)
    assert isinstance(answer_label, Op)
    old, new = answer_label.args[0], gold_label.args[0]
    if not isinstance(old, Sym) or not isinstance(new, Sym) or new.name in variables(answer) - {old.name}:
        return None
    return substitute(answer, old.name, new)


def rename_parameter(gold: Node, answer: Node) -> Node | None:
    """pi/6 + k pi and pi/6 + n pi: `answer` with the gold's name for its one integer parameter."""
    extra_gold, extra_answer = variables(gold) - variables(answer), variables(answer) - variables(gold)
    if len(extra_gold) != 1 or len(extra_answer) != 1:
        return None
    (old,), (new,) = extra_answer, extra_gold
    if not {old, new} <= set("knmlt") or not has_pi(gold):
        return None
    return substitute(answer, old, Sym(new))


def comparable(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    """Whether values may be compared without their names: one side has none, both are plain names, or they are equal.
    x + y + z = 0 is not 2y + z = 0."""
    if not gold or not answer:
        return True
    plain = all(not (isinstance(label, Op) and label.name in ("add", "div")) for label in (*gold, *answer))
    return plain or any(is_scalar(g) and is_scalar(a) and scalars.equal(g, a) for g in gold for a in answer)


def contradicting(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    """x = 5 is not y = 5; but f(x) = ... may be y = ..., and P = 5 may be p = 5."""
    plain = [
        {label.name.lower() for label in side if isinstance(label, Sym) and len(label.name) == 1}
        for side in (gold, answer)
    ]
    whole = all(all(isinstance(label, Sym) for label in side) for side in (gold, answer))
    return whole and bool(plain[0]) and bool(plain[1]) and not plain[0] & plain[1]


def names_of(items: Sequence[Node]) -> list[Node]:
    """The name of each value, if all have one."""
    names = []
    for item in items:
        if not (isinstance(item, Rel) and item.ops == ("=",)):
            return []
        label = next((side for side in item.items if is_label(side)), None)
        if label is None:
            return []
        names.append(label)
    return names


def are_consecutive(names: Sequence[Node]) -> bool:
    """Names such as a, b, c or x, y, z, in any order: their values belong in the order of the alphabet."""
    letters = sorted(name.name for name in names if isinstance(name, Sym) and re.fullmatch("[a-z]", name.name))
    return len(letters) == len(names) and all(ord(b) - ord(a) == 1 for a, b in itertools.pairwise(letters))


def are_distinct(names: Sequence[Node]) -> bool:
    """Names of different things, not x_1 and x_2, which are two values of one."""
    letters = {Sym(name.name.partition("_")[0]) if isinstance(name, Sym) else name for name in names}
    return len(names) > 1 and len(letters) == len(names)


def unlabelled(node: Node) -> Node:
    r"""The set S of 'x \in S' and of 'D = S'."""
    if isinstance(node, Rel) and node.ops == ("in",) and isinstance(node.items[0], Sym):
        return node.items[1]
    if (
        isinstance(node, Rel)
        and node.ops == ("=",)
        and is_label(node.items[0])
        and isinstance(node.items[1], Seq | Builder | Op)
    ):
        return node.items[1] if not is_scalar(node.items[1]) else node
    return node
