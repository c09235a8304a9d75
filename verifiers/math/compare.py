"""Is this answer the gold? Both are typed forms; every type has its own rule, and no type is coerced into another
unless the mathematics says they are one thing (a column vector and a tuple, an interval and an inequality).

Symmetric where the mathematics is. Not symmetric where a gold is not: a gold given as a rounded decimal accepts the
exact value, an exact gold accepts no coarse decimal; a gold without its variable ('5') accepts 'x = 5'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from verifiers.math import scalars, units
from verifiers.math.equations import FLIPPED, difference_of, reversed_relation, solves
from verifiers.math.evaluate import exact
from verifiers.math.names import (
    are_consecutive,
    are_distinct,
    comparable,
    contradicting,
    named_value,
    names_of,
    reading,
    rename_argument,
    rename_parameter,
    unlabelled,
)
from verifiers.math.realsets import interval_of, is_set_like, pieces_of, same_pieces, variable_of
from verifiers.math.rewrite import MAX_SIGNS, expand_signs, plainly
from verifiers.math.shapes import (
    as_tuple,
    entries_of,
    exact_or_none,
    has_ellipsis,
    has_pi,
    is_kind,
    is_ordered,
    is_undefined,
    items_of,
    kind_of,
    numbers_in,
    plain_text,
    split_unit,
    spoken_values,
    without_unit_letters,
)
from verifiers.math.syntax import (
    Builder,
    Matrix,
    Node,
    Num,
    Op,
    Ratio,
    Rel,
    Seq,
    Text,
    Unit,
    is_scalar,
    walk,
)

_MAX_PAIRED_NODES = 10_000  # of items that are compared each with each


@dataclass(frozen=True, slots=True)
class Profile:
    """units: a unit in the gold must be in the answer. ordered: items of a list must come in the gold's order."""

    units: bool = False
    ordered: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    equal: bool
    rule: str


def compare(gold: Node, answer: Node, profile: Profile) -> Decision:
    """Whether `answer` is the gold, and the rule that decided."""
    gold, answer = expand_signs(plainly(gold)), expand_signs(plainly(answer))
    return _Comparison(profile).decide(gold, answer)


def has_direction(form: Node) -> bool:
    """Whether something in it makes a gold more than an answer, so that comparing the other way round may come out
    differently: a rounded decimal, a percentage, a unit, a label, words, a list without brackets."""
    return any(
        (isinstance(n, Num) and n.places is not None)
        or (isinstance(n, Op) and n.name == "percent")
        or isinstance(n, Unit | Text | Rel)
        or is_kind(n, "list")
        for n in walk(form)
    )


def _in_radians(node: Node) -> Node:
    return node.value if isinstance(node, Unit) and node.unit == "rad" else node


def _by_name(names: Sequence[Node], items: Sequence[Node]) -> tuple[Node, ...]:
    return tuple(item for _, item in sorted(zip(names, items, strict=True), key=lambda pair: repr(pair[0])))


def _yes(rule: str) -> Decision:
    return Decision(True, rule)


def _no(rule: str) -> Decision:
    return Decision(False, rule)


def _are_few(items: Sequence[Node]) -> bool:
    """Whether there is time to compare each with each."""
    return len(items) * sum(1 for item in items for _ in walk(item)) <= _MAX_PAIRED_NODES


