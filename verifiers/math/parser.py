r"""Tokens -> one typed form (`syntax`). Precedence climbing; nothing is evaluated and nothing is guessed silently.

From loosest to tightest: list (, ; and or), relation chain, ratio a:b, set operations, then `expressions`. Whatever is
not covered raises `Unreadable`: the caller then compares texts, or asks the slow path.
"""

from __future__ import annotations

import re

from verifiers.math.building import KNOWN_WORDS, member_of
from verifiers.math.expressions import Expressions
from verifiers.math.lexer import tokenise
from verifiers.math.quantities import QUANTIFIERS, is_loaded, with_unit
from verifiers.math.syntax import (
    EMPTY_SET,
    Builder,
    Matrix,
    Node,
    NotCovered,
    Op,
    Ratio,
    Rel,
    Seq,
    Text,
    Unit,
    Unreadable,
    depth,
    is_scalar,
)
from verifiers.math.vocabulary import FUNCTIONS, SEPARATOR_WORDS

_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "approx": "~", "in": "in", "equiv": "=",
    "doteq": "~",
}  # fmt: skip
_THE_ANSWER_IS = re.compile(
    r"(?:the|our|my)?\s*(?:final|correct)?\s*(?:answer|result|solution)s?\s*(?:is|are)?\s*[:=]?", re.IGNORECASE
)
_NUMBER_SETS = frozenset(["integers", "naturals", "rationals", "complexes"])
_MATRICES = frozenset(["matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "Vmatrix", "smallmatrix", "array"])
_SYSTEMS = frozenset(["cases", "aligned", "align", "gathered", "split", "dcases", "rcases"])
_MAX_TREE_DEPTH = 100


def parse(text: str, *, thousands: bool = True) -> Node:
    """The form of a whole answer. thousands: see `tokenise`. Raises `Unreadable`; linear in the text."""
    node = _Parser(tokenise(text, thousands=thousands)).answer()
    if depth(node) > _MAX_TREE_DEPTH:  # 3!!!!! and 1/2/3/4 nest without brackets
        raise Unreadable(f"a form of more than {_MAX_TREE_DEPTH} levels")
    return node


class _Parser(Expressions):
    def answer(self) -> Node:
        while self._is_one_group():  # braces around the whole say nothing
            self.tokens = self.tokens[1:-1]
        while self.accept(".", ",", ";", ":", "approx"):
            pass
        if self.peek().kind == "end":
            raise Unreadable("nothing there")
        node = self.listing()
        if self.peek().kind != "end":
            raise Unreadable(f"cannot read on at {self.here()}")
        return node

    def _is_one_group(self) -> bool:
        if len(self.tokens) < 2 or (self.tokens[0].kind, self.tokens[0].value) != ("char", "{"):
            return False
        depth = 0
        for position, token in enumerate(self.tokens):
            if token.value in ("over", "choose"):  # they divide what stands in their braces
                return False
            if token.kind in ("char", "cmd"):
                depth += (token.value == "{") - (token.value == "}")
            if depth == 0:
                return position == len(self.tokens) - 1
        return False

    def listing(self, *, stop: tuple[str, ...] = ()) -> Node:
        """Items separated by commas, 'and', 'or'; one item alone is itself."""
        items = [self.item(stop)]
        joiner = ""
        while True:
            found = self.separator(stop)
            if not found:
                break
            if self.ends(stop):
                break
            joiner = found if found != "," or not joiner else joiner
            items.append(self.item(stop))
        if len(items) == 1:
            return items[0]
        return Seq("list", tuple(items), joiner=joiner)

    def ends(self, stop: tuple[str, ...]) -> bool:
        return self.peek().kind == "end" or bool(stop and self.at(*stop))

    def separator(self, stop: tuple[str, ...]) -> str:
        """Consume separators; '' if there is none."""
        found = ""
        while not self.ends(stop):
            token = self.peek()
            if token.kind in ("char", "cmd") and token.value in (",", ";", "\\", "newline", "land", "lor", "."):
                if token.value == "." and not self.sentence_end():
                    break
                word = {"land": "and", "lor": "or"}.get(str(token.value), ",")
            elif token.kind == "word" and token.value in ("and", "or", "AND", "OR"):
                word = str(token.value).lower()
            elif token.kind == "text" and str(token.value).lower() in SEPARATOR_WORDS:
                word = SEPARATOR_WORDS[str(token.value).lower()]
            else:
                break
            self.index += 1
            found = word if word != "," or not found else found
        return found

    def sentence_end(self) -> bool:
        following = self.peek(1)
        return following.kind in ("end", "text") or following.value in (")", "]", "}", ",", ";", ".")

    def item(self, stop: tuple[str, ...]) -> Node:
        prefix = self._leading_words()
        if prefix is not None and (self.ends(stop) or self.at_separator()):
            return Text(prefix)
        node = self.relation()
        if prefix is not None and not (is_scalar(node) or isinstance(node, Rel | Unit | Ratio | Seq)):
            raise Unreadable(f"words before what is no value: '{prefix}'")
        node = self.trailing_words(node, stop)
        if self.at(".") and self.sentence_end():
            self.index += 1
        return node

    def at_separator(self) -> bool:
        start = self.index
        found = self.separator(())
        self.index = start
        return bool(found)

    def _leading_words(self) -> str | None:
        """'maximum' of 'maximum 3', or a whole text answer."""
        words: list[str] = []
        while self.peek().kind == "text" and not self.at_separator():
            if str(self.peek().value).lower() in FUNCTIONS or self.peek(1).value == "_":
                break
            words.append(str(self.take().value))
        if not words and self._lonely_words():
            while self.peek().kind == "word" and not self.at_separator():
                words.append(str(self.take().value))
        if not words:
            return None
        joined = " ".join(words)
        if _THE_ANSWER_IS.fullmatch(joined):
            self.accept(":")
            return None
        following = self.peek()
        alone = following.kind == "end" or self.at_separator() or following.value in (".", "}", ")")
        if not alone and is_loaded(joined):
            raise Unreadable(f"'{joined}' changes what the value says")
        self.accept(":")
        return joined

    def _lonely_words(self) -> bool:
        """A word of prose, not a product of letters: at least two words in a row, or one long one that is alone."""
        first, second = self.peek(), self.peek(1)
        if first.kind != "word" or str(first.value) in FUNCTIONS or first.value in KNOWN_WORDS:
            return False
        if second.kind == "word" and second.spaced and len(str(first.value)) + len(str(second.value)) > 4:
            return str(second.value) not in FUNCTIONS and second.value not in KNOWN_WORDS
        long = len(str(first.value)) >= 4 or str(first.value).lower() in ("yes", "no", "odd", "all")
        return long and (second.kind == "end" or second.value in (",", ".", ";", "}", ":"))

    def trailing_words(self, node: Node, stop: tuple[str, ...]) -> Node:
        """Units, currencies, nouns, quantifiers after a value."""
        words: list[str] = []
        while not self.ends(stop):
            token = self.peek()
            if token.kind == "text" or (token.kind == "word" and (words or token.spaced or len(str(token.value)) > 1)):
                if self.at_separator():
                    break
                words.append(str(token.value))
            elif (
                words
                and token.value in ("/", "^", "-", ".", "%", "'", ":", "_", "{", "}")
                and not (token.value == "." and self.sentence_end())
            ):
                words.append(str(token.value))
            elif words and token.kind == "num" and self.peek(-1).value in ("^", "{", "_"):
                words.append(token.source)
            elif token.kind == "cmd" and token.value == "forall":
                words.append("for all")
            elif words and QUANTIFIERS.match(" ".join(words)) and not self.at_separator():
                words.append(token.source)  # 'for all x \in \mathbb{Z}'
            else:
                break
            self.index += 1
        if not words:
            return node
        return with_unit(node, " ".join(words))

    # ---- relations, ratios, sets ---------------------------------

    def relation(self) -> Node:
        items = [self.ratio()]
        ops: list[str] = []
        while (op := self._relation_sign()) is not None:
            ops.append(op)
            if op == "in" and self.peek().kind == "cmd" and self.peek().value in _NUMBER_SETS:
                items.append(Text(str(self.take().value)))
            else:
                items.append(self.ratio())
        if self.at("pmod", "bmod", "mod"):  # x \equiv 3 \pmod 7
            self.index += 1
            items[-1] = Op("call:mod", (items[-1], self._argument()))
        return Rel(tuple(items), tuple(ops)) if ops else items[0]

    def _relation_sign(self) -> str | None:
        token = self.peek()
        if token.kind not in ("char", "cmd") or token.value not in _RELATIONS:
            if token.value == "!" and self.peek(1).value == "=":
                self.index += 2
                return "!="
            if token.value == ":" and self.peek(1).value == "=":
                self.index += 2
                return "="
            return None
        self.index += 1
        op = _RELATIONS[str(token.value)]
        if op in ("<", ">") and self.accept("="):
            return op + "="
        if op == "=" and self.at("<", ">", "="):
            follower = str(self.take().value)
            return "=" if follower == "=" else follower + "="
        return op

    def ratio(self) -> Node:
        parts = [self.set_operation()]
        while not self.colon_closes and self.at(":") and self.peek(1).value != "=":
            self.index += 1
            parts.append(self.set_operation())
        return Ratio(tuple(parts)) if len(parts) > 1 else parts[0]

    def set_operation(self) -> Node:
        node = self.sum()
        while self.at("cup", "cap", "setminus") or (self.at("-") and isinstance(node, Seq | Builder)):
            name = {"cup": "union", "cap": "inter", "setminus": "minus", "-": "minus"}[str(self.take().value)]
            node = Op(name, (node, self.sum()))
        return node

    # ---- arithmetic ----------------------------------------------

    def bracketed(self, char: str) -> Node:
        if char == "{":
            node = self.group("}")
            self.expect("}")
            return node
        if char == "(":
            return self._parenthesis("(")
        if char in ("[", "]"):
            return self._parenthesis(char)
        if char == "|":
            return self.delimited("|")
        if char == '"' or char == "'":
            raise Unreadable("a quotation mark")
        raise Unreadable(f"'{char}' where a value should stand")

    def _parenthesis(self, opening: str) -> Node:
        closers = ("]", "[") if opening == "]" else (")", "]", "[")
        bar, colon = self.bar_closes, self.colon_closes
        self.bar_closes = self.colon_closes = False
        items = [self.inside()]
        while self.accept(",", ";"):
            if self.at(*closers):
                break
            items.append(self.inside())
        self.bar_closes, self.colon_closes = bar, colon
        self.accept(".")
        if not self.at(*closers):
            raise Unreadable(f"a bracket '{opening}' is never closed before {self.here()}")
        closing = str(self.take().value)
        if len(items) == 1 and opening != "]":
            return items[0]
        half_open = (opening, closing) != ("(", ")")
        if half_open and len(items) == 2:
            return Seq("interval", tuple(items), opening, closing)
        if half_open and (opening, closing) != ("[", "]"):
            raise Unreadable("an interval needs two ends")
        return Seq("tuple", tuple(items), opening, closing)

    def inside(self) -> Node:
        node = self.relation()
        if self.peek().kind in ("text", "word") and not self.at_separator():
            node = self.trailing_words(node, (",", ")", "]"))
        return node

    def delimited(self, opening: str) -> Node:
        if opening == "|":
            bar = self.bar_closes
            self.bar_closes = True
            node = self.sum()
            self.expect("|")
            self.bar_closes = bar
            return Op("abs", (node,))
        close = {"langle": "rangle", "lfloor": "rfloor", "lceil": "rceil"}[opening]
        items = [self.relation()]
        while self.accept(",", ";"):
            items.append(self.relation())
        self.expect(close)
        if opening == "langle":
            return Seq("tuple", tuple(items), "(", ")")
        return Op("floor" if opening == "lfloor" else "ceil", (items[0],))

    def set_of(self) -> Node:
        if self.accept("}"):
            return EMPTY_SET
        bar, colon = self.bar_closes, self.colon_closes
        self.bar_closes = self.colon_closes = True
        first = self.relation()
        self.bar_closes, self.colon_closes = bar, colon
        if self.accept("|", ":"):
            condition = self.listing(stop=("}",))
            self._expect_set_end()
            return Builder(member_of(first), condition)
        items = [first]
        while self.accept(",", ";"):
            if self.at("}"):
                break
            items.append(self.relation())
        self._expect_set_end()
        return Seq("set", tuple(items))

    def _expect_set_end(self) -> None:
        token = self.take()
        if token.value != "}":
            raise Unreadable("a set is never closed")

    def environment(self, name: str) -> Node:
        if name in _SYSTEMS:
            return self._system(name)
        if name not in _MATRICES:
            raise NotCovered(f"the environment {name} is not covered")
        if name == "array" and self.accept("{"):
            while not self.accept("}"):
                if self.take().kind == "end":
                    raise Unreadable("the columns of an array are never closed")
        rows: list[tuple[Node, ...]] = []
        row: list[Node] = []
        while not self.at(f"end:{name}"):
            if self.accept("\\", "newline"):
                if row:
                    rows.append(tuple(row))
                row = []
            elif self.accept("&", "hline"):
                continue
            else:
                row.append(self.relation())
        self.index += 1
        if row:
            rows.append(tuple(row))
        if not rows or len({len(r) for r in rows}) != 1:
            raise Unreadable("a matrix with rows of different lengths")
        matrix = Matrix(tuple(rows))
        return Op("call:det", (matrix,)) if name == "vmatrix" else matrix

    def _system(self, name: str) -> Node:
        items: list[Node] = []
        while not self.at(f"end:{name}"):
            if self.accept("\\", "newline", ",", ";", "&"):
                continue
            node = self.relation()
            if self.accept("&"):
                raise Unreadable("a function defined by cases")
            items.append(node)
        self.index += 1
        if not items:
            raise Unreadable("an empty system")
        return items[0] if len(items) == 1 else Seq("list", tuple(items), joiner="system")


# ---- building ----------------------------------------------------
