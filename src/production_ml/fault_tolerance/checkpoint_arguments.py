"""What a training script gives a checkpoint manager, checked where it comes in: each field is refused by its name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from torch import nn
from torch.optim import Optimizer

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.loading.reading import Verify

_STEP_NAME: Final = re.compile(r"step-\d{8,}")


def check_settings(
    *, keep: Any, best_metric: Any, save_best: Any, asynchronous: Any, defer_copies: Any, verify: Any
) -> None:
    """Refuse settings of a manager that would fail at its first save, or would mean something else than they say.

    Raises:
        ConfigError: One of them cannot work.
    """
    _check_flag("save_best", save_best)
    _check_flag("asynchronous", asynchronous)
    _check_flag("defer_copies", defer_copies)
    if not isinstance(best_metric, str) or not best_metric:
        raise ConfigError("best_metric", best_metric, "must be a name in metrics", cure=_no_best_cure(best_metric))
    if isinstance(keep, str) or not isinstance(keep, Sequence):
        raise ConfigError("keep", keep, "must be a list of policies", cure="Give [KeepEvery(n=10_000)], say.")
    for policy in keep:
        if isinstance(policy, type) or not callable(policy):
            raise ConfigError("keep", policy, "is no policy", cure="Give [KeepEvery(n=10_000)], say.")
    if verify not in get_args(Verify):
        raise ConfigError("verify", verify, f"must be one of {', '.join(map(repr, get_args(Verify)))}")


def check_memory_settings(memory_copies: Any, memory_every: Any) -> None:
    """Refuse numbers of copies in memory, or of steps between them, that cannot be.

    Raises:
        ConfigError: One of them cannot work, or there is one without the other.
    """
    if isinstance(memory_copies, bool) or not isinstance(memory_copies, int) or memory_copies < 0:
        raise ConfigError("memory_copies", memory_copies, "must be a whole number of steps, or 0 for none")
    if memory_every is None:
        return
    if isinstance(memory_every, bool) or not isinstance(memory_every, int) or memory_every < 1:
        raise ConfigError("memory_every", memory_every, "must be a whole number of steps, 1 or more")
    if not memory_copies:
        cure = "Give memory_copies=2, say."
        raise ConfigError("memory_every", memory_every, "needs memory_copies: there is nowhere to keep them", cure=cure)


def check_not_a_step(path: Path) -> None:
    """Refuse one checkpoint where the directory of all of them is meant.

    Raises:
        ConfigError: `path` is named as one checkpoint is.
    """
    if _STEP_NAME.fullmatch(path.name):
        raise ConfigError(
            "checkpoint_dir", str(path), "is one checkpoint, not a directory of them", cure=f"Give {path.parent}."
        )


def check_objects(model: Any, optimizer: Any, extra: Mapping[str, Any]) -> None:
    """Refuse what is no model or no optimizer, and an optimizer that would be saved as an extra by mistake.

    Raises:
        ConfigError: One of them is.
    """
    check_model_and_optimizer(model, optimizer)
    if optimizer is not None:
        return
    for name, value in extra.items():
        # Trainings with several optimizers save all of them as extras, under names of their own.
        if isinstance(value, Optimizer) and difflib.get_close_matches(name, ["optimizer"], cutoff=0.8):
            raise ConfigError(
                name,
                type(value).__name__,
                "is the model's optimizer, and would be saved as something else: load_latest(model, optimizer) would "
                "not find it",
                cure=f"Call save(..., optimizer={name}) instead of save(..., {name}={name}).",
            )


def check_model_and_optimizer(model: Any, optimizer: Any) -> None:
    """Refuse what is no model or no optimizer.

    Raises:
        ConfigError: One of them is not.
    """
    if not isinstance(model, nn.Module):
        cure = "Pass the model itself, not its state_dict()." if isinstance(model, Mapping) else "Pass the model."
        raise ConfigError("model", type(model).__name__, "is not a torch.nn.Module", cure=cure)
    # DeepSpeed's optimizers are not torch's, but have groups of parameters like them.
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise ConfigError(
            "optimizer",
            type(optimizer).__name__,
            "is not an optimizer",
            cure="Pass the optimizer itself; a scheduler goes by a name of its own: scheduler=scheduler.",
        )


def check_progress(step: Any, epoch_ended: Any) -> None:
    """Refuse a step or an epoch that cannot be counted with.

    Raises:
        ConfigError: One of them is no whole number.
    """
    if isinstance(step, bool) or not hasattr(step, "__index__"):
        raise ConfigError("step", step, "must be a whole number")
    if epoch_ended is not None and (isinstance(epoch_ended, bool) or not hasattr(epoch_ended, "__index__")):
        cure = "Give the number of the epoch that has ended, counted from 1; None within an epoch."
        raise ConfigError("epoch_ended", epoch_ended, "must be a whole number", cure=cure)


def check_full(full: Any) -> None:
    """Refuse what is neither True nor False.

    Raises:
        ConfigError: It is not.
    """
    _check_flag("full", full)


def _check_flag(field: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(field, value, "must be True or False")


def _no_best_cure(best_metric: Any) -> str:
    return "To keep no best checkpoint, set save_best=False." if best_metric is None else ""
