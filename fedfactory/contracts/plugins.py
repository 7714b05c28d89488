"""Names to code: a literal table of our own, widened by outside packages through entry points.

Nothing is imported until a name is asked for, so listing the names costs no heavy import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fedfactory.contracts.errors import EnvironmentFailedError, UnknownNameError


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginTable:
    """`own` maps a name to 'module:attribute'; `group` is the entry-point group beside it."""

    kind: str
    group: str
    own: Mapping[str, str]

    def names(self) -> list[str]:
        """Return every known name, sorted.

        Raises:
            EnvironmentFailedError: two packages claim one name.
        """
        return sorted(self._targets())

    def load(self, name: str) -> Any:
        """Import and return what `name` stands for.

        Raises:
            UnknownNameError: no such name; the message lists those there are.
            EnvironmentFailedError: two packages claim one name, or the import failed.
        """
        targets = self._targets()
        if name not in targets:
            raise UnknownNameError(self.kind, name, targets)
        module, _, attribute = targets[name].partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:
            raise EnvironmentFailedError(
                f"{self.kind} '{name}' ({targets[name]}) failed to load:"
                f" {type(error).__name__}: {error}; known: {', '.join(sorted(targets))}"
            ) from error

    def _targets(self) -> dict[str, str]:
        targets = dict(self.own)
        for entry in _entries(self.group):
            if entry.name in targets:
                raise EnvironmentFailedError(
                    f"{self.kind} '{entry.name}' is claimed twice: by {targets[entry.name]} and by"
                    f" {entry.value} ({_package(entry)}); uninstall one;"
                    f" known: {', '.join(sorted(targets))}"
                )
            targets[entry.name] = entry.value
        return targets


@cache  # reading the metadata of every installed package takes about 20 ms
def _entries(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "an unknown package"
