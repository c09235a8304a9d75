r"""Text -> tokens, in one linear pass: Unicode mathematics, formatting macros, spacing, numbers in all their spellings.

Limits come first, so that nothing later sees a text, a number or a nesting that could be expensive.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from verifiers.math.syntax import Unreadable
from verifiers.math.vocabulary import words

MAX_CHARS = 20_000
MAX_TOKENS = 12_000
MAX_DIGITS = 2_000
MAX_EXPONENT = 5_000
_MAX_FONTS = 10  # of \mathrm{\mathbf{...}} in one another


class Token(NamedTuple):
    """kind: num (value: Fraction), word (letters), cmd (a macro, without backslash), text (words), char, or end.
    spaced: white space stands before it. detail: decimals of a number, None if it has no decimal point."""

    kind: str
    value: str | Fraction
    spaced: bool = False
    detail: int | None = None
    source: str = ""


# ---- Unicode ----------------------------------------------------

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₖᵢₐₓ", "0123456789+-()nkiax", strict=True))
_FRACTIONS = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
    "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅐": "1/7", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "µ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi",
    "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "✕": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "∗": "*", "÷": "/", "∕": "/", "⁄": "/", "√": r"\sqrt ",
    "∛": r"\cbrt ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≦": r"\le ", "≥": r"\ge ", "⩾": r"\ge ",
    "≧": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≃": r"\approx ", "∈": r"\in ", "∉": r"\notin ", "∪": r"\cup ",
    "∩": r"\cap ", "∅": r"\emptyset ", "Ø": r"\emptyset ", "ℝ": r"\reals ", "ℤ": r"\integers ", "ℕ": r"\naturals ",
    "ℚ": r"\rationals ", "ℂ": r"\complexes ", "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ", "′": "'", "’": "'",
    "±": r"\pm ", "∓": r"\mp ", "…": r"\ldots ", "⋯": r"\ldots ", "。": ".", "、": ",", "⟨": r"\langle ",
    "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ", "∖": r"\setminus ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
    "⌈": r"\lceil ", "⌉": r"\rceil ", "∣": "|", "∀": r"\forall ", "∧": r"\land ", "∨": r"\lor ", "€": r"\$ ",
    "£": r"\$ ", "¥": r"\$ ", "₹": r"\$ ", "“": '"', "”": '"', "【": "[", "】": "]", "ℓ": "l", "∑": r"\sum ",
    "∏": r"\prod ", "∫": r"\int ",
}  # fmt: skip
_INVISIBLE = dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u200e\u200f\u00ad", "")
_ONE_TO_ONE = str.maketrans(
    _SYMBOLS | {k: f"\\{v} " for k, v in _GREEK.items()} | {k: rf"\frac{{{v[0]}}}{{{v[2:]}}}" for k, v in
    _FRACTIONS.items()} | _INVISIBLE
)  # fmt: skip
_SCRIPT_RUN = re.compile(rf"[{''.join(_SUPERSCRIPTS)}]+|[{''.join(_SUBSCRIPTS)}]+")
_CIRCLED = re.compile(r"[①-⑳]+")


def to_ascii_maths(text: str) -> str:
    """Unicode mathematics as LaTeX; full-width and other scripts' digits as ASCII. ASCII text is returned as it is."""
    if text.isascii():
        return text
    text = _SCRIPT_RUN.sub(_script, text)
    text = _CIRCLED.sub(lambda m: ", ".join(str(ord(c) - ord("①") + 1) for c in m[0]), text)
    text = text.translate(_ONE_TO_ONE)
    text = unicodedata.normalize("NFKC", text).translate(_ONE_TO_ONE)
    return "".join(str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text)


def _script(match: re.Match[str]) -> str:
    run = match[0]
    if run[0] in _SUPERSCRIPTS:
        return f"^{{{''.join(_SUPERSCRIPTS[c] for c in run)}}}"
    return f"_{{{''.join(_SUBSCRIPTS[c] for c in run)}}}"


# ---- macros -----------------------------------------------------

