"""Whether a save begins: all ranks hear how each of them stands, and all go on, all raise, or all leave it out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.agreement import gather_json, told
from production_ml.fault_tolerance.saving.commit import GivenUpError
from production_ml.fault_tolerance.saving.draft import SaveDraft
from production_ml.fault_tolerance.saving.order import UNCHANGED


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How one rank stands to a save."""

    draft: SaveDraft | None = None
    problem: Exception | None = None
    """Why there is no draft, be it that the save before failed."""
    is_paused: bool = False
    """Rank 0's disk has no room for it."""
    given_up: GivenUpError | None = None
    """Rank 0 gave the save before this one up, and this rank does not know why."""
    is_excused: bool = False
    """The save before this one failed here in a way that is no error, such as a full disk."""


def agree(standing: Standing, *, call: str = "save") -> SaveDraft | None:
    """Hear from all ranks whether this save can begin.

    Args:
        standing: How this rank stands to it.
        call: What the ranks are called for.

    Returns:
        What this rank writes; None where the save is left out for want of room, which is in the log already.

    Raises:
        CheckpointWriteError: Another rank cannot, or the ranks do not mean the same save.
        CheckpointError: Another rank does not save at all, but loads.
        Exception: This rank's own `problem`.
    """
    agreed: SaveDraft | None = None
    try:
        agreed = _agreed(standing, gather_json(_answer(standing), call=call))
    finally:
        if agreed is None and standing.draft is not None:
            standing.draft.abandon()
    return agreed


def raise_failure(error: CheckpointWriteError | None) -> None:
    """Hear from all ranks how a save has ended; with `error` it failed on this one.

    Raises:
        CheckpointWriteError: It failed on this rank, or on another.
        CheckpointError: Another rank does not save at all, but loads.
    """
    answers = gather_json(None if error is None else told(error), call="save, its outcome")
    if error is not None:
        raise error
    for rank, problem in enumerate(answers):
        if problem is not None:
            raise CheckpointWriteError(f"The save failed on rank {rank}: {problem}", meaning=UNCHANGED)


def _answer(standing: Standing) -> dict[str, Any]:
    facts: dict[str, Any] = {"is_paused": standing.is_paused, "is_excused": standing.is_excused}
    if standing.given_up is not None:
        facts["given_up"] = told(standing.given_up)
    if standing.problem is not None:
        facts["problem"] = told(standing.problem)
    elif standing.draft is not None:
        order = standing.draft.order
        facts |= {"step": order.step, "save_id": order.save_id, "fingerprint": standing.draft.fingerprint}
    return facts


def _agreed(standing: Standing, answers: list[dict[str, Any]]) -> SaveDraft | None:
    has_problem = any("problem" in answer for answer in answers)
    if not has_problem and not any(answer["is_excused"] for answer in answers):
        # Nobody can say why: where rank 0 had met an error, it would be the one to raise.
        _raise_given_up(standing, answers)
    if not has_problem and any(answer["is_paused"] for answer in answers):
        return None
    refusal = _refusal(answers)
    if standing.problem is not None or refusal or standing.draft is None:
        raise standing.problem or CheckpointWriteError(refusal, meaning=UNCHANGED)
    order = replace(standing.draft.order, save_id=answers[0]["save_id"])
    return replace(standing.draft, order=order)


def _raise_given_up(standing: Standing, answers: list[dict[str, Any]]) -> None:
    if standing.given_up is not None:
        raise standing.given_up
    for rank, answer in enumerate(answers):
        if "given_up" in answer:
            raise CheckpointWriteError(f"Rank {rank} cannot save: {answer['given_up']}", meaning=UNCHANGED)


def _refusal(answers: list[dict[str, Any]]) -> str:
    for rank, answer in enumerate(answers):
        if "problem" in answer:
            return f"Rank {rank} cannot save: {answer['problem']}"
    steps = [answer["step"] for answer in answers]
    if len(set(steps)) > 1:
        return f"The ranks save different steps ({', '.join(map(str, steps))}): each save needs all ranks at one step."
    if len({answer["fingerprint"] for answer in answers}) > 1:
        return (
            "The ranks hold different models or optimizers, as with pipeline parallelism or a sharded optimizer: "
            "a checkpoint holds one model, replicated (DDP) or sharded (FSDP2)."
        )
    return ""
