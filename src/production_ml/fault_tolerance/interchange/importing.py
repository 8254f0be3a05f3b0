"""An import as a whole: what a file or directory holds, and the checkpoint that is made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.interchange.builder import CheckpointBuilder
from production_ml.fault_tolerance.interchange.dcp_directory import DcpDirectory
from production_ml.fault_tolerance.interchange.foreign_state import ImportConfig, SortedState
from production_ml.fault_tolerance.interchange.safetensors_file import read_safetensors
from production_ml.fault_tolerance.interchange.torch_file import read_torch_file

FORMATS: Final = ("safetensors", "dcp", "torch")


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be imported."""

    found: SortedState
    dcp: DcpDirectory | None
    """Where the tensors are still to be read, piece by piece."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.found.tensors.values())


def open_source(path: Path, kind: str | None, config: ImportConfig) -> Source:
    """Look into a file or directory; its tensors are not read yet.

    Args:
        path: The file or directory.
        kind: One of `FORMATS`; None for what it looks like.
        config: How it is to be read.

    Raises:
        InputFileError: It is not of that format, or holds more than tensors and plain values.
        ConfigError: The model cannot be found in it, or there is no such format.
        CheckpointWriteError: Something in it cannot be saved; the message names it.
    """
    kind = kind or _looks_like(path)
    if kind == "dcp":
        directory = DcpDirectory(path)
        return Source(directory.sort(config), directory)
    if kind == "safetensors":
        return Source(read_safetensors(path, config), None)
    if kind == "torch":
        return Source(read_torch_file(path, config), None)
    raise ConfigError("format", kind, f"is not known; known formats: {', '.join(FORMATS)}")


def _looks_like(path: Path) -> str:
    if path.is_dir():
        return "dcp"
    if path.suffix == ".safetensors":
        return "safetensors"
    try:
        with path.open("rb") as file:
            # The length of a safetensors file's header, then the header, which is JSON. No pickle or zip has a { there.
            return "safetensors" if file.read(9)[8:] == b"{" else "torch"
    except OSError:
        return "torch"


def commit_import(
    source: Source, directory: CheckpointPlace, step: int, *, on_bytes: Callable[[int], None] = lambda _: None
) -> Manifest:
    """Make a committed checkpoint of what was opened, and read it back; memory stays near `builder.SHARD_BYTES`.

    Args:
        source: What `open_source` gave.
        directory: Where the checkpoint is to be.
        step: Its step, which must be free.
        on_bytes: Called with the size of each piece that was taken, to show how far it is.

    Raises:
        InputFileError: A checkpoint of that step is there, or a tensor is not what its file says.
        CheckpointWriteError: A tensor cannot be saved, or the file system does not take the checkpoint.
    """
    with CheckpointBuilder(directory, step, on_bytes=on_bytes) as builder:
        if source.dcp is not None:
            source.dcp.add_to(builder, source.found)
        else:
            for name, tensor in source.found.tensors.items():
                builder.add(name, tensor)
        return builder.commit(source.found.values, source.found.metrics)