# Spacing, sizes and fonts say nothing about the value.
_IGNORED = words(
    """
    left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle textstyle
    scriptstyle limits nolimits quad qquad enspace thinspace thickspace medspace negthinspace hfill rm bf it sf
    tt boldsymbol bm pmb mathcal mathfrak mathscr mathsf mathit underline overbrace underbrace fbox framebox
    boxed mathord mathop ensuremath mathstrut null nobreak allowbreak ! , ; : > noindent smash mathclose
    mathopen therefore large Large LARGE huge small tiny normalsize centering
    """
)
_ALIASES = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "choose": "choose",
    "leq": "le", "leqslant": "le", "leqq": "le", "lt": "<", "geq": "ge", "geqslant": "ge", "geqq": "ge", "gt": ">",
    "neq": "ne", "not=": "ne", "varnothing": "emptyset", "vert": "|", "lvert": "|", "rvert": "|", "mid": "|",
    "lVert": "|", "rVert": "|", "Vert": "|", "|": "|", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]",
    "lparen": "(", "rparen": ")", "colon": ":", "ast": "*", "times": "*", "cdot": "*", "cdotp": "*", "bullet": "*",
    "div": "/", "degree": "circ", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots",
    "simeq": "approx", "thickapprox": "approx", "isin": "in", "iff": "Leftrightarrow", "N": "naturals",
    "R": "reals", "Z": "integers", "arcsinh": "asinh", "land": "land", "wedge": "land", "vee": "lor", "tg": "tan",
    "ctg": "cot", "cosec": "csc", "arctg": "arctan", "Reals": "reals", "sdot": "*", "smallsetminus": "setminus",
    "backslash": "setminus", "varepsilon": "epsilon", "varphi": "phi", "vartheta": "theta", "textdegree": "circ",
    "ne": "ne", "hat": "hat", "widehat": "hat",
    "overrightarrow": "vec", "infin": "infty",
}  # fmt: skip
_TEXT = words(
    """
    text textbf textit textrm textnormal textsf texttt textup textsl mbox emph hbox mathrm mathbf operatorname
    mathnormal
    """
)
_DROPPED_WITH_ARGUMENT = words(
    """
    color hspace vspace phantom hphantom vphantom tag label kern rule textcolor
    """
)
_BLACKBOARD = {"R": "reals", "Z": "integers", "N": "naturals", "Q": "rationals", "C": "complexes"}
_MATHS_FONTS = frozenset(["mathrm", "mathbf", "mathnormal"])
_MATHS_SIGNS = re.compile(r"[-+*/=<>^_|(\d\\]")
_UNIT_WITH_SIGNS = re.compile(r"[A-Za-z·/^\d{}\s*-]+")  # m/s^2
_UNIT_LETTERS = frozenset("mgshLlNJWVKCF")
_TIME_OF_DAY = re.compile(r"\d{1,2}(?::\d\d){1,2}\s?[apAP]\.?\s?[mM]\.?")
_MATHS_IN_TEXT = re.compile(r"(?:[-+.,/%$^()\[\]\s{}=]|\\%)*[0-9](?:[-+0-9.,/%$^()\[\]\s{}=]|\\%)*")

_TOKEN = re.compile(
    r"""(?P<space>[\s~]+|\\[ \n\t]|%%)
      |(?P<repeating>(?P<rep_head>\d{0,50}\.\d{0,50})\\(?:overline|bar|dot|overbar)\s*(?:\{(?P<rep_a>\d{1,50})\}|(?P<rep_b>\d)))
      |(?P<number>(?:\d{1,3}(?:(?:\{,[ ]?\}|[ ]\{,[ ]?\}|,\\!|\\[,;:!]|~|[ ])\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
      |(?P<word>[A-Za-z]+)
      |\\(?P<macro>[A-Za-z]+\*?|.)
      |(?P<char>.)""",
    re.VERBOSE | re.DOTALL,
)
_EXPONENT = re.compile(r"[eE]([+-]?\d{1,5})(?![\w{^]|\.\d)")
_COMMA_GROUPS = re.compile(r"(?:,\d{3}){1,10}(?!\d|,\d)")
_DECIMAL_COMMA = re.compile(r",(\d{2})(?![\d,])")
_DECIMALS = re.compile(r"\.(\d+)")
_DOUBLED_BACKSLASH = re.compile(r"\\(?=\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z]))")
_HALF_OF_DAY = re.compile(r"(?<![A-Za-z])([apAP])\.\s?[mM](?:\.|(?![A-Za-z]))")
_MARKDOWN_BOLD = re.compile(r"[\s$]*\*{1,3}([^*]+)\*{1,3}[\s$.]*")
_OPENS_GROUP = re.compile(r"\s*\{")
_SEPARATORS_IN_NUMBER = re.compile(r"\\[,;:!]|[~ ,{}]")


