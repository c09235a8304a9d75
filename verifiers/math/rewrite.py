"""Changing a form without changing what it says: signs expanded, names replaced, comments dropped."""

from __future__ import annotations

from collections.abc import Iterator

from verifiers.math.shapes import is_kind, plain_text
from verifiers.math.syntax import (
    REALS,
    Node,
    Op,
    Rel,
    Seq,
    Text,
    map_children,
    walk,
)

MAX_SIGNS = 4


def plainly(node: Node) -> Node:
    r"""Without what only comments on a value: 'n \in \mathbb{Z}' after it; 'all real numbers' as the set."""
    if isinstance(node, Text) and plain_text(node) in ("allrealnumbers", "allreals", "realnumbers"):
        return REALS
    if isinstance(node, Seq) and node.kind == "list":
        kept = tuple(item for item in node.items if not _is_domain(item))
        if 0 < len(kept) < len(node.items):
            return kept[0] if len(kept) == 1 else Seq("list", kept, joiner=node.joiner)
    return node


def _is_domain(node: Node) -> bool:
    return isinstance(node, Rel) and node.ops == ("in",) and isinstance(node.items[1], Text)


def expand_signs(node: Node) -> Node:
    r"""3 \pm 2 as the list of both; at most four independent signs, \mp being the opposite of the first \pm."""
    if not any(isinstance(n, Op) and n.name in ("pm", "mp") for n in walk(node)):
        return node
    if isinstance(node, Seq) and node.kind in ("list", "set"):
        items: list[Node] = []
        for item in node.items:
            expanded = expand_signs(item)
            items += expanded.items if is_kind(expanded, "list") and expanded != item else [expanded]  # type: ignore[union-attr]
        return Seq(node.kind, tuple(items), node.opening, node.closing, node.joiner)
    count = sum(isinstance(n, Op) and n.name == "pm" for n in walk(node))
    if count > MAX_SIGNS:
        return node
    variants = []
    for choice in range(2 ** max(1, count)):
        signs = iter([bool(choice >> k & 1) for k in range(max(1, count))])
        variants.append(_with_signs(node, signs, first=not choice & 1))
    return Seq("list", tuple(dict.fromkeys(variants)), joiner="or")


def _with_signs(node: Node, signs: Iterator[bool], *, first: bool) -> Node:
    def rebuild(n: Node) -> Node:
        if isinstance(n, Op) and n.name in ("pm", "mp"):
            left = [rebuild(a) for a in n.args[:-1]]
            negative = next(signs, False) if n.name == "pm" else first
            right = rebuild(n.args[-1])
            right = Op("neg", (right,)) if negative else right
            return Op("add", (*left, right)) if left else right
        return map_children(n, rebuild)

    return rebuild(node)
