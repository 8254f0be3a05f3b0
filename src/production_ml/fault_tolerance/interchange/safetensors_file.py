"""What a safetensors file holds, for an import: anybody's weights, or all that an export of ours put into it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from production_ml.core.errors import InputFileError
from production_ml.fault_tolerance.checkpoint_format.state_tree import tensor_names
from production_ml.fault_tolerance.interchange.consolidated import METRICS_KEY, STEP_KEY, VALUES_KEY, is_plain_tensor
from production_ml.fault_tolerance.interchange.foreign_state import ImportConfig, SortedState, sort_state


def read_safetensors(path: Path, config: ImportConfig) -> SortedState:
    """What is in a safetensors file, sorted; its tensors are mapped from the file, not read.

    A file that `write_consolidated` wrote with everything gives everything back.

    Raises:
        InputFileError: It is no safetensors file.
        CheckpointWriteError: Something in it cannot be saved; the message names it.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputFileError(
            path, "is not a file" if path.exists() else "does not exist", cure="Name a safetensors file."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as problem:
        raise InputFileError(
            path,
            f"is not a safetensors file, or is damaged ({problem})",
            cure="Say what it is with --from, or take another copy of it.",
        ) from problem
    own = _own(metadata)
    found = _everything(own["values"], tensors, config) if "values" in own else None
    # A file that was changed by another tool may have kept our metadata: then it is a file of weights like any other.
    found = found or sort_state(tensors, config)
    found.step, found.metrics = own.get("step"), own.get("metrics", {})
    return found


def _everything(values: Any, tensors: Mapping[str, Any], config: ImportConfig) -> SortedState | None:
    """What the values of a checkpoint say of the tensors; None where the two do not belong together."""
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        return None
    plain = {name: item["$tensor"] for name, item in values["model"].items() if is_plain_tensor(item)}
    by_name = {plain.get(name, name): tensor for name, tensor in tensors.items()}
    if config.model_only:
        values = {**values, "optimizer": None, "extra": {}}
    wanted = set(tensor_names(values))
    if not wanted <= set(by_name):
        return None
    return SortedState(values, {name: by_name[name] for name in wanted})


def _own(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Our own part of a file's metadata, where it is what we write: it may come from another tool."""
    own = {}
    for key in (STEP_KEY, METRICS_KEY, VALUES_KEY):
        with contextlib.suppress(KeyError, ValueError):
            own[key.rpartition(".")[2]] = json.loads(metadata[key])
    if "step" in own and (type(own["step"]) is not int or own["step"] < 0):
        del own["step"]
    if "metrics" in own:
        own["metrics"] = _metrics(own["metrics"])
    return own


def _metrics(found: Any) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in found.items()}
    except (AttributeError, TypeError, ValueError):
        return {}
