"""The tokens of one answer, the place in them, and how deep the reading of it has gone."""

from __future__ import annotations

from verifiers.math.lexer import Token
from verifiers.math.syntax import Unreadable

MAX_DEPTH = 60
_END = Token("end", "")


class Stream:
    """The tokens and the place in them."""

    def __init__(self, tokens: list[Token]):
        self.tokens, self.index, self.depth = tokens, 0, 0
        self.bar_closes = False  # inside |...| and before the bar of a set builder
        self.colon_closes = False  # inside \{x : ...\}

    # ---- tokens --------------------------------------------------

    def peek(self, ahead: int = 0) -> Token:
        position = self.index + ahead
        return self.tokens[position] if position < len(self.tokens) else _END

    def take(self) -> Token:
        token = self.peek()
        self.index += 1
        return token

    def at(self, *values: str) -> bool:
        token = self.peek()
        return token.kind in ("char", "cmd") and token.value in values

    def accept(self, *values: str) -> bool:
        if self.at(*values):
            self.index += 1
            return True
        return False

    def expect(self, value: str) -> None:
        if not self.accept(value):
            raise Unreadable(f"expected '{value}' before {self.here()}")

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable(f"nested deeper than {MAX_DEPTH}")

    def minus(self) -> bool:
        """Consume plus and minus signs; whether they come to a minus."""
        minus = False
        while self.at("+", "-"):
            minus ^= self.take().value == "-"
        return minus

    def here(self) -> str:
        token = self.peek()
        return "the end" if token.kind == "end" else f"'{token.source or token.value}'"

    # ---- answer, lists -------------------------------------------
