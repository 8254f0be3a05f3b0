"""What people are told of a damaged checkpoint: what was wrong, where the run resumes, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from production_ml.fault_tolerance.checkpoint_format.verification import Damage

_SHOWN: Final = 5


def describe(
    step: int,
    damage: Sequence[Damage],
    *,
    resumed_step: int | None,
    kept_in: object | None,
    directory: str,
    is_first: bool = True,
) -> str:
    """The warning for one damaged checkpoint.

    Args:
        step: Its step.
        damage: What is wrong with it.
        resumed_step: Where the run resumes instead; None where no checkpoint is good.
        kept_in: Where it was moved to; None where it could not be moved.
        directory: The checkpoint directory.
        is_first: Whether it is the newest that is damaged. Where none is good, its warning speaks for all of them.
    """
    lines = [str(found) for found in damage[:_SHOWN]]
    if len(damage) > _SHOWN:
        lines.append(f"… and {len(damage) - _SHOWN} more.")
    if resumed_step is None and is_first:
        lines.append(
            f"NO GOOD CHECKPOINT IS LEFT: training starts from step 0, and {_steps(step)} will be redone. "
            "Nothing was deleted."
        )
    elif resumed_step is not None:
        lines.append(
            f"Resuming from step {resumed_step}, the newest good checkpoint: "
            f"{_steps(step - resumed_step)} will be redone."
        )
    kept = f"The damaged one is kept in {kept_in}." if kept_in else "The damaged one could not be moved to quarantine."
    lines.append(kept)
    lines.append(f"Check the disk with: production-ml checkpoint verify {directory}")
    return "\n".join(lines)


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"
