"""`assay paraphrase`: the training questions of a recipe in other words, into a file for data.views=both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prm.judge.base import judge_options
from prm.judge.openai import OpenAIJudge
from prm.paraphrase import Paraphrased, ParaphraseOptions, paraphrase_all
from trainer.config import Config
from trainer.preflight import load_part
from trainer.records import write_atomically
from verifiers.errors import ConfigError, DataError
from verifiers.options import parse_options
from verifiers.runner import Runner

REPORT_SUFFIX = ".report.json"


def paraphrase(config: Config, judge: Mapping[str, Any], out: Path, options: Mapping[str, Any]) -> Paraphrased:
    """Write `out`, one row a question, and a report beside it: counts, why questions were left out, and what the check
    of the answers found. judge: options of the judge `openai`; with its cache_file, a second call goes on where the
    first one ended. Raises `ConfigError` for options, `DataError` if no question came back."""
    if not out.parent.is_dir():
        raise ConfigError("The folder does not exist.", where=str(out.parent), fix="make it, or name another --out")
    checked = parse_options(ParaphraseOptions, options, "paraphrase")
    _, judge_checked = judge_options({"kind": "openai", **judge}, "--judge")
    examples = load_part(config.data.train, "data.train")
    verifier = config.verifier
    asked = OpenAIJudge(judge_checked, seed=config.seed)
    try:
        with Runner(verifier.kind, verifier.options, timeout_s=verifier.timeout_s, memory_mb=verifier.memory_mb,
                    workers=verifier.workers) as runner:  # fmt: skip
            found = paraphrase_all(asked, runner, examples, checked)
    finally:
        asked.close()
    if not found.rows:
        name, cause = next(iter(found.failed.items()))
        raise DataError(
            f"None of {len(examples)} questions has a paraphrase.",
            where=f"'{name}': {cause}",
            fix="try the server by hand; turn off the thinking of a model that thinks, in the judge's extra_body",
        )
    report = {
        "recipe": config.recipe,
        "model": judge_checked.model,
        **found.summary,
        "checked_pairs": found.checked,
        "left_out": found.failed,
    }
    write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows))
    write_atomically(out.with_name(out.name + REPORT_SUFFIX), json.dumps(report, indent=1) + "\n")
    return found