def tokenise(text: str, *, thousands: bool = True) -> list[Token]:
    """thousands: read 10,000 as one number (outside brackets), not as two. Raises `Unreadable` when a limit is passed
    or a group is never closed."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"longer than {MAX_CHARS} characters")
    text = _DOUBLED_BACKSLASH.sub("", to_ascii_maths(text))
    if bold := _MARKDOWN_BOLD.fullmatch(text):
        text = bold[1]
    if ":" in text:
        text = _HALF_OF_DAY.sub(r" \1m ", text)
    if len(text) > 4 * MAX_CHARS:
        raise Unreadable(f"longer than {4 * MAX_CHARS} characters once Unicode is spelt out")
    return _Lexer(text, thousands=thousands).run()


class _Lexer:
    def __init__(self, text: str, *, thousands: bool = True, fonts: int = 0):
        self.text, self.position, self.thousands, self.fonts = text, 0, thousands, fonts
        self.tokens: list[Token] = []
        self.spaced = False
        self.brackets = 0  # inside ( [ \{ a comma separates, outside it may group thousands

    def run(self) -> list[Token]:
        while self.position < len(self.text):
            match = _TOKEN.match(self.text, self.position)
            assert match is not None  # the last alternative takes any character
            self.position = match.end()
            kind = match.lastgroup
            if match["space"] is not None:
                self.spaced = True
            elif match["repeating"] is not None:
                self._repeating(match)
            elif match["number"] is not None:
                self._number(match)
            elif kind == "word":
                self._add("word", match[0])
            elif match["macro"] is not None:
                self._macro(match["macro"])
            else:
                self._char(match[0])
            if len(self.tokens) > MAX_TOKENS:
                raise Unreadable(f"more than {MAX_TOKENS} tokens")
        return self.tokens

    def _add(self, kind: str, value: str | Fraction, detail: int | None = None, source: str = "") -> None:
        self.tokens.append(Token(kind, value, self.spaced, detail, source or str(value) if kind != "num" else source))
        self.spaced = False

    def _char(self, char: str) -> None:
        if char == "$":  # mathematics begins or ends, or a currency
            self.spaced = True
            return
        if char == "." and self.text.startswith("..", self.position):
            self.position += 2
            self._add("cmd", "ldots")
            return
        if char in "([":
            self.brackets += 1
        elif char in ")]":
            self.brackets = max(0, self.brackets - 1)
        self._add("char", char)

    def _number(self, match: re.Match[str]) -> None:
        source = match[0]
        if (
            self.thousands
            and not self.brackets
            and "." not in source
            and (more := _COMMA_GROUPS.match(self.text, match.end()))
        ):
            if len(source) <= 3 or not source.isdigit():
                source += more[0]
                self.position = more.end()
                if decimals := _DECIMALS.match(self.text, self.position):
                    source += decimals[0]
                    self.position = decimals.end()
        elif (
            not self.brackets
            and len(source) >= 4
            and source.isdigit()
            and (comma := _DECIMAL_COMMA.match(self.text, match.end()))  # 1000,99
        ):
            source += f".{comma[1]}"
            self.position = comma.end()
        digits = _SEPARATORS_IN_NUMBER.sub("", source)
        whole, _, decimals = digits.partition(".")
        exponent = 0
        if scientific := _EXPONENT.match(self.text, self.position):
            exponent = int(scientific[1])
            self.position = scientific.end()
        if len(digits) > MAX_DIGITS or abs(exponent) > MAX_EXPONENT:
            raise Unreadable(f"a number of more than {MAX_DIGITS} digits")
        value = Fraction(int(whole + decimals)) * Fraction(10) ** (exponent - len(decimals))
        has_point = "." in digits or exponent < 0
        self._add("num", value, max(0, len(decimals) - exponent) if has_point else None, digits)

    def _repeating(self, match: re.Match[str]) -> None:
        whole, _, fixed = match["rep_head"].partition(".")
        period = match["rep_a"] or match["rep_b"]
        scale = 10 ** len(fixed)
        value = Fraction(int(whole + fixed or "0"), scale) + Fraction(int(period), scale * (10 ** len(period) - 1))
        self._add("num", value, None, match[0])

    def _macro(self, name: str) -> None:
        if name in _IGNORED:
            if name in ("left", "right") and self.text[self.position : self.position + 1] == ".":
                self.position += 1  # the invisible delimiter
            self.spaced = self.spaced or name in ("quad", "qquad", ",", ";", ":", ">")
            return
        if name in ("(", ")", "[", "]"):  # delimiters of mathematics in text
            self.spaced = True
            return
        if name.isdigit():  # a stray backslash
            self.position -= 1
            return
        name = _ALIASES.get(name, name)
        if name in _TEXT:
            self._text(name)
        elif name in ("mathbb", "Bbb"):
            content = self._argument()
            self._add("cmd" if content in _BLACKBOARD else "word", _BLACKBOARD.get(content, content or "?"))
        elif name in _DROPPED_WITH_ARGUMENT:
            self._argument()
        elif name in ("{", "}"):
            self.brackets = self.brackets + 1 if name == "{" else max(0, self.brackets - 1)
            self._add("cmd", name)
        elif len(name) == 1 and name in "<>*/[]():|%#&_":
            self._char(name)
        elif name in ("begin", "end"):
            self._add("cmd", f"{name}:{self._argument().rstrip('*')}")
        elif name in ("$", "euro", "pounds", "textdollar"):
            self.spaced = True
        elif name.startswith(("quad", "qquad")):  # \quadx, written without a space
            self.position -= len(name) - (4 if name.startswith("quad") else 5)
            self.spaced = True
        else:
            self._add("cmd", name)

    def _argument(self) -> str:
        """The braced group that follows (its content), consumed; '' if there is none."""
        start = self.position
        while start < len(self.text) and self.text[start].isspace():
            start += 1
        if start >= len(self.text):
            return ""
        if self.text[start] != "{":
            self.position = start + 1
            return self.text[start]
        depth = 0
        for end in range(start, len(self.text)):
            if self.text[end] == "{":
                depth += 1
            elif self.text[end] == "}":
                depth -= 1
                if depth == 0:
                    self.position = end + 1
                    return self.text[start + 1 : end]
        raise Unreadable("a brace is never closed")

    def _is_unit(self, words: str) -> bool:
        after_number = bool(self.tokens) and self.tokens[-1].kind == "num"
        return after_number and words[0].isalpha() and _UNIT_WITH_SIGNS.fullmatch(words) is not None

    def _text(self, name: str) -> None:
        if not _OPENS_GROUP.match(self.text, self.position):
            return  # \mathrm e
        content = self._argument()
        words = content.strip()
        bare = words.strip("{}() .")
        if not words:
            self.spaced = True
        elif words in ("%", "\\%"):
            self._char("%")
        elif name == "mathbf" and bare in ("i", "j", "k"):
            self._add("word", f"vec_{bare}", source=bare)
        elif words in _UNIT_LETTERS and self.tokens and self.tokens[-1].kind == "num":
            self._add("text", words)
        elif len(bare) == 1 and bare.isalpha() and name not in ("textbf",):
            self._add("word" if bare == words else "text", bare if bare == words else words, source=words)
        elif (
            _MATHS_IN_TEXT.fullmatch(words)
            or _TIME_OF_DAY.fullmatch(words)
            or "\\frac" in words
            or (name in _MATHS_FONTS and _MATHS_SIGNS.search(words) and not self._is_unit(words))
        ):
            if self.fonts == _MAX_FONTS:
                raise Unreadable(f"nested deeper than {_MAX_FONTS}")
            inner = _Lexer(_HALF_OF_DAY.sub(r" \1m ", words), fonts=self.fonts + 1)
            inner.brackets = self.brackets
            self.tokens += inner.run()
        else:
            self._add("text", " ".join(words.replace("$", " ").replace("~", " ").split()))