class _Comparison:
    def __init__(self, profile: Profile):
        self.profile = profile

    def same(self, gold: Node, answer: Node) -> bool:
        return self.decide(gold, answer).equal

    def decide(self, gold: Node, answer: Node) -> Decision:
        if gold == answer and not is_undefined(gold):
            return _yes("the same form")
        if isinstance(gold, Text) or isinstance(answer, Text):
            return self._texts(gold, answer)
        if isinstance(gold, Unit) or isinstance(answer, Unit):
            return self._units(gold, answer)
        if is_set_like(gold) or is_set_like(answer):
            decision = self._real_sets(gold, answer)
            if decision is not None:
                return decision
        if is_kind(gold, "list") or is_kind(answer, "list"):
            return self._lists(gold, answer)
        if isinstance(gold, Rel) or isinstance(answer, Rel):
            return self._relations(gold, answer)
        if isinstance(gold, Ratio) or isinstance(answer, Ratio):
            return self._ratios(gold, answer)
        if isinstance(gold, Builder) or isinstance(answer, Builder):
            return self._builders(gold, answer)
        if is_kind(gold, "set") or is_kind(answer, "set"):
            return self._sets(gold, answer)
        if isinstance(gold, Matrix) and isinstance(answer, Matrix) and len(gold.rows) > 1 and len(gold.rows[0]) > 1:
            return self._matrices(gold, answer)
        tuples = as_tuple(gold, answer), as_tuple(answer, gold)
        if tuples[0] is not None and tuples[1] is not None:
            return self._in_order(tuples[0], tuples[1], "tuple")
        if is_scalar(gold) and is_scalar(answer):
            return self._scalars(gold, answer)
        if (
            isinstance(gold, Op)
            and isinstance(answer, Op)
            and gold.name == answer.name
            and len(gold.args) == len(answer.args)
        ):
            return self._in_order(gold.args, answer.args, gold.name)
        return _no(f"{kind_of(answer)} is not {kind_of(gold)}")

    # ---- leaves --------------------------------------------------

    def _scalars(self, gold: Node, answer: Node) -> Decision:
        if scalars.equal(gold, answer):
            return _yes("equal values")
        if scalars.rounds_to(gold, answer):
            return _yes("rounds to the decimals of the gold")
        if scalars.approximates(gold, answer):
            return _yes(f"agrees with the exact gold to {scalars.FINE_DIGITS} or more digits")
        renamed = rename_parameter(gold, answer)
        if renamed is not None and scalars.equal(gold, renamed):
            return _yes("equal up to the name of an integer parameter")
        return _no("different values")

    def _texts(self, gold: Node, answer: Node) -> Decision:
        words = plain_text(gold), plain_text(answer)
        if words[0] and words[0] == words[1]:
            return _yes("the same text")
        if {words[0], words[1]} == {"nosolution", "emptyset"}:
            return _yes("no solution is the empty set")
        if isinstance(gold, Text) and (gold_numbers := numbers_in(gold.words)):
            spoken = spoken_values(answer)
            if len(gold_numbers) >= 2 and spoken == gold_numbers:
                return _yes("the numbers of the sentence, in order")
        if isinstance(gold, Rel) or isinstance(answer, Rel):
            return self._relations(gold, answer)
        return _no("different texts")

    def _units(self, gold: Node, answer: Node) -> Decision:
        gold, answer = named_value(gold), named_value(answer)
        gold_value, gold_unit = split_unit(gold)
        answer_value, answer_unit = split_unit(answer)
        if {gold_unit, answer_unit} == {"deg", "rad"}:
            return self._scalars(_in_radians(gold), _in_radians(answer))
        if gold_unit == "deg" or answer_unit == "deg":
            return self._degrees(gold_value, gold_unit, answer_value, answer_unit)
        if gold_unit is not None and answer_unit is None:
            stripped = without_unit_letters(answer_value, gold_unit)
            if stripped is None and self.profile.units:
                return _no(f"the unit {gold_unit} is missing")
            answer_value = answer_value if stripped is None else stripped
        scale = Fraction(1)
        if gold_unit is not None and answer_unit is not None:
            if self.profile.units and units.normal(gold_unit) != units.normal(answer_unit):
                return _no(f"{answer_unit} is not {gold_unit}")
            found = units.factor(gold_unit, answer_unit)
            if found is None:
                return _no(f"{answer_unit} is not a {gold_unit}")
            scale = found
        if scale != 1:
            answer_value = Op("mul", (Num(scale), answer_value))
        return self.decide(gold_value, answer_value)

    def _degrees(self, gold: Node, gold_unit: str | None, answer: Node, answer_unit: str | None) -> Decision:
        if gold_unit == answer_unit == "deg" or gold_unit is None or answer_unit is None:
            bare = self.decide(gold, answer)
            if bare.equal:
                return bare
        if gold_unit == "deg" and answer_unit is None and is_scalar(answer) and is_scalar(gold):
            return self._scalars(Unit(gold, "deg"), answer) if has_pi(answer) else _no("different angles")
        if answer_unit == "deg" and gold_unit is None and is_scalar(gold) and is_scalar(answer):
            return self._scalars(gold, Unit(answer, "deg")) if has_pi(gold) else _no("different angles")
        return _no("different angles")

    # ---- relations -----------------------------------------------

    def _relations(self, gold: Node, answer: Node) -> Decision:
        """At least one side is a relation that is no set of reals."""
        gold_reading, answer_reading = reading(gold), reading(answer)
        if gold_reading is None or answer_reading is None:
            return _no("a statement that contradicts itself")
        (gold_labels, gold_value), (answer_labels, answer_value) = gold_reading, answer_reading
        if gold_value is not None and answer_value is not None and comparable(gold_labels, answer_labels):
            decision = self._labelled(gold_labels, gold_value, answer_labels, answer_value)
            if decision.equal or not (isinstance(gold, Rel) and isinstance(answer, Rel)):
                return decision
        if isinstance(gold, Rel) and isinstance(answer, Rel):
            return self._same_relation(gold, answer)
        return _no(f"{kind_of(answer)} is not {kind_of(gold)}")

    def _labelled(
        self, gold_labels: Sequence[Node], gold: Node, answer_labels: Sequence[Node], answer: Node
    ) -> Decision:
        if isinstance(gold, Rel) or isinstance(answer, Rel):
            return _no("relations")
        if gold_labels and answer_labels:
            renamed = rename_argument(gold_labels[0], answer_labels[0], answer)
            if renamed is not None:
                answer = renamed
            elif contradicting(gold_labels, answer_labels):
                return _no("values of different variables")
        decision = self.decide(gold, answer)
        return Decision(decision.equal, f"{decision.rule} (of a named value)")

    def _same_relation(self, gold: Rel, answer: Rel) -> Decision:
        for candidate in (answer, reversed_relation(answer)):
            if candidate.ops == gold.ops and all(map(self.same, gold.items, candidate.items)):
                return _yes("the same relation, side by side")
        if len(gold.ops) == 1 and len(answer.ops) == 1:
            for candidate in (answer, reversed_relation(answer)):
                if candidate.ops == gold.ops and gold.ops[0] in FLIPPED:
                    difference = difference_of(gold), difference_of(candidate)
                    if difference[0] is None or difference[1] is None:
                        continue
                    equation = gold.ops[0] in ("=", "!=")
                    if scalars.proportional(difference[0], difference[1], positive=not equation):
                        return _yes("the same relation, up to a constant factor")
                    if gold.ops[0] == "=" and (solves(gold, candidate) or solves(candidate, gold)):
                        return _yes("the same equation, solved for a variable")
        return _no("different relations")

    # ---- collections ---------------------------------------------

    def _real_sets(self, gold: Node, answer: Node) -> Decision | None:
        """None if the two cannot be read as sets of reals."""
        names = variable_of(gold), variable_of(answer)
        if isinstance(gold, Rel) and isinstance(answer, Rel) and None not in names and names[0] != names[1]:
            return _no("conditions on different variables")
        pieces = pieces_of(unlabelled(gold)), pieces_of(unlabelled(answer))
        if pieces[0] is None or pieces[1] is None:
            left, right = interval_of(gold), interval_of(answer)
            if left is None or right is None or (isinstance(gold, Rel) and isinstance(answer, Rel)):
                return self._membership(gold, answer)
            if (left.opening, left.closing) != (right.opening, right.closing):
                return _no("intervals with different ends")
            return self._in_order(left.items, right.items, "interval")
        if same_pieces(pieces[0], pieces[1]):
            return _yes("the same set of reals")
        if (
            isinstance(gold, Seq)
            and isinstance(answer, Seq)
            and gold.kind == answer.kind
            and len(gold.items) == len(answer.items)
        ) and (gold.opening, gold.closing) == (answer.opening, answer.closing):
            return self._in_order(gold.items, answer.items, gold.kind)
        return _no("different sets of reals")

    def _membership(self, gold: Node, answer: Node) -> Decision | None:
        stripped = unlabelled(gold), unlabelled(answer)
        if stripped != (gold, answer):
            return self.decide(*stripped)
        return None

    def _lists(self, gold: Node, answer: Node) -> Decision:
        gold_items, answer_items = items_of(gold), items_of(answer)
        if is_kind(gold, "set") or is_kind(answer, "set"):
            return self._sets(gold, answer)
        if is_ordered(gold) or is_ordered(answer):
            whole = gold if is_ordered(gold) else answer
            listed = answer_items if whole is gold else gold_items
            if any(isinstance(item, Seq) for item in listed):
                return _no("a list of tuples is not one tuple")
            if (names := names_of(listed)) and are_consecutive(names):  # c = 1, b = 2, a = 3
                listed = _by_name(names, listed)
                gold_items, answer_items = (gold_items, listed) if whole is gold else (listed, answer_items)
            return self._in_order(gold_items, answer_items, "list")
        if len(gold_items) < len(answer_items) and len(gold_items) > 1:
            answer_items = tuple(self._distinct_items(answer_items))  # a solution that is listed twice is still one
        if len(gold_items) != len(answer_items):
            single = _no(f"{len(answer_items)} values instead of {len(gold_items)}")
            if len(gold_items) == 1 or len(answer_items) == 1:
                return self._one_against_many(gold_items, answer_items) or single
            return single
        gold_names, answer_names = names_of(gold_items), names_of(answer_items)
        if (
            gold_names
            and answer_names
            and set(gold_names) == set(answer_names)
            and len(set(gold_names)) == len(gold_names)
        ):
            by_name = dict(zip(answer_names, answer_items, strict=True))
            return self._in_order(gold_items, [by_name[n] for n in gold_names], "named values")
        if self.profile.ordered or are_distinct(gold_names) or has_ellipsis(gold_items):
            return self._in_order(gold_items, answer_items, "list")
        if are_distinct(answer_names):
            by_place = self._in_order(gold_items, answer_items, "list")
            if by_place.equal and not are_consecutive(answer_names):
                return by_place
            return self._in_order(gold_items, _by_name(answer_names, answer_items), "list by name")
        return self._match(gold_items, answer_items, "list")

    def _one_against_many(self, gold: Sequence[Node], answer: Sequence[Node]) -> Decision | None:
        """'x = 1, 2, 3' is the list x = 1, x = 2, x = 3; a list of equal values in other forms is one value."""
        many = answer if len(gold) == 1 else gold
        one = gold if len(gold) == 1 else answer
        if many is not answer or len(many) > MAX_SIGNS or any(isinstance(item, Rel) for item in many):
            return None
        return _yes("one value, repeated") if all(self.same(one[0], item) for item in many) else None

    def _sets(self, gold: Node, answer: Node) -> Decision:
        if not all(isinstance(side, Seq) and side.kind in ("set", "list") for side in (gold, answer)):
            element, whole = (gold, answer) if is_kind(answer, "set") else (answer, gold)
            if isinstance(whole, Seq) and len(whole.items) == 1 and is_scalar(element):  # {7} and 7
                only = whole.items[0]
                return self.decide(only, answer) if whole is gold else self.decide(gold, only)
            return _no(f"{kind_of(answer)} is not {kind_of(gold)}")
        return self._match(self._distinct_items(items_of(gold)), self._distinct_items(items_of(answer)), "set")

    def _distinct_items(self, items: Sequence[Node]) -> list[Node]:
        kept: list[Node] = []
        seen: set[Fraction] = set()
        few = _are_few([item for item in items if exact_or_none(item) is None])
        for item in items:
            value = exact(item) if is_scalar(item) else None
            if value is not None:
                if value in seen:
                    continue
                seen.add(value)
            elif few and any(self.same(item, k) for k in kept if exact_or_none(k) is None):
                continue
            kept.append(item)
        return kept

    def _match(self, gold: Sequence[Node], answer: Sequence[Node], what: str) -> Decision:
        """The same items, in any order."""
        if len(gold) != len(answer):
            return _no(f"{len(answer)} values instead of {len(gold)}")
        left = list(answer)
        rest: list[Node] = []
        exact_answers: dict[Fraction, list[int]] = {}
        for index, item in enumerate(left):
            value = exact_or_none(item)
            if value is not None:
                exact_answers.setdefault(value, []).append(index)
        used: set[int] = set()
        for item in gold:
            value = exact_or_none(item)
            indices = exact_answers.get(value, []) if value is not None else []
            if indices:
                used.add(indices.pop())
            else:
                rest.append(item)
        left = [item for index, item in enumerate(left) if index not in used]
        if not (_are_few(rest) and _are_few(left)):
            return _no(f"different {what}s (too long to try all pairs)")
        for item in rest:
            found = next((k for k, candidate in enumerate(left) if self.same(item, candidate)), None)
            if found is None:
                return _no(f"different {what}s")
            del left[found]
        return _yes(f"the same {what}, item by item")

    def _in_order(self, gold: Sequence[Node], answer: Sequence[Node], what: str) -> Decision:
        if len(gold) != len(answer):
            return _no(f"{len(answer)} values instead of {len(gold)}")
        for position, (g, a) in enumerate(zip(gold, answer, strict=True)):
            decision = self.decide(g, a)
            if not decision.equal:
                return _no(f"{what}, item {position + 1}: {decision.rule}")
        return _yes(f"the same {what}, in order")

    def _matrices(self, gold: Matrix, answer: Matrix) -> Decision:
        if (len(gold.rows), len(gold.rows[0])) != (len(answer.rows), len(answer.rows[0])):
            return _no("matrices of different sizes")
        return self._in_order(entries_of(gold), entries_of(answer), "matrix")

    def _builders(self, gold: Node, answer: Node) -> Decision:
        if not (isinstance(gold, Builder) and isinstance(answer, Builder)):
            return _no(f"{kind_of(answer)} is not {kind_of(gold)}")
        return self._in_order((gold.member, gold.condition), (answer.member, answer.condition), "set builder")

    def _ratios(self, gold: Node, answer: Node) -> Decision:
        gold_parts = gold.parts if isinstance(gold, Ratio) else None
        answer_parts = answer.parts if isinstance(answer, Ratio) else None
        if gold_parts is not None and answer_parts is not None and len(gold_parts) == len(answer_parts):
            parts = (*gold_parts, *answer_parts)
            if has_ellipsis(gold_parts) or not all(map(is_scalar, parts)) or any(exact(part) == 0 for part in parts):
                return self._in_order(gold_parts, answer_parts, "ratio")
            first = gold_parts[0], answer_parts[0]
            for g, a in zip(gold_parts[1:], answer_parts[1:], strict=True):
                if not scalars.equal(Op("mul", (g, first[1])), Op("mul", (a, first[0]))):
                    return _no("different ratios")
            return _yes("the same ratio")
        values = [
            Op("div", side.parts) if isinstance(side, Ratio) and len(side.parts) == 2 else side
            for side in (gold, answer)
        ]
        if all(map(is_scalar, values)):
            return self._scalars(values[0], values[1])
        return _no(f"{kind_of(answer)} is not {kind_of(gold)}")
