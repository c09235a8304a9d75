r"""Reading expressions: sums, products (explicit and by juxtaposition), powers, functions, numbers.

LaTeX that models write and TeX reads otherwise is read as it is meant: x^10 is x^{10}, \sqrt12 is \sqrt{12}, 2\frac13
and 1 1/2 are mixed numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction

from verifiers.math.building import HEXADECIMAL, KNOWN_WORDS, applied, has_letters, in_base, negative, raised, times
from verifiers.math.lexer import Token
from verifiers.math.stream import Stream
from verifiers.math.syntax import (
    ELLIPSIS,
    EMPTY_SET,
    REALS,
    Builder,
    Node,
    NotCovered,
    Num,
    Op,
    Seq,
    Sym,
    Text,
    Unit,
    Unreadable,
)
from verifiers.math.vocabulary import (
    ATOM_COMMANDS,
    FUNCTIONS,
    GREEK,
    LOADED_WORDS,
    UNIT_WORDS,
    UNKNOWN_FUNCTIONS,
    split_function,
)

_ORDINAL = frozenset(["st", "nd", "rd", "th"])


class Expressions(Stream, ABC):
    """Sums and everything tighter. What stands in brackets is read by the subclass."""

    @abstractmethod
    def relation(self) -> Node: ...

    @abstractmethod
    def at_separator(self) -> bool: ...

    @abstractmethod
    def trailing_words(self, node: Node, stop: tuple[str, ...]) -> Node: ...

    @abstractmethod
    def bracketed(self, char: str) -> Node: ...

    @abstractmethod
    def delimited(self, opening: str) -> Node: ...

    @abstractmethod
    def set_of(self) -> Node: ...

    @abstractmethod
    def environment(self, name: str) -> Node: ...

    def sum(self) -> Node:
        terms: list[Node] = [self.product(leading=True)]
        while self.at("+", "-", "pm", "mp") and not isinstance(terms[0], Seq | Builder):
            sign = str(self.take().value)
            term = self.product(leading=True)
            if sign in ("pm", "mp"):
                left = terms[0] if len(terms) == 1 else Op("add", tuple(terms))
                terms = [Op(sign, (left, term))]
            else:
                terms.append(term if sign == "+" else negative(term))
        return terms[0] if len(terms) == 1 else Op("add", tuple(terms))

    def product(self, *, leading: bool = False) -> Node:
        if leading and self.at("+", "-", "pm", "mp"):
            return self._signed()
        node = self.power()
        while True:
            if self.accept("*"):
                self.accept("*")
                node = times(node, self._operand())
            elif self.accept("/"):
                node = Op("div", (node, self._operand()))
            elif self._juxtaposed(node):
                node = self._join(node)
            else:
                return node

    def _signed(self) -> Node:
        signs = 0
        special = ""
        while self.at("+", "-", "pm", "mp"):
            sign = str(self.take().value)
            signs += sign == "-"
            if sign in ("pm", "mp"):
                special = sign
        node = self.product()
        if special:
            node = Op(special, (node,))
        return negative(node) if signs % 2 else node

    def _operand(self) -> Node:
        minus = self.minus()
        node = self.power()
        return negative(node) if minus else node

    def _juxtaposed(self, left: Node) -> bool:
        token = self.peek()
        if token.kind == "num":
            return (isinstance(left, Num) and self._mixed_number_ahead(left)) or not isinstance(left, Num)
        if token.kind == "word":
            return not self.at_separator() and self._factor_word(left, token)
        if token.kind == "text":  # 9 \text{ min} is no function
            return str(token.value).lower() in FUNCTIONS and self.peek(1).value not in ("", ".")
        if token.kind == "cmd":
            return token.value in ATOM_COMMANDS or str(token.value) in FUNCTIONS or token.value in GREEK
        if token.value == "|":
            return not self.bar_closes
        return token.value in ("(", "{") or (token.value == "[" and isinstance(left, Num | Sym) and self._group_ahead())

    def _factor_word(self, left: Node, token: Token) -> bool:
        """Whether letters are factors and not a unit or prose."""
        word = str(token.value)
        if word in KNOWN_WORDS or word in FUNCTIONS or word.startswith("vec_") or split_function(word):
            return True
        following = self.peek(1)
        if len(word) == 1:
            return True
        alone = following.kind == "end" or following.value in (",", ".", ")", "}")
        if isinstance(left, Num) and token.spaced and len(word) >= 3 and alone:
            return False  # 15 days
        if following.kind in ("word", "text") and following.spaced and str(following.value) not in ("and", "or"):
            return False
        known_unit = word in UNIT_WORDS and isinstance(left, Num | Op) and not has_letters(left)
        if known_unit and (alone or following.value in ("/", "^")):
            return False
        return len(word) <= 3 or (len(word) == 4 and not token.spaced)

    def _group_ahead(self) -> bool:
        depth = 0
        for position in range(self.index, min(len(self.tokens), self.index + 400)):
            value = self.tokens[position].value
            if value in ("[", "("):
                depth += 1
            elif value in ("]", ")"):
                depth -= 1
                if depth == 0:
                    return value == "]"
            elif value == "," and depth == 1:
                return False
        return False

    def _mixed_number_ahead(self, left: Num) -> bool:
        """1 1/2: an integer, then a proper fraction of integers."""
        top, slash, bottom = self.peek(), self.peek(1), self.peek(2)
        return (
            left.places is None and left.value.denominator == 1 and slash.value == "/" and bottom.kind == "num"
            and isinstance(top.value, Fraction) and isinstance(bottom.value, Fraction) and top.value < bottom.value
        )  # fmt: skip

    def _join(self, left: Node) -> Node:
        if isinstance(left, Num) and self.peek().kind == "num":
            top, _, bottom = self.take(), self.take(), self.take()
            assert isinstance(top.value, Fraction)
            assert isinstance(bottom.value, Fraction)
            return Num(left.value + top.value / bottom.value)
        mixed = isinstance(left, Num) and left.places is None and left.value.denominator == 1 and self.at("frac")
        right = self.power()
        if mixed and isinstance(left, Num) and (whole := _mixed_number(left, right)) is not None:
            return whole
        return times(left, right)

    def power(self) -> Node:
        base = self.postfix(self.atom())
        if self.at("^"):
            self.index += 1
            if self.at("circ"):
                self.index += 1
                self._degree_letter()
                return self.postfix(Unit(base, "deg"))
            if self._primes():
                return self.postfix(base)
            base = self.postfix(raised(base, self._exponent()))
            if self.at("^"):
                raise Unreadable("a double superscript")
        elif self.at("*") and self.peek(1).value == "*" and not self.peek(1).spaced:
            self.index += 2
            self.deeper()
            base = raised(base, self._operand())
            self.depth -= 1
        return base

    def _primes(self) -> bool:
        if self.at("prime"):
            self.index += 1
            return True
        return False

    def _degree_letter(self) -> None:
        if self.peek().kind in ("word", "text") and self.peek().value in ("C", "F"):
            self.index += 1

    def _exponent(self) -> Node:
        """A braced group, or as many digits or letters' one as follow."""
        if self.accept("{"):
            if self.accept("circ"):
                self.expect("}")
                return Text("deg")
            node = self.group("}")
            self.expect("}")
            return node
        if self.at("+", "-"):
            minus = self.minus()
            node = self._exponent()
            return negative(node) if minus else node
        return self.atom()

    def postfix(self, node: Node) -> Node:
        while True:
            if self.at("!") and self.peek(1).value != "=":
                self.index += 1
                node = Op("fact", (node,))
            elif self.accept("%"):
                node = Op("percent", (node,))
            elif self.at("circ"):
                self.index += 1
                node = Unit(node, "deg")
            elif self.at("_") and isinstance(node, Num | Text):
                self.index += 1
                node = self._based(node)
            elif self.at("_") and not isinstance(node, Sym):
                self.index += 1
                base = self._subscript()
                raise Unreadable(f"a subscript {base} of a group")
            else:
                return node

    def _based(self, node: Num | Text) -> Node:
        digits = self.tokens[self.index - 2].source or str(self.tokens[self.index - 2].value)
        base = self._subscript()
        return in_base(digits, base)

    def _subscript(self) -> str:
        """The subscript's text, without spaces; consumed."""
        if self.accept("{"):
            depth, words = 1, []
            while depth:
                token = self.take()
                if token.kind == "end":
                    raise Unreadable("a subscript is never closed")
                depth += (token.value == "{") - (token.value == "}")
                if depth:
                    words.append(token.source or str(token.value))
            return "".join(words)
        token = self.take()
        if token.kind == "end":
            raise Unreadable("a subscript without text")
        return token.source or str(token.value)

    # ---- atoms ---------------------------------------------------

    def atom(self) -> Node:
        self.deeper()
        try:
            return self._atom()
        finally:
            self.depth -= 1

    def _atom(self) -> Node:
        token = self.take()
        match token.kind:
            case "num":
                assert isinstance(token.value, Fraction)
                return self._number(token)
            case "word":
                return self._letters(token)
            case "text":
                return self._text_atom(token)
            case "cmd":
                return self._command(str(token.value))
            case "char":
                return self.bracketed(str(token.value))
        raise Unreadable("something is missing at the end")

    def _number(self, token: Token) -> Node:
        assert isinstance(token.value, Fraction)
        following = self.peek()
        if following.kind == "word" and not following.spaced:
            if following.value in _ORDINAL and token.value.denominator == 1:
                self.index += 1
                return Num(token.value)
            if self.peek(1).value == "_":  # 3F_{16}
                self.index += 2
                return in_base(f"{token.source}{following.value}", self._subscript())
        if (
            following.value == "ldots"
            and token.detail
            and len(set(token.source.partition(".")[2])) == 1
            and token.detail >= 3
        ):
            self.index += 1  # 0.333...
            digit = int(token.source[-1])
            return Num(token.value + Fraction(digit, 9 * 10**token.detail))
        return Num(token.value, token.detail)

    def _letters(self, token: Token) -> Node:
        word = str(token.value)
        if word.startswith("vec_"):
            return Sym(word)
        if word in KNOWN_WORDS:
            return KNOWN_WORDS[word]
        if word == "sqrt":
            return self._root()
        if word in FUNCTIONS:
            return self._function(word)
        if (split := split_function(word)) is not None:
            name, rest = split
            self.index -= 1
            self.tokens[self.index] = Token("word", rest)
            return self._function(name) if name != "sqrt" else self._root()
        if self.at("_") and len(word) >= 2 and word.isupper() and HEXADECIMAL.fullmatch(word):
            self.index += 1
            return in_base(word, self._subscript())
        if len(word) > 5 or word.lower() in LOADED_WORDS:
            raise Unreadable(f"the word '{word}'")
        factors = [Sym(letter) for letter in word]
        last = self._named(factors[-1].name)
        node: Node = factors[0] if len(factors) > 1 else last
        for factor in [*factors[1:-1], *([last] if len(factors) > 1 else [])]:
            node = times(node, factor)
        return node

    def _named(self, name: str) -> Node:
        """A symbol with its primes and subscript; an unknown function applied to arguments."""
        while self.at("'"):
            self.index += 1
            name += "'"
        if self.at("_"):
            self.index += 1
            name += f"_{self._subscript()}"
        while self.at("'"):
            self.index += 1
            name += "'"
        head = name.partition("_")[0].rstrip("'")
        if head in UNKNOWN_FUNCTIONS and self.at("("):
            self.index += 1
            arguments = self._arguments(")")
            return Op(f"call:{name}", arguments)
        return Sym(name)

    def _text_atom(self, token: Token) -> Node:
        words = str(token.value)
        if words.lower() in FUNCTIONS:
            return self._function(words.lower())
        if self.at("_"):
            self.index += 1
            return in_base(words, self._subscript())
        raise Unreadable(f"words where a value should stand: '{words}'")

    def _command(self, name: str) -> Node:
        if name == "frac":
            top, bottom = self._argument(), self._argument()
            return Op("div", (top, bottom))
        if name == "sqrt":
            return self._root()
        if name == "cbrt":
            return Op("root", (self._root_argument(), Num(Fraction(3))))
        if name == "binom":
            return Op("binom", (self._argument(), self._argument()))
        if name == "pi":
            return Sym("pi")
        if name in ("infty", "inf"):
            return Sym("oo")
        if name == "emptyset":
            return EMPTY_SET
        if name == "reals":
            return self._power_of_set(REALS)
        if name == "ldots":
            return ELLIPSIS
        if name in GREEK:
            return self._named(name)
        if name in FUNCTIONS:
            return self._function(name)
        if name == "{":
            return self.set_of()
        if name in ("langle", "lfloor", "lceil", "|"):
            return self.delimited(name)
        if name.startswith("begin:"):
            return self.environment(name.removeprefix("begin:"))
        if name in ("vec", "hat", "bar", "overline", "tilde", "overrightarrow", "mathring", "widetilde", "dot"):
            return self._accented(name)
        if name in ("triangle", "angle", "odot"):
            node = self.atom()
            return Op(f"call:{name}", (node,))
        if name in ("prime", "circ"):
            raise Unreadable("a stray superscript")
        raise NotCovered(f"\\{name} is not covered")

    def _power_of_set(self, node: Node) -> Node:
        if self.at("^"):
            raise Unreadable("a power of a set")
        return node

    def _accented(self, accent: str) -> Node:
        accent = {"overline": "bar", "widetilde": "tilde"}.get(accent, accent)
        node = self._argument()
        if accent == "hat" and isinstance(node, Sym) and node.name in ("i", "j", "k"):
            return Sym(f"vec_{node.name}")
        if isinstance(node, Sym):
            return Sym(f"{node.name}^{accent}") if accent in ("bar", "tilde") else node
        return Op(f"call:{accent}", (node,)) if accent in ("bar", "vec") else node

    def _argument(self) -> Node:
        r"""The argument of \frac and its like: a group, or one digit, letter or macro."""
        if self.accept("{"):
            node = self.group("}")
            self.expect("}")
            return node
        token = self.peek()
        if token.kind == "num" and token.detail is None and len(token.source) > 1 and token.source.isdigit():
            # \frac12: one digit an argument. The rest of the digits stays.
            self.tokens[self.index] = Token("num", Fraction(int(token.source[1:])), False, None, token.source[1:])
            return Num(Fraction(int(token.source[0])))
        if token.kind == "word" and len(str(token.value)) > 1 and str(token.value) not in KNOWN_WORDS:
            word = str(token.value)
            self.tokens[self.index] = Token("word", word[1:])
            return Sym(word[0])
        return self.atom()

    def group(self, close: str) -> Node:
        """What stands in braces: an expression, or nothing but brackets around it."""
        bar, colon = self.bar_closes, self.colon_closes
        self.bar_closes = self.colon_closes = False
        self.deeper()
        node = self.relation()
        if self.at("over", "choose"):
            name = "div" if self.take().value == "over" else "binom"
            node = Op(name, (node, self.relation()))
        if self.at(",", ";"):
            items = [node]
            while self.accept(",", ";"):
                items.append(self.relation())
            node = Seq("list", tuple(items))
        elif not self.at(close):
            node = self.trailing_words(node, (close,))
        self.depth -= 1
        self.bar_closes, self.colon_closes = bar, colon
        return node

    def _arguments(self, close: str) -> tuple[Node, ...]:
        items = [self.group(close)]
        self.expect(close)
        first = items[0]
        return first.items if isinstance(first, Seq) and first.kind == "list" else (first,)

    def _root(self) -> Node:
        degree: Node | None = None
        if self.at("["):
            self.index += 1
            degree = self.group("]")
            self.expect("]")
        radicand = self._root_argument()
        return Op("root", (radicand, degree if degree is not None else Num(Fraction(2))))

    def _root_argument(self) -> Node:
        if self.accept("("):
            node = self.group(")")
            self.expect(")")
            return node
        if self.accept("{"):
            node = self.group("}")
            self.expect("}")
            return node
        token = self.peek()
        if token.kind == "word" and len(str(token.value)) > 1 and str(token.value) not in KNOWN_WORDS:
            return self._argument()
        return self.atom()

    def _function(self, name: str) -> Node:
        base: Node | None = None
        exponent: Node | None = None
        for _ in range(2):
            if self.at("_") and base is None:
                self.index += 1
                base = self._function_base()
            elif self.at("^") and exponent is None:
                self.index += 1
                exponent = self._exponent()
        arguments = self._function_arguments()
        node = applied(name, arguments, base)
        if exponent is None:
            return node
        if exponent == Op("neg", (Num(Fraction(1)),)) or exponent == Num(Fraction(-1)):
            if name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"):
                return applied(f"arc{name}", arguments, None)
            raise Unreadable(f"{name}^{{-1}} is ambiguous")
        return Op("pow", (node, exponent))

    def _function_base(self) -> Node:
        if self.accept("{"):
            node = self.group("}")
            self.expect("}")
            return node
        return self._argument()

    def _function_arguments(self) -> tuple[Node, ...]:
        if self.accept("("):
            arguments = self._arguments(")")
            if self.at("^"):  # \ln(x)^2 is the square of the logarithm's argument in no one's mind: it is (ln x)^2
                return arguments
            return arguments
        if self.accept("{"):
            arguments = self._arguments("}")
            return arguments
        if self.at("["):
            self.index += 1
            return self._arguments("]")
        if self.at("+", "-"):
            minus = str(self.take().value) == "-"
            node = self._tight_product()
            return (negative(node) if minus else node,)
        return (self._tight_product(),)

    def _tight_product(self) -> Node:
        """What a function without brackets applies to: factors side by side, up to the next function or operator."""
        node = self.power()
        while self._juxtaposed(node) and not self._at_function() and not self.at("("):
            node = self._join(node)
        while self.at("/") and self.peek(1).kind == "num" and isinstance(node, Num | Sym):
            self.index += 1
            node = Op("div", (node, self.power()))
        return node

    def _at_function(self) -> bool:
        token = self.peek()
        return str(token.value) in FUNCTIONS or (token.kind == "word" and split_function(str(token.value)) is not None)

    # ---- brackets ------------------------------------------------


def _mixed_number(whole: Num, part: Node) -> Node | None:
    """33 1/3, also as 33 1/3 % and 33 1/3 degrees; None if `part` is no proper fraction of integers."""
    match part:
        case Op("div", (Num(top), Num(bottom))) if 0 < top < bottom:
            return Num(whole.value + top / bottom)
        case Op("percent", (inner,)):
            number = _mixed_number(whole, inner)
            return None if number is None else Op("percent", (number,))
        case Unit(inner, "deg"):
            number = _mixed_number(whole, inner)
            return None if number is None else Unit(number, "deg")
    return None
