"""What the benches' command lines share: options as KEY=VALUE, folders to write to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verifiers.errors import ConfigError


def option_values(texts: Sequence[str]) -> dict[str, Any]:
    """``key=value`` with the value as JSON, or as text where it is none. Raises `ConfigError`."""
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{text}' is not KEY=VALUE.", where="--option")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return values


def make_folder(folder: Path) -> None:
    """The folder of --out, if it is not there. Raises `ConfigError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder cannot be made: {error}.", where="--out") from error
