"""Sources inside a source: built from a recipe's ``{kind: ..., **options}``, models and state under their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from prm.cotrained import CoTrained
from prm.signal import SOURCES, Source, SourceContext
from verifiers.errors import ConfigError
from verifiers.options import part_of


def member_options(part: Mapping[str, Any], key: str) -> tuple[type[Source], BaseModel]:
    """(class, checked options). Raises `ConfigError` naming ``key.option``."""
    return part_of(SOURCES, part, key)


def build_member(part: Mapping[str, Any], context: SourceContext, key: str) -> Source:
    """A source that judges responses (phase `judge`). Raises `ConfigError` for any other."""
    kind, options = member_options(part, key)
    made = kind(options, context)
    if made.phase != "judge":
        raise ConfigError(f"A source of kind '{part['kind']}' gives credit to tokens, it does not judge responses.",
                          where=key, fix="verify_rm, judge, rule, or orm with role=outcome")  # fmt: skip
    return made


def check_folders(named: Mapping[str, Mapping[str, Any]], key: str) -> None:
    """`Source.check` of members, by what follows `key` in the recipe."""
    for name, part in named.items():
        kind, options = member_options(part, f"{key}.{name}")
        kind.check(options, f"{key}.{name}")


def planned_by(named: Mapping[str, Mapping[str, Any]]) -> dict[str, Literal["trained", "frozen"]]:
    """`Source.planned_models` of members, by the names that `Members.models` gives."""
    out: dict[str, Literal["trained", "frozen"]] = {}
    for name, part in named.items():
        kind, options = member_options(part, name)
        out |= {f"{name}_{model}": how for model, how in kind.planned_models(options).items()}
    return out


class Members:
    """Several sources that are asked together. names: unique, for checkpoints and metrics."""

    def __init__(self, named: Mapping[str, Source]):
        self.sources = dict(named)

    def start_from(self, weights: Mapping[str, Any]) -> None:
        for source in self.sources.values():
            source.start_from(weights)

    def models(self) -> dict[str, CoTrained]:
        return {f"{n}_{m}": model for n, source in self.sources.items() for m, model in source.models().items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: source.state_dict() for name, source in self.sources.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, source in self.sources.items():
            source.load_state_dict(state[name])

    def close(self) -> None:
        for source in self.sources.values():
            source.close()


def prefixed(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}/{key}": value for key, value in values.items()}


def only(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `prefixed`."""
    return {key.removeprefix(f"{name}/"): value for key, value in values.items() if key.startswith(f"{name}/")}


def check_members(parts: Sequence[Mapping[str, Any]], key: str) -> None:
    for k, part in enumerate(parts):
        member_options(part, f"{key}.{k}")
