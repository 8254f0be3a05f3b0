"""One safetensors file of a whole checkpoint, from any world size, that any tool can open. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from production_ml.core.errors import CheckpointWriteError
from production_ml.core.structured_logging import json_safe
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.element_types import ELEMENT_BYTES, size_bytes, stored_form
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest, TensorEntry
from production_ml.fault_tolerance.checkpoint_format.shard_layout import HEADER_LENGTH
from production_ml.fault_tolerance.interchange.output import durable_file, write_all
from production_ml.fault_tolerance.interchange.source import CheckpointSource

STEP_KEY: Final = "production_ml.step"
METRICS_KEY: Final = "production_ml.metrics"
VALUES_KEY: Final = "production_ml.values"
"""Under these keys a consolidated file's `__metadata__` holds what is not tensors, as JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export wrote."""

    path: Path
    size_bytes: int
    tensors: int
    left_out: tuple[str, ...]
    """Entries of the model that are no tensors, and so have no place in a file of tensors alone."""


def write_consolidated(
    directory: CheckpointPlace,
    step: int,
    target_path: str | os.PathLike[str],
    *,
    with_optimizer: bool = False,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write the checkpoint of `step` as one safetensors file.

    The model's tensors have their plain names, so `model.load_state_dict(safetensors.torch.load_file(path))` works.
    Each tensor is verified, and held in memory only while it is copied; no process group is needed. The file appears
    under its name when it is complete and durable, and then takes the place of an older one.

    Args:
        directory: Where the checkpoint is.
        step: Which one.
        target_path: The file to write.
        with_optimizer: Write all other tensors too, under their names in the checkpoint (`optimizer.exp_avg.…`,
            `extra.…`), and the values that are not tensors, as JSON in the file's metadata.
        on_bytes: Called with the size of each tensor that was read, to show how far it is.

    Raises:
        DamagedCheckpointError: A tensor is not what was saved; nothing is left behind.
        CheckpointWriteError: The file system does not take the file, safetensors has no name for a tensor's type, or
            two tensors would have the same name.
        CheckpointError: The checkpoint cannot be read for another reason.
    """
    target = Path(target_path)
    with CheckpointSource(directory, step, on_bytes=on_bytes) as source:
        names = plain_names(source.manifest, with_optimizer=with_optimizer)
        file_bytes = write_tensors(target, source, names, _metadata(source.manifest, with_values=with_optimizer))
    # With the optimizer goes all else, in the file's metadata.
    left_out = () if with_optimizer else tuple(_not_tensors(source.manifest))
    return Exported(path=target, size_bytes=file_bytes, tensors=len(names), left_out=left_out)


def plain_names(manifest: Manifest, *, with_optimizer: bool) -> dict[str, str]:
    """For each name in the file, the tensor's name in the checkpoint.

    A checkpoint in which no model can be told from the rest (DCP wrote it) gives all of its tensors.

    Raises:
        CheckpointWriteError: A parameter has the name of another tensor.
    """
    model = {name: item["$tensor"] for name, item in manifest.values["model"].items() if is_plain_tensor(item)}
    if model and not with_optimizer:
        return model
    taken = set(model.values())
    rest = [name for name in manifest.tensors if name not in taken]
    for name in model.keys() & set(rest):
        raise CheckpointWriteError(
            f"The model's {name!r} and another tensor of the checkpoint would have the same name in one file.",
            cure="Export the model alone, without --with-optimizer.",
        )
    return {**model, **{name: name for name in rest}}


def write_tensors(target: Path, source: CheckpointSource, names: Mapping[str, str], metadata: Mapping[str, str]) -> int:
    """Write tensors of a checkpoint to one safetensors file, one after the other.

    Args:
        target: The file.
        source: The checkpoint.
        names: For each name in the file, the tensor's name in the checkpoint.
        metadata: The file's `__metadata__`.

    Returns:
        The file's size in bytes.
    """
    entries = {name: source.manifest.tensors[held] for name, held in names.items()}
    _check_types(entries)
    # Large elements first: then all are aligned without gaps, as readers that map the file want it.
    ordered = sorted(entries, key=lambda name: -ELEMENT_BYTES[entries[name].dtype])
    head, file_bytes = _header({name: entries[name] for name in ordered}, metadata)
    with durable_file(target) as file:
        write_all(file, head)
        for name in ordered:
            write_all(file, source.whole(names[name]).reshape(-1).data)
    return file_bytes


def _check_types(entries: Mapping[str, TensorEntry]) -> None:
    """Other tools would take such a tensor for one of the type that its bytes are stored as in our own shards."""
    for name, entry in entries.items():
        if stored_form(entry.dtype, entry.shape) != (entry.dtype, entry.shape):
            raise CheckpointWriteError(
                f"tensor {name!r} is {entry.dtype}, for which safetensors has no name.",
                cure="Export to torch instead: production-ml checkpoint export … --to torch",
            )


def _header(entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    described: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, entry in entries.items():
        end = position + size_bytes(entry.dtype, entry.shape)
        described[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(described).encode()
    encoded += b" " * (-len(encoded) % 8)
    head = HEADER_LENGTH.pack(len(encoded)) + encoded
    return head, len(head) + position


def _metadata(manifest: Manifest, *, with_values: bool) -> dict[str, str]:
    metadata = {
        "format": "pt",  # Transformers refuses a file without it
        STEP_KEY: str(manifest.step),
        METRICS_KEY: json.dumps(json_safe(dict(manifest.metrics))),
    }
    return {**metadata, VALUES_KEY: json.dumps(manifest.values)} if with_values else metadata


def _not_tensors(manifest: Manifest) -> Iterator[str]:
    model: Iterable[tuple[str, Any]] = manifest.values["model"].items()
    return (name for name, item in model if not is_plain_tensor(item))


def is_plain_tensor(item: Any) -> bool:
    """Whether an encoded value is a tensor by itself."""
    return isinstance(item, dict) and set(item) == {"$tensor"}
