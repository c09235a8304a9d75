"""Named parts of a recipe: a recipe says ``kind: grpo`` and a `Registry` finds the code.

Adding a part means adding one file in the right folder and decorating one object with ``@REGISTRY.register("name")``;
the folder is imported on first look-up, so nothing else has to change. A user's own part needs no registration: a kind
of the form ``package.module:Object`` is imported as it stands.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from verifiers.errors import ConfigError, did_you_mean

T = TypeVar("T")
E = TypeVar("E")


class Registry(Generic[T]):
    """Maps a kind to an object. `noun` is used in messages; `package` is the folder whose modules register
    themselves. Other installed packages announce theirs as entry points of the group ``assay.NOUN`` (blanks as
    underscores): ``kind = "package.module:Object"``, imported when a recipe names it."""

    def __init__(self, noun: str, package: str):
        self.noun, self.package = noun, package
        self.entry_points = "assay." + noun.replace(" ", "_")
        self._entries: dict[str, T] = {}
        self._discovered = False
        self._entry_points: dict[str, str] | None = None

    def register(self, name: str) -> Callable[[E], E]:
        """Decorator that returns what it registers, so that a class keeps its own type."""

        def add(entry: E) -> E:
            if name in self._entries and self._entries[name] is not entry:
                raise ConfigError(f"Two {self.noun}s are registered as '{name}'.", where=self.package)
            self._entries[name] = cast(T, entry)
            return entry

        return add

    def names(self) -> list[str]:
        self._discover()
        return sorted({*self._entries, *self._announced()})

    def get(self, name: str, *, key: str | None = None) -> T:
        """Return the entry for `name`, or raise `ConfigError` naming the recipe `key` and the nearest valid kind."""
        if ":" in name:
            return self._import(name, key)
        self._discover()
        if name in self._entries:
            return self._entries[name]
        announced = self._announced()
        if name not in announced:
            raise ConfigError(
                f"Unknown {self.noun} '{name}'.",
                where=key,
                fix=did_you_mean(name, [*self._entries, *announced]) + ", or your own as 'package.module:Object'",
            )
        return self._import(announced[name], key)

    def _announced(self) -> dict[str, str]:
        """What other installed packages announce: {kind: "package.module:Object"}. Our own kinds win."""
        if self._entry_points is None:  # gathering them reads the metadata of everything that is installed
            from importlib.metadata import entry_points

            self._entry_points = {entry.name: entry.value for entry in entry_points(group=self.entry_points)}
        return self._entry_points

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, prefix=self.package + "."):
            importlib.import_module(module.name)
        self._discovered = True

    def _import(self, path: str, key: str | None) -> T:
        module_name, _, attribute = path.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"Cannot import {self.noun} '{path}': {error}.",
                where=key,
                fix="check that the module is on PYTHONPATH and that the object exists in it",
            ) from error
