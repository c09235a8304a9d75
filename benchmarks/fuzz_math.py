"""Coverage-guided fuzzing of the math verifier: does anything but a verdict ever come out, and in what time?

    pip install atheris
    python -m benchmarks.fuzz_math --seconds 3600 --seed 0 --out DIR

libFuzzer (through Atheris) mutates the shipped cases with a dictionary of LaTeX tokens, and keeps what reaches new
branches of `verifiers.math` and `verifiers.text`. Three targets: mutated boxed answers against the golds of the cases,
mutated whole responses, and a text as gold, compared with itself and with another gold. What counts as a finding: any
exception but BadGold; a verdict that is none, or that differs the second time; `compare` that is not symmetric where
the mathematics is, or that finds a defined form unequal to itself; more than a second of CPU for an input of up to
100 kB, measured again without instrumentation; more than 1 GB of memory. sympy is kept out of the process that fuzzes:
what it would have been asked is put to the worker pool afterwards, under the pool's limits.

One process on one core; not part of `python -m benchmarks`, which measures and does not search.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.fuzzing import Campaign, as_code, by_target, found_rows, growth, run, run_rows
from benchmarks.report import progress, table
from verifiers.errors import BadGold
from verifiers.math.bench.cases import SHIPPED_CASES, load_cases
from verifiers.math.compare import Profile, compare
from verifiers.math.verifier import MathVerifier, read
from verifiers.runner import Runner
from verifiers.text import final_boxes
from verifiers.verdict import VerifyRequest

BUDGET_S = 1.0
MEMORY_MB = 1_024
MAX_BYTES = 30_000  # of one input; its middle part may be repeated up to 100,000 characters
SEED_CHARS = 2_000
SYMPY_REQUESTS = 400
SHOWN_SLOWEST = 10

TOKENS = r"""
\frac \dfrac \tfrac \cfrac \sqrt \sqrt[3]{ \cbrt \left( \right) \left[ \right] \left\{ \right\} \left. \right. \left|
\boxed{ \text{ \mathrm{ \mathbf{ \mathbb{R} \mathbb{Z} \mathbb{N} \operatorname{ \textbf{ \displaystyle \color{red}
\begin{pmatrix} \end{pmatrix} \begin{bmatrix} \end{bmatrix} \begin{cases} \end{cases} \begin{array}{c} \end{array}
\begin{vmatrix} \end{vmatrix} \begin{aligned} \end{aligned} \\ & \cup \cap \setminus \in \notin \subset \emptyset
\varnothing \infty \pm \mp \cdot \times \div \le \leq \ge \geq \ne \neq < > = \approx \equiv \pmod \bmod \mid \vert
\lvert \rvert \lfloor \rfloor \lceil \rceil \langle \rangle \binom{ \choose ! ^ _ ^\circ ^{\circ} ^{-1} ' \prime \pi
e \theta \alpha \sin \cos \tan \arctan \ln \log \log_ \exp \lim_ \sum_ \prod_ \int \max \min \gcd \ldots \cdots \dots
\overline{ \dot \hat{ \vec{ \overrightarrow{ \overset{ \underline{ \quad \qquad \, \; \: \! \  ~ \% % \$ $ $$ \( \) \[
\] \{ \} { } ( ) [ ] | , ; : . / * + - \circ \degree \angle \triangle \perp \parallel \forall \exists \land \lor \to
\implies \Leftrightarrow \ \and \or and or { x x_1 x^2 a_n f(x) n k\pi i j 1 2 0 -1 0.5 10^{9} 1,000 1{,}000 1e10
999999999999 0.333 3.14 12:30 p.m. cm kg km/h m^2 dollars degrees percent 1010_2 _{16} \hspace{1cm} \phantom{0}
\textcolor{red}{ \tag{1} \label{a} \pmatrix <think> </think> #### answer is Therefore, Final Answer: ** \n (A) (B) Yes
true none undefined no solution ½ √ ² π ∞ ≤ ≥ ± × ÷ − ∈ ∪ ∅ ° １ ٣ ， （ ） …
"""


def main(arguments: list[str]) -> int:
    """0 if nothing was found, else 1."""
    return run(Campaign("fuzz_math", str(__doc__).splitlines()[0], _seeds, _tokens(), MAX_BYTES, MEMORY_MB), arguments,
               _complete, _tables)  # fmt: skip


# The run -------------------------------------------------------------------------------------------------------------


def _seeds() -> Iterator[bytes]:
    """Every short case: its answer against its gold, its response, its gold as a text. Every token,
    repeated: inside a box, behind one, and after an anchor."""
    cases = [case for case in load_cases(SHIPPED_CASES) if len(case.response) < SEED_CHARS]
    golds = list(dict.fromkeys(case.gold for case in load_cases(SHIPPED_CASES) if 0 < len(case.gold) < 300))
    for case in cases:
        index = golds.index(case.gold).to_bytes(2, "big") if case.gold in golds else b"\0\0"
        texts = (", ".join(final_boxes(case.response) or [case.response]), case.response, case.gold)
        for target, text in enumerate(texts):
            encoded = text.replace("\0", " ").encode("utf-8", "surrogateescape")
            yield bytes([target]) + index + b"\0" + encoded
            yield bytes([target]) + index + b"\5" + b"\0".join([b"", encoded[:200], b""])
    for token in _tokens():
        if "\0" not in token:
            yield b"\0\0\0\12" + b"\0".join([b"1", token.encode(), b"1"])
            yield b"\1\0\0\16" + b"\0".join([b"\\boxed{5}", token.encode(), b"x"])
            yield b"\1\0\0\12" + b"\0".join([b"So the answer is ", token.encode(), b" 5."])


def _tokens() -> list[str]:
    macros = {macro for case in load_cases(SHIPPED_CASES) for macro in re.findall(r"\\[A-Za-z]+\{?", case.response)}
    return sorted(macros | set(TOKENS.split()) | {"\n", "\0", " "})


# What came out -------------------------------------------------------------------------------------------------------


def _complete(facts: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    slowest = [_measured_again(row) for row in state["slowest"]]
    for row in slowest:
        if row["seconds_alone"] > BUDGET_S:
            facts["findings"][f"slow: {row['seconds_alone']:.2f} s"] = row
    facts["settings"]["budget_s"] = BUDGET_S
    return {**facts, "slowest": slowest, "sympy": _through_the_pool(state["sympy_pairs"])}


def _measured_again(row: Mapping[str, Any]) -> dict[str, Any]:
    """CPU seconds of the same input in a process that counts no coverage; the input is cut for the record."""
    verifier = MathVerifier(MathVerifier.Options())
    response = row["text"] if "\\boxed" in row["text"] else f"So the answer is $\\boxed{{{row['text']}}}$."
    started = time.process_time()
    if row["what"] == "compare":
        form = read(row["text"]).form
        if form is not None:
            compare(form, form, Profile())
    else:
        try:
            verifier.verify(VerifyRequest(response, row["gold"]))
        except BadGold:
            progress(f"no gold: {row['gold'][:60]!r}")
    alone = time.process_time() - started
    cut = {key: f"{row[key][:200]}... ({len(row[key])} characters)" if len(row[key]) > 240 else row[key]
           for key in ("gold", "text")}  # fmt: skip
    return {"seconds": row["seconds"], "seconds_alone": round(alone, 4), "what": row["what"], **cut}


def _through_the_pool(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """How the pool ends what sympy is asked, evenly drawn from all such pairs."""
    drawn = pairs[:: max(1, len(pairs) // SYMPY_REQUESTS)][:SYMPY_REQUESTS]
    requests = [VerifyRequest(f"$\\boxed{{{answer}}}$", gold) for gold, answer in drawn]
    with Runner("math", {}, workers=1) as runner:
        started = time.perf_counter()
        verdicts = runner.verify(requests)
        wall_s = time.perf_counter() - started
    statuses = Counter(str(verdict.status) for verdict in verdicts)
    slowest_ms = max((verdict.milliseconds for verdict in verdicts), default=0.0)
    return {"pairs_met": len(pairs), "asked": len(drawn), "statuses": dict(statuses), "wall_s": round(wall_s, 1),
            "slowest_ms": round(slowest_ms)}  # fmt: skip


# Tables --------------------------------------------------------------------------------------------------------------


def _tables(body: Mapping[str, Any]) -> str:
    sympy = body["sympy"]
    rows = [
        *run_rows(body),
        ["left to sympy, through the pool", f"{sympy['asked']} of {sympy['pairs_met']} pairs: "
                                            f"{by_target(sympy['statuses'])}; slowest {sympy['slowest_ms']} ms"],
    ]  # fmt: skip
    slowest = [
        [f"{r['seconds_alone']:.3f}", f"{r['seconds']:.3f}", r["what"], as_code(r["gold"]), as_code(r["text"])]
        for r in sorted(body["slowest"], key=lambda r: -r["seconds_alone"])[:SHOWN_SLOWEST]
    ]
    found = found_rows(body)
    return "\n".join(
        [
            table(["the run", ""], rows),
            growth(body),
            "## The slowest inputs\n\nCPU seconds alone, and while coverage was counted.\n",
            table(["alone", "fuzzing", "what", "gold", "text"], slowest),
            "## Findings\n",
            table(["what", "input"], found) if found else "None.\n",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
