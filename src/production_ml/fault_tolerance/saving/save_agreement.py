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
    met_full_disk: bool = False
    """The save before this one found the disk full."""


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


def _answer(standing: Standing) -> dict[str, Any]:
    facts: dict[str, Any] = {"is_paused": standing.is_paused, "met_full_disk": standing.met_full_disk}
    if standing.problem is not None:
        is_given_up = isinstance(standing.problem, GivenUpError)
        return {**facts, "problem": told(standing.problem), "is_given_up": is_given_up}
    if standing.draft is not None:
        order = standing.draft.order
        facts |= {"step": order.step, "save_id": order.save_id, "fingerprint": standing.draft.fingerprint}
    return facts


def _agreed(standing: Standing, answers: list[dict[str, Any]]) -> SaveDraft | None:
    problems = [answer for answer in answers if "problem" in answer]
    met_full_disk = any(answer["met_full_disk"] for answer in answers)
    if met_full_disk and problems and all(answer["is_given_up"] for answer in problems):
        # One disk was full, so rank 0 gave the save up, which is all that these ranks have to tell.
        return None
    if not problems and any(answer["is_paused"] for answer in answers):
        return None
    refusal = _refusal(answers)
    if standing.problem is not None or refusal or standing.draft is None:
        raise standing.problem or CheckpointWriteError(refusal, meaning=UNCHANGED)
    order = replace(standing.draft.order, save_id=answers[0]["save_id"])
    return replace(standing.draft, order=order)


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
