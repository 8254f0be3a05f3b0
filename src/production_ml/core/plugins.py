"""Plug-in families: a table from a kind's name to where it lives, extended by third parties' entry points."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from production_ml.core.errors import MissingDependencyError, UnknownPluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class PluginLocation:
    """Where a kind is defined, and the extra that brings the packages it needs."""

    target: str
    """`module:attribute`, as in an entry point."""
    extra: str = ""


class PluginFamily(Generic[Kind]):
    """Kinds by name, imported only when asked for, so that a table costs nothing to list.

    Args:
        name: The family's name in messages, such as "metric sink".
        entry_points: The entry-point group in which third parties register kinds.
        table: The kinds that ship with the library; a third party cannot replace one.
    """

    def __init__(self, name: str, *, entry_points: str, table: dict[str, PluginLocation]) -> None:
        self.name = name
        self.entry_points = entry_points
        self._table = table

    def names(self) -> list[str]:
        """All kinds that can be asked for, sorted."""
        return sorted({*self._table, *(point.name for point in self._third_party())})

    def check(self, name: str) -> None:
        """Refuse a name without importing what stands behind it.

        Raises:
            UnknownPluginError: No such kind.
        """
        if name not in self._table and name not in self.names():
            raise UnknownPluginError(self.name, name, self.names())

    def load(self, name: str) -> type[Kind]:
        """The class behind `name`.

        Raises:
            UnknownPluginError: No such kind.
            MissingDependencyError: The kind's optional package is not installed.
        """
        location = self._table.get(name)
        if location is None:
            for point in self._third_party():
                if point.name == name:
                    return cast("type[Kind]", point.load())
            raise UnknownPluginError(self.name, name, self.names())
        module, _, attribute = location.target.partition(":")
        try:
            return cast("type[Kind]", getattr(import_module(module), attribute))
        except ModuleNotFoundError as missing:
            if not location.extra or missing.name is None or missing.name.startswith("production_ml"):
                raise
            raise MissingDependencyError(
                missing.name, extra=location.extra, purpose=f"{self.name} {name!r}"
            ) from missing

    def _third_party(self) -> list[EntryPoint]:
        from importlib import metadata  # takes milliseconds, and most runs ask for nothing but the table

        return list(metadata.entry_points(group=self.entry_points))
