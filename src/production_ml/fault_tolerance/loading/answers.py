"""What a rank tells the others of its part of a load, and what all of them make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from production_ml.core.errors import CheckpointError, CheckpointMismatchError, DamagedCheckpointError
from production_ml.fault_tolerance.agreement import told
from production_ml.fault_tolerance.checkpoint_format.verification import Damage


def answer(problem: Exception | None) -> dict[str, Any]:
    """A rank's answer, in JSON: its damage, its other problem, or nothing where all is well."""
    if problem is None:
        return {}
    if isinstance(problem, DamagedCheckpointError):
        return {"damage": Damage.of(problem).to_dict()}
    return {"problem": told(problem), "is_mismatch": isinstance(problem, CheckpointMismatchError)}


def found_damage(answers: Sequence[dict[str, Any]]) -> list[Damage]:
    """Each damage once, though ranks that read the same bytes all report it."""
    return list(dict.fromkeys(Damage(**answer["damage"]) for answer in answers if "damage" in answer))


def raise_problems(own: Exception | None, answers: Sequence[dict[str, Any]]) -> None:
    """Raise where a rank has a problem: this rank its own, just as it is, and the others in its words.

    Raises:
        CheckpointMismatchError: The checkpoint does not fit on another rank.
        CheckpointError: Another rank has another problem.
        Exception: `own`.
    """
    if own is not None:
        raise own
    for rank, theirs in enumerate(answers):
        if "problem" in theirs:
            kind = CheckpointMismatchError if theirs["is_mismatch"] else CheckpointError
            raise kind(f"rank {rank}: {theirs['problem']}")
