"""What the registry knows, as plain data, and the decisions about it: who may hold an alias, who held it before."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from production_ml.core.errors import ConfigError
from production_ml.core.structured_logging import log_event
from production_ml.mlops.evaluation_gate import CHAMPION, Verdict
from production_ml.storage.names import check_name

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredVersion:
    """A version whose verified package lies in a local directory."""

    name: str
    version: int
    alias: str | None
    """The alias it was asked for by; None where it was asked for by number."""
    directory: Path
    content_hash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionInfo:
    """A version as the registry records it; nothing is downloaded."""

    name: str
    version: int
    aliases: tuple[str, ...] = ()
    content_hash: str
    """Empty where something other than `ModelRegistry.register` made the version."""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """The newest verdict for each alias that it was judged for."""
    run_id: str
    artifact_path: str
    registered_at: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "version": self.version,
            "aliases": list(self.aliases),
            "content_hash": self.content_hash,
            "verdicts": {alias: verdict.to_dict() for alias, verdict in sorted(self.verdicts.items())},
            "run_id": self.run_id,
            "registered_at": self.registered_at,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """A registered model: its versions, who holds its aliases, and who held them before."""

    name: str
    versions: tuple[VersionInfo, ...]
    """Oldest first."""
    aliases: Mapping[str, int]
    history: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Alias to its holders, oldest first; the last is the present one unless the alias was moved elsewhere."""

    def version(self, number: int) -> VersionInfo | None:
        """The version of that number, None where there is none."""
        return next((version for version in self.versions if version.version == number), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "aliases": dict(self.aliases),
            "history": {alias: list(holders) for alias, holders in self.history.items()},
            "versions": [version.to_dict() for version in self.versions],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReference:
    """What `digits`, `digits@challenger` and `digits:3` mean."""

    name: str
    alias: str | None = None
    version: int | None = None


def parse_reference(reference: str) -> ModelReference:
    """Read a reference; a bare name means its champion, so that nobody serves an unjudged model by omission.

    Raises:
        ConfigError: It has another form.
    """
    name, at, alias = reference.partition("@")
    if at:
        return ModelReference(name=check_name("model name", name), alias=check_name("alias", alias))
    name, colon, number = reference.partition(":")
    check_name("model name", name)
    if not colon:
        return ModelReference(name=name, alias=CHAMPION)
    if not number.isdecimal():
        raise ConfigError("model", reference, "what follows ':' must be a version number", cure="For an alias use '@'.")
    return ModelReference(name=name, version=int(number))


def why_not_promotable(version: VersionInfo, alias: str) -> str | None:
    """The reason why `alias` may not point at `version`; None where its verdict for that alias lets it pass."""
    if not version.content_hash:
        return "it was not registered by production_ml, so nothing says which bytes it is"
    verdict = version.verdicts.get(alias)
    if verdict is None:
        return _why_no_verdict(version, alias)
    if verdict.alias != alias:
        # Whoever can write one tag can copy it to another: what counts is what the verdict itself says.
        return f"its verdict was decided for {verdict.alias}, not for {alias}"
    if verdict.subject != version.content_hash:
        return f"its verdict is about another package ({verdict.subject[:8]}, not {version.content_hash[:8]})"
    if not verdict.passed:
        return "its evaluation verdict refused it:\n" + "\n".join(f"  {line}" for line in verdict.reasons)
    return None


def history_after_promotion(history: Sequence[int], holder: int | None, promoted: int) -> tuple[int, ...]:
    """The holders of an alias once it has moved from `holder` to `promoted`."""
    until_now = () if holder is None else (*_before(history, holder), holder)
    return (*until_now, promoted)


def history_after_rollback(history: Sequence[int], holder: int) -> tuple[int, ...]:
    """The holders of an alias once `holder` has lost it; the last one gets it back, empty where there is none."""
    return _before(history, holder)


def read_verdict(text: str, *, of: str) -> Verdict | None:
    """The recorded verdict; one that cannot be read, or was altered, is no verdict."""
    try:
        return Verdict.from_json(text)
    except ConfigError as problem:
        log_event(_LOGGER, "verdict_unreadable", f"{of}: {problem}", level=logging.WARNING)
        return None


def _why_no_verdict(version: VersionInfo, alias: str) -> str:
    if not version.verdicts:
        return "no evaluation verdict is on record for it"
    judged_for = " and ".join(sorted(version.verdicts))
    verdict_was = "verdict was" if len(version.verdicts) == 1 else "verdicts were"
    return f"its {verdict_was} decided for {judged_for}, not for {alias}"


def _before(history: Sequence[int], holder: int) -> tuple[int, ...]:
    """What came before the last time of `holder`.

    What comes after it never took effect: the history is written before the alias moves, and a process may die
    between the two. A holder that is not in the history got the alias elsewhere, after all that is written.
    """
    if holder not in history:
        return tuple(history)
    return tuple(history[: len(history) - 1 - list(reversed(history)).index(holder)])
