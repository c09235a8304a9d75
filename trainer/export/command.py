"""`assay export` from beginning to end.

The folder is made under a temporary name and renamed when its logits agree and no secret was found in it; only then is
anything sent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, try_to_load_from_cache

from trainer.compose import to_yaml
from trainer.config import Config
from trainer.export.card import RECORDS, UNKNOWN_LICENCE, Description, card, portable
from trainer.export.check import Comparison, compare, sequences_of
from trainer.export.curves import svg
from trainer.export.gather import (
    Chosen,
    LiveModel,
    choose_checkpoint,
    choose_model,
    find_run,
    shard_bytes,
    write_adapter,
    write_model,
)
from trainer.export.secrets import known_secrets, refuse_secrets
from trainer.export.upload import MANIFEST, Destination, check_repo_name, hub_token, upload
from trainer.records import RunFolder, disk_errors, installed_version
from verifiers.errors import ConfigError, ModelError, RunError


def run(parsed: argparse.Namespace) -> int:
    """The command; its exit code. Raises `AssayError`."""
    run_path, config = find_run(parsed.run)
    chosen = choose_model(run_path, config, choose_checkpoint(run_path, config, parsed.step), parsed.what)
    check_request(chosen, parsed)
    out = parsed.out or run_path / "exports" / default_name(chosen, parsed)
    comparison = make_folder(chosen, parsed, out)
    _say(f"{chosen.what} of step {chosen.step}: {comparison.text}")
    files = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["files"]
    for name, facts in files.items():
        _say(f"  {facts['bytes']:>14,}  {name}")
    _say(f"{out}: {len(files) + 1} files, {sum(f['bytes'] for f in files.values()):,} bytes, no secret found")
    if parsed.to is None:
        return 0
    seen = "public" if parsed.public else "private"
    tag = f"step-{chosen.step}" if parsed.tag else None
    if parsed.dry_run:
        _say(f"dry run: this would be one commit in {parsed.to} ({seen})" + (f", tagged {tag}" if tag else ""))
        return 0
    message = f"{config.name}, {chosen.what}, step {chosen.step}"
    _say(upload(out, Destination(parsed.to, parsed.public, tag), message, _say) + f" ({seen})")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def check_request(chosen: Chosen, parsed: argparse.Namespace) -> None:
    """What cannot work is said before anything is read or sent."""
    shard_bytes(parsed.max_shard_size)
    if parsed.to is not None:
        check_repo_name(parsed.to)
        if not parsed.dry_run:
            hub_token()
    if parsed.lora == "merged":
        return
    if not chosen.lora:
        raise ModelError(f"'{chosen.what}' of this run has no adapter.", where="--lora adapter",
                         fix="leave out --lora: the weights are those of a whole model")  # fmt: skip
    if parsed.dtype != "master":
        raise ConfigError("An adapter is kept in the dtype that it was trained in.", where="--dtype",
                          fix="leave out --dtype, or --lora merged")  # fmt: skip
    if base_model(chosen.config, parsed.base_model) is None:
        raise ModelError(
            "An adapter must name the model it belongs on, and the run's base has no hub id.",
            where=f"model.path={chosen.config.model.path}",
            fix="--base-model ORG/NAME, or --lora merged",
        )


def default_name(chosen: Chosen, parsed: argparse.Namespace) -> str:
    form = [parsed.dtype] if parsed.dtype != "master" else ["adapter"] if parsed.lora == "adapter" else []
    return "-".join([chosen.what.replace("/", "-"), f"step-{chosen.step:06d}", *form])


# ---- the base ----------------------------------------------------


def base_model(config: Config, given: str | None) -> str | None:
    """Hub id of the base; None for random weights, or where it was loaded from elsewhere and not `given`."""
    path = config.model.path
    if given is not None or path is None:
        return given
    on_the_hub = ":" not in path and path.count("/") <= 1 and path[0] not in "./~" and not Path(path).is_dir()
    return path if on_the_hub else None


def base_licence(config: Config, base: str | None) -> str:
    """What the base's own card says, where it is on this machine."""
    folder = Path(config.model.path) if config.model.path is not None else None
    readme: Any = folder / "README.md" if folder is not None and folder.is_dir() else None
    if readme is None and base is not None:
        readme = try_to_load_from_cache(base, "README.md", revision=config.model.revision)
    if not isinstance(readme, str | Path) or not Path(readme).is_file():
        return UNKNOWN_LICENCE
    data = ModelCard(Path(readme).read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    return str(data.get("license") or UNKNOWN_LICENCE)


# ---- the folder --------------------------------------------------


def make_folder(chosen: Chosen, parsed: argparse.Namespace, out: Path) -> Comparison:
    """Write, reload, compare, describe, search; then give the folder its name. Raises `AssayError`, leaving nothing."""
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunError("The folder holds something that is not an export.", where=str(out),
                       fix="choose another one with --out")  # fmt: skip
    partial = out.with_name(f".partial-{out.name}")
    with disk_errors(partial):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            comparison = _fill(chosen, parsed, partial)
            refuse_secrets(partial, known_secrets())
            shutil.rmtree(out, ignore_errors=True)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return comparison


def _fill(chosen: Chosen, parsed: argparse.Namespace, folder: Path) -> Comparison:
    adapter = parsed.lora == "adapter"
    dtype = chosen.master_dtype if parsed.dtype == "master" else getattr(torch, parsed.dtype)
    base = base_model(chosen.config, parsed.base_model)
    live = LiveModel(chosen)
    if adapter:
        assert base is not None
        write_adapter(live, folder, dtype, base)
    else:
        write_model(live, folder, dtype, shard_bytes(parsed.max_shard_size))
    sequences = sequences_of(chosen.run, chosen.config)
    comparison = compare(live, folder, dtype, adapter, sequences)
    rows = [row for row in RunFolder(chosen.run).read_metrics() if row["step"] <= chosen.step]
    curves = _write_records(chosen, folder, rows)
    description = Description(
        chosen=chosen,
        comparison=comparison,
        dtype=str(dtype).removeprefix("torch."),
        adapter=adapter,
        base_model=base,
        licence=parsed.license or base_licence(chosen.config, base),
        repo=parsed.to,
        environment=_environment(chosen.run),
        rows=rows,
        resolved=portable(to_yaml(chosen.config)),
        sample=sequences[0],
        curves=curves,
    )
    (folder / "README.md").write_text(card(description), encoding="utf-8")
    _write_manifest(description, folder)
    return comparison


def _environment(run_path: Path) -> dict[str, Any]:
    return yaml.safe_load((run_path / "resolved.yaml").read_text(encoding="utf-8")).get("environment") or {}


def _write_records(chosen: Chosen, folder: Path, rows: list[dict[str, Any]]) -> bool:
    """What the card refers to; whether there are curves."""
    records = folder / RECORDS
    records.mkdir()
    resolved = (chosen.run / "resolved.yaml").read_text(encoding="utf-8")
    (records / "resolved.yaml").write_text(portable(resolved), encoding="utf-8")
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    (records / "metrics.jsonl").write_text(lines, encoding="utf-8")
    drawing = svg(rows)
    if drawing is not None:
        (records / "curves.svg").write_text(drawing, encoding="utf-8")
    return drawing is not None


def _write_manifest(d: Description, folder: Path) -> None:
    """`assay/export.json`: what this is, and every other file with size and hash."""
    files: dict[str, Mapping[str, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    config, comparison = d.chosen.config, d.comparison
    content = {
        "format": 1,
        "identity": {"run": config.name, "recipe": config.recipe, "model": d.chosen.what, "seed": config.seed},
        "step": d.chosen.step,
        "dtype": d.dtype,
        "adapter": d.adapter,
        "base_model": d.base_model,
        "logits": {"largest_difference": comparison.difference, "allowed": comparison.threshold,
                   "rounding": comparison.rounding, "sequences": comparison.sequences, "tokens": comparison.tokens},
        "exported_with": {name: installed_version(name) for name in ("assay-rl", "torch", "transformers")},
        "files": files,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
