"""A manifest that came from an object store, verified by the same code as one from a file."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest, read_manifest


class _Fetched:
    """Bytes that are here already, in the place of a file."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name

    def read_bytes(self) -> bytes:
        return self._data

    def __str__(self) -> str:
        return self._name

    def __fspath__(self) -> str:
        return self._name


def decode_manifest(data: bytes, name: str, *, step: int) -> Manifest:
    """The manifest of `step` that `data` holds.

    Args:
        data: All bytes of the object.
        name: Its URL, for messages.
        step: The step whose manifest it should be.

    Raises:
        DamagedCheckpointError: It is not what was written, or belongs to another step.
        CheckpointMismatchError: It is sound, but of a format that this release does not read.
    """
    return read_manifest(cast(Path, _Fetched(data, name)), step=step)
