"""Words that the reader of mathematics knows: functions, Greek letters, units, and words that change what is said."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTIONS = words(
    """
    sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth asin acos atan asinh acosh atanh exp ln log
    lg gcd lcm max min arg Re Im sgn sign det
    """
)
GREEK = words(
    """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi
    omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar
    """
)
# Not a product of letters when they end a value.
UNIT_WORDS = words(
    """
    pct am pm AM PM cm mm km kg mg ml mL dm nm lb oz ft in yd mi hr hrs min sec days hours minutes seconds mph
    kph rad meters metres feet inches miles units square cubic dollars cents apples people ways degrees percent
    """
)
# Macros that can begin a factor.
ATOM_COMMANDS = words(
    """
    frac sqrt cbrt binom pi infty emptyset { langle lfloor lceil vec hat bar overline tilde triangle angle ldots
    begin:pmatrix begin:bmatrix begin:matrix begin:array
    """
)
# Words beside a value that change what is said, so that the value alone would not be the answer.
LOADED_WORDS = words(
    """
    not no never less more least most greater smaller larger fewer than about approximately around roughly
    nearly almost between under over below above except minus plus times is are was isn't or either neither nor
    maybe perhaps possibly if else unless where when because wrong incorrect false true guess dozen half double
    twice squared cubed mod modulo unknown cannot can't error undefined invalid
    """
)
UNKNOWN_FUNCTIONS = frozenset("fghFGH") | {"phi", "psi"}
SCALE_WORDS = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SEPARATOR_WORDS = {"and": "and", "or": "or", ",": ",", "&": "and", ", and": "and", ", or": "or", ";": ","}
_PREFIXES = ("arcsin", "arccos", "arctan", "sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "sqrt", "exp")
_GLUED_CONSTANTS = frozenset(["pi", "theta", "alpha", "beta"])


def split_function(word: str) -> tuple[str, str] | None:
    """('sin', 'x') of 'sinx'."""
    if word in FUNCTIONS or len(word) > 11:
        return None
    for name in _PREFIXES:
        rest = word[len(name) :]
        if word.startswith(name) and rest and (len(rest) <= 2 or rest in _GLUED_CONSTANTS):
            return None if word in ("since", "logs", "cost", "tank", "sink", "sing") else (name, rest)
    return None
