"""Turns a mapping from a recipe into a part's typed options, with errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from verifiers.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


def parse_options(model: type[Model], options: Mapping[str, Any], *, key: str) -> Model:
    """Validate `options` against `model`. Raises `ConfigError` naming ``key.option``, the cause and the fix."""
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    where = ".".join([key, *(str(part) for part in first["loc"])])
    if first["type"] == "extra_forbidden":
        raise ConfigError(
            f"Unknown option '{first['loc'][-1]}'.",
            where=where,
            fix=did_you_mean(str(first["loc"][-1]), model.model_fields),
        )
    if first["type"] == "missing":
        raise ConfigError(f"Option '{first['loc'][-1]}' is missing.", where=where, fix=f"add it under {key}")
    message = first["msg"].removeprefix("Value error, ")
    got = f" (got {first['input']!r})" if first["loc"] else ""
    raise ConfigError(f"Invalid option: {message}{got}.", where=where, fix="correct or remove this option")
