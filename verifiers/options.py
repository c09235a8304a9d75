"""Typed options for anything a recipe names: pydantic models whose errors read like an answer, not like a stack
trace."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union

from pydantic import BaseModel, ConfigDict, ValidationError

from verifiers.errors import ConfigError, did_you_mean
from verifiers.registry import Registry


class Options(BaseModel):
    """Base of every options model: frozen, no unknown keys, no silent conversions ("3" is not 3; an int may be a
    float)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


M = TypeVar("M", bound=BaseModel)


def parse_options(model: type[M], values: Mapping[str, Any], key: str = "") -> M:
    """Validate `values` against `model`; `key` is where they stand in the recipe (empty for the root).

    Raises `ConfigError` listing every problem at once: the full key, what is wrong, the nearest valid key, the fix.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = [_explain(model, problem, key) for problem in error.errors(include_url=False)]
    raise ConfigError(
        "This configuration cannot be used as written:\n" + "\n".join(f"  - {p}" for p in problems),
        where=key or None,
        why="a key that is silently ignored or converted would train something else than what you asked for",
        fix="correct the keys above; `assay check RECIPE` validates a recipe without training",
    )


def part_of(registry: Registry[Any], part: Mapping[str, Any], key: str) -> tuple[Any, Any]:
    """(entry, its checked options) of ``{"kind": ..., **options}``, a part inside another one's options. Raises
    `ConfigError` naming ``key.option``."""
    if not isinstance(part.get("kind"), str):
        kinds = ", ".join(registry.names())
        raise ConfigError(f"A {registry.noun} needs a kind.", where=f"{key}.kind", fix=f"one of: {kinds}")
    kind: Any = registry.get(part["kind"], key=f"{key}.kind")
    return kind, parse_options(kind.Options, {k: v for k, v in part.items() if k != "kind"}, key)


def _explain(model: type[BaseModel], problem: Any, key: str) -> str:
    location = [str(part) for part in problem["loc"]]
    path = ".".join([p for p in [key, *location] if p])
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{path}': {did_you_mean(location[-1], _valid_keys(model, location[:-1]))}"
    if problem["type"] == "missing":
        return f"missing key '{path}': it has no default and must be set"
    if problem["type"] == "value_error":
        return f"{path or 'recipe'}: {problem['ctx']['error']}"
    return f"{path}: {problem['msg']} (got {problem['input']!r} of type {type(problem['input']).__name__})"


def _valid_keys(model: type[BaseModel], location: list[str]) -> list[str]:
    """The field names of the model that `location` leads to, as far as the annotations tell."""
    current: Any = model
    for part in location:
        if part.isdigit():
            continue
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            return []
        current = _model_in(fields[part].annotation)
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        for inner in typing.get_args(annotation):
            found = _model_in(inner)
            if found is not None:
                return found
    return None
