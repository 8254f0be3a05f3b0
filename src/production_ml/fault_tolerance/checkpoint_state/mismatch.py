"""How a checkpoint that does not fit is refused: before anything was touched, by the parameter's name."""

from __future__ import annotations

from collections.abc import Collection

from production_ml.core.errors import CheckpointMismatchError

_NAMES_SHOWN = 5


def mismatch(what: str, *, cure: str = "") -> CheckpointMismatchError:
    """The error for a checkpoint that does not fit what it is loaded into."""
    return CheckpointMismatchError(
        what,
        meaning="Nothing was loaded: model and optimizer are as they were, and the checkpoint is left as it is.",
        cure=cure or "Build the model and the optimizer as the saving run did, or use another checkpoint directory.",
    )


def compare_names(owner: str, saved: Collection[str], present: Collection[str]) -> None:
    """Refuse where the checkpoint and the object do not name the same things.

    Raises:
        CheckpointMismatchError: Names are missing on either side.
    """
    missing = [name for name in present if name not in saved]
    surplus = [name for name in saved if name not in present]
    parts = []
    if missing:
        parts.append(f"the checkpoint has no {_listed(missing)}")
    if surplus:
        parts.append(f"the checkpoint has {_listed(surplus)}, which {owner} does not have")
    if parts:
        raise mismatch(f"The checkpoint does not fit {owner}: {'; '.join(parts)}.")


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
