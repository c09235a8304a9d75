"""The model card: README.md with the metadata that the hub reads, and everything one needs to judge and repeat it.

Nothing in it depends on the clock, so exporting the same checkpoint twice gives the same bytes.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer

from prm.signal import SOURCES
from rollout.packing import TokenIds
from trainer.export.check import Comparison
from trainer.export.facts import DataFact, data_facts, error_rates, repeat_command, verifier_kinds
from trainer.export.gather import Chosen, read_meta
from trainer.export.snippets import snippet
from trainer.records import installed_version

RECORDS = "assay"  # folder of the export that holds what is not for transformers
UNKNOWN_LICENCE = "unknown"
_PIPELINES = {"lm": "text-generation", "token": "token-classification", "sequence": "text-classification"}


@dataclass(frozen=True, slots=True)
class Description:
    """What the card is made of. base_model: hub id, None where there is none or it is not known. repo: where it will
    be, or None. environment: of resolved.yaml. rows: of metrics.jsonl, up to the step. resolved: the configuration as
    text."""

    chosen: Chosen
    comparison: Comparison
    dtype: str
    adapter: bool
    base_model: str | None
    licence: str
    repo: str | None
    environment: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    resolved: str
    sample: TokenIds
    curves: bool

    @property
    def title(self) -> str:
        part = "" if self.chosen.what == "policy" else f", {self.chosen.what}"
        return f"{self.chosen.config.name}{part}, step {self.chosen.step}"


def portable(text: str) -> str:
    """Without the folders of whoever ran it: the working folder is ``.``, the home folder ``~``."""
    folders = {str(Path.home()): "~/", str(Path.cwd()): "./"}
    for folder in sorted(folders, key=len, reverse=True):  # one may lie in the other
        if folder != "/":
            text = re.sub(re.escape(folder) + r"(/|(?![\w.-]))", folders[folder], text)
    return text


def card(d: Description) -> str:
    """The whole README.md."""
    data = data_facts(d.chosen.config)
    head = yaml.safe_dump(metadata(d, data), sort_keys=False, allow_unicode=True, width=120)
    sections = [_intro(d), _use(d), _results(d), _training(d), _data(data), _verifier(d), _evidence(d), _repeat(d)]
    return f"---\n{head}---\n\n" + "\n\n".join(section.strip() for section in sections) + "\n"


# ---- metadata ----------------------------------------------------


def metadata(d: Description, data: Sequence[DataFact]) -> dict[str, Any]:
    config, head = d.chosen.config, d.chosen.head
    tags = ["assay", "reinforcement-learning", str(config.objective.advantage.kind).rpartition(":")[2]]
    if d.chosen.what != "policy":
        tags.append("critic" if d.chosen.what == "critic" else "reward-model")
        tags += [d.chosen.source] if d.chosen.source else []
    out: dict[str, Any] = {}
    if d.base_model is not None:
        out |= {"base_model": d.base_model, "base_model_relation": "adapter" if d.adapter else "finetune"}
    out |= {"library_name": "peft" if d.adapter else "transformers", "pipeline_tag": _PIPELINES[head],
            "license": d.licence, "tags": list(dict.fromkeys(tags))}  # fmt: skip
    datasets = list(dict.fromkeys(f.dataset for f in data if f.dataset and not f.role.startswith("eval")))
    out |= {"datasets": datasets} if datasets else {}
    step, metrics = evaluation_at(d.chosen)
    if d.chosen.what == "policy" and metrics:
        out["model-index"] = [{"name": d.title, "results": _model_index(d, metrics, step)}]
    return out


def _model_index(d: Description, metrics: Mapping[str, Mapping[str, float]], step: int) -> list[dict[str, Any]]:
    kinds = {e.name: e.source for e in d.chosen.config.data.eval}
    sets: dict[str, list[dict[str, Any]]] = {}
    for name, estimate in sorted(metrics.items()):
        dataset, _, metric = name.rpartition("/")
        sets.setdefault(dataset, []).append({
            "type": metric, "name": f"{metric} at step {step}", "value": estimate["value"],
            "args": {"confidence": 0.95, "low": estimate["low"], "high": estimate["high"]},
        })  # fmt: skip
    return [
        {"task": {"type": "text-generation"}, "metrics": found,
         "dataset": {"name": name, "type": str(kinds[name].options.get("path") or kinds[name].kind)}}
        for name, found in sets.items()
    ]  # fmt: skip


def evaluation_at(chosen: Chosen) -> tuple[int, dict[str, Any]]:
    """(step, {SET/METRIC: estimate}) of the last evaluation up to the checkpoint."""
    found = read_meta(chosen.checkpoint)["evaluations"]
    steps = [int(s) for s in found if int(s) <= chosen.step]
    return (max(steps), found[str(max(steps))]) if steps else (chosen.step, {})


# ---- sections ----------------------------------------------------


def _intro(d: Description) -> str:
    config, chosen = d.chosen.config, d.chosen
    what = {"policy": "The policy", "critic": "The critic (a value model)"}.get(
        chosen.what, f"The model `{chosen.what.partition('/')[2]}` of the reward source `{chosen.source}`"
    )
    if config.model.scratch is not None:
        base = "It started from random weights"
    else:
        named = d.base_model or Path(str(config.model.path)).name
        base = f"Base model: {f'[{named}](https://huggingface.co/{named})' if d.base_model else f'`{named}`'}"
        base += f" at revision `{config.model.revision}`" if config.model.revision else ""
    form = "a LoRA adapter, not merged" if d.adapter else "LoRA merged into the base" if chosen.lora else "full weights"
    unstated = " No licence was stated for these weights." if d.licence == UNKNOWN_LICENCE else ""
    return (
        f"# {d.title}\n\n{what} of a reinforcement-learning run with checkable rewards, trained with "
        f"[assay](https://pypi.org/project/assay-rl/) by the recipe `{config.recipe}` ({config.description}).\n\n"
        f"{base}. Weights: {form}, `{d.dtype}` (trained in `{config.model.master_dtype}` masters, computing in "
        f"`{config.model.compute_dtype}`).{unstated}"
    )


def _use(d: Description) -> str:
    chosen = d.chosen
    sentences = []
    if chosen.what == "critic":
        sentences = ["The number at a position is the value of the state there: the expected return before the next "
                     "token is written."]  # fmt: skip
    if chosen.source is not None:
        kind = dict(zip(_source_names(chosen), chosen.config.sources, strict=True))[chosen.source].kind
        reading = SOURCES.get(kind, key="sources").reading
        sentences = [reading[model]] if (model := chosen.what.partition("/")[2]) in reading else []
    template = chosen.config.template
    if chosen.what == "policy":
        sentences = [f"Prompts were made by the `{template.kind}` template from `{json.dumps(template.prompt)}`"
                     + (f" with the system message `{json.dumps(template.system)}`" if template.system else "")
                     + "; the prompt below is one of the run's."]  # fmt: skip
    return "## Use\n\n" + "\n".join(sentences) + "\n\n```python\n" + _snippet(d) + "```"


def _source_names(chosen: Chosen) -> list[str]:
    from trainer.session import names_of

    return names_of([part.kind for part in chosen.config.sources])


def _snippet(d: Description) -> str:
    tokenizer = AutoTokenizer.from_pretrained(d.chosen.checkpoint / "hf")
    ids = d.sample.prompt_ids
    text = tokenizer.decode(ids)
    prompt = text if tokenizer(text, add_special_tokens=False)["input_ids"] == ids else ids
    return snippet(d.chosen, d.repo or "PATH/OF/THIS/FOLDER", prompt, adapter=d.adapter)


def _results(d: Description) -> str:
    before = read_meta(d.chosen.checkpoint)["evaluations"]
    step, after = evaluation_at(d.chosen)
    lines = ["## Results", ""]
    if d.chosen.what != "policy":
        lines += ["Accuracies are those of the policy that was trained beside this model.", ""]
    if after:
        first = min(int(s) for s in before)
        e = d.chosen.config.eval
        lines += [
            f"Held-out prompts, {e.samples_per_prompt} samples each at temperature {e.temperature:g}, top-p "
            f"{e.top_p:g}, seed {d.chosen.config.seed}; 95% bootstrap intervals over prompts; one run.", "",
            f"| | step {first} | step {step} |", "|---|---|---|",
            *(f"| {name} | {_estimate(before[str(first)].get(name))} | {_estimate(value)} |"
              for name, value in sorted(after.items())), "",
        ]  # fmt: skip
    else:
        lines += ["The run has no evaluation up to this step.", ""]
    if d.curves:
        lines += [f"![learning curves]({RECORDS}/curves.svg)", ""]
    return "\n".join(lines + _last_metrics(d))


def _last_metrics(d: Description) -> list[str]:
    row = next((r for r in reversed(d.rows) if r["step"] == d.chosen.step), {})
    prefixes = ("reward/", "response/", "groups/zero", "policy/entropy", "policy/kl_reference")
    if d.chosen.what == "critic":
        prefixes = ("critic/", "reward/")
    elif d.chosen.source is not None:
        prefixes = (f"{d.chosen.source}/",)
    shown = {k: v for k, v in row.items() if k.startswith(prefixes) and isinstance(v, int | float)}
    if not shown:
        return []
    table = [f"| {name} | {value:.4g} |" for name, value in sorted(shown.items())]
    return [f"Training metrics of step {d.chosen.step}, as `{RECORDS}/metrics.jsonl` has them for every step:", "",
            "| | |", "|---|---|", *table]  # fmt: skip


def _estimate(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return "not known"
    return f"{estimate['value']:.4f} ({estimate['low']:.4f} to {estimate['high']:.4f})"


def _training(d: Description) -> str:
    c = d.chosen.config
    objective, rollout = c.objective, c.rollout
    kl = f"{objective.kl.coef:g}" + (
        f", {objective.kl.estimator}, in the {objective.kl.place}" if objective.kl.coef else ""
    )
    rows = {
        "recipe": f"`{c.recipe}`, seed {c.seed}, step {d.chosen.step} of {c.train.steps}",
        "rewards": ", ".join(f"`{s.kind}` (weight {s.weight:g})" for s in c.sources),
        "advantage": _part(objective.advantage.kind, objective.advantage.options),
        "loss": _part(objective.loss.kind, objective.loss.options) + f", reduced by {objective.reduce}",
        "KL to the reference": kl,
        "a step": f"{rollout.prompts_per_step} prompts of {rollout.samples_per_prompt} samples, at most "
        f"{rollout.max_response_tokens} tokens, temperature {rollout.temperature:g}, top-p {rollout.top_p:g}",
        "optimizer": f"AdamW, learning rate {c.optim.lr:g} ({c.optim.schedule}), betas {c.optim.beta1:g} and "
        f"{c.optim.beta2:g}, weight decay {c.optim.weight_decay:g}, gradient clip {c.optim.grad_clip:g}",
    }
    if c.warm_start is not None:
        rows["warm start"] = f"{c.warm_start.steps} supervised steps"
    if c.model.lora is not None:
        rows["LoRA"] = f"rank {c.model.lora.rank}, alpha {c.model.lora.alpha:g}"
    if c.train.shuffle_rewards:
        rows["control"] = "rewards were shuffled within each step: this run must not learn"
    return "## Training\n\n| | |\n|---|---|\n" + "\n".join(f"| {k} | {v} |" for k, v in rows.items())


def _part(kind: str, options: Mapping[str, Any]) -> str:
    return f"`{kind}`" + (f" ({', '.join(f'{k}={v}' for k, v in options.items())})" if options else "")


def _data(facts: Sequence[DataFact]) -> str:
    rows = "\n".join(f"| {f.role} | {portable(f.name)} | {f.licence} |" for f in facts)
    return f"## Data\n\n| used for | data | licence |\n|---|---|---|\n{rows}"


def _verifier(d: Description) -> str:
    c = d.chosen.config.verifier
    kinds = list(dict.fromkeys(verifier_kinds(c.kind, c.options)))
    packages, code = d.environment.get("packages", {}), d.environment.get("code")
    version = f"assay-rl {packages.get('assay-rl') or '(version not recorded)'}" + (f", {_git(code)}" if code else "")
    lines = ["## Verifier", "", f"Answers were judged by {_part(c.kind, c.options)} of {version}.", ""]
    rates = [line for kind in kinds for line in error_rates(kind)]
    if rates:
        repeats = "; ".join(f"`{kind}`: {command}" for kind in kinds if (command := repeat_command(kind)))
        lines += [f"Its measured error rates, with 95% Wilson intervals (how and when: {repeats}):", ""]
        lines += ["| kind | cases | wrong answers accepted | right answers refused |", "|---|---|---|---|", *rates, ""]
    silent = [f"`{kind}`" for kind in kinds if not error_rates(kind)]
    if silent:
        lines.append(f"Not measured on labelled responses: {', '.join(silent)}.")
    return "\n".join(lines)


def _evidence(d: Description) -> str:
    return (
        "## Checked before upload\n\nThis folder was loaded again with plain transformers and its logits were compared "
        f"with those of the model in the trainer: {d.comparison.text}."
    )


def _repeat(d: Description) -> str:
    environment = d.environment
    words = [str(word) for word in environment.get("command", [])]
    command = portable(f"{_program(words[0])} {shlex.join(words[1:])}") if words else "not recorded"
    versions = {"python": environment.get("python"), **environment.get("packages", {})}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"## Repeat it\n\n    {command}\n\nCode of assay: {_git(environment.get('code'))}; working folder: "
        f"{_git(environment.get('working_folder'))}. {environment.get('platform', '')}; {listed}. Exported with "
        f"transformers {installed_version('transformers')}.\n\n<details><summary>Resolved configuration</summary>\n\n"
        f"```yaml\n{d.resolved.strip()}\n```\n\n</details>"
    )


def _program(path: str) -> str:
    """As one types it: ``python -m`` leaves the file's path."""
    name = Path(path).name
    return {"cli.py": "assay", "train.py": "python -m trainer.train"}.get(name, name)


def _git(state: Mapping[str, Any] | None) -> str:
    if not state:
        return "no git repository"
    return f"commit {state['commit']}" + (" with uncommitted changes" if state["dirty"] else "")
