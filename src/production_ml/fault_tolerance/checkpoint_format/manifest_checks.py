"""What a manifest must be beside matching its hash, which anyone can compute: names and sizes that can be.

No torch here: the process that keeps copies has no use for it.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.element_types import ELEMENT_BYTES, size_bytes

if TYPE_CHECKING:
    from production_ml.fault_tolerance.checkpoint_format.manifest import ChunkEntry, FileEntry, TensorEntry

_FILE: Final = re.compile(r"(?:[0-9A-Za-z_-]+/)?rank-\d{5,}\.safetensors", re.ASCII)
"""A shard; in an object store it stands below the id of its save."""
_PARTS: Final = ("model", "optimizer", "extra")
"""What the state of every checkpoint has, whoever wrote it."""
_END_OF_TIME: Final = 253_402_300_800
"""The year 10000, in wall seconds: later moments cannot be shown."""
_NOT_AS_DESCRIBED: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


@contextlib.contextmanager
def understanding(name: str | Path, what: str, *, step: int) -> Iterator[None]:
    """Within it, whatever a document lacks or has too much of is damage.

    Raises:
        DamagedCheckpointError: The document is not what it should be.
    """
    try:
        yield
    except _NOT_AS_DESCRIBED as problem:
        found = f"{type(problem).__name__}: {problem}" if not isinstance(problem, ValueError) else str(problem)
        raise DamagedCheckpointError(
            name, f"{what} matches its hash, but makes no sense ({found})", step=step
        ) from None


def check_head(step: Any, save_id: Any, created_at: Any, world_size: Any) -> None:
    """Refuse what cannot be said of a checkpoint as a whole.

    Raises:
        ValueError: One of them cannot be.
        TypeError: One of them is of another kind.
    """
    if not _are_counts((step, world_size)) or world_size < 1:
        raise ValueError(f"step {step!r} of {world_size!r} ranks")
    if not isinstance(save_id, str):
        raise TypeError(f"the save's id is {save_id!r}")
    if not 0 <= created_at < _END_OF_TIME:
        raise ValueError(f"it was made at {created_at!r}")


def check_files(files: Mapping[str, FileEntry]) -> None:
    """Refuse names that lead elsewhere, and impossible sizes.

    Raises:
        ValueError: There is one.
    """
    for name, entry in files.items():
        if not _FILE.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a shard")
        if not _are_counts((entry.size_bytes,)) or not isinstance(entry.header_hash, str):
            raise ValueError(f"{name!r} has a size of {entry.size_bytes!r}")


def check_tensors(tensors: Mapping[str, TensorEntry], files: Mapping[str, FileEntry]) -> None:
    """Refuse types that nobody knows, and chunks that are in no file or not inside their tensor.

    Raises:
        ValueError: There is one.
    """
    for name, entry in tensors.items():
        if entry.dtype not in ELEMENT_BYTES or not _are_counts(entry.shape):
            raise ValueError(f"tensor {name!r} is said to be {entry.dtype!r} of shape {entry.shape!r}")
        for chunk in entry.chunks:
            if chunk.file not in files or not isinstance(chunk.key, str):
                raise ValueError(f"tensor {name!r} has a chunk in {chunk.file!r}, which is none of the files")
            if not _are_counts((*chunk.offsets, *chunk.shape)) or any(
                begin + size > whole for begin, size, whole in zip(chunk.offsets, chunk.shape, entry.shape, strict=True)
            ):
                raise ValueError(f"tensor {name!r} has a chunk of {chunk.shape!r} at {chunk.offsets!r}")
            if size_bytes(entry.dtype, chunk.shape) > files[chunk.file].size_bytes:
                raise ValueError(f"tensor {name!r} has a chunk that is larger than its file")


def check_whole(tensors: Mapping[str, TensorEntry]) -> None:
    """Refuse tensors of which a part is in no chunk: what stood in memory before would be loaded for it.

    Raises:
        ValueError: There is one.
    """
    for name, entry in tensors.items():
        # As many elements as the whole has, each within it: where none is there twice, none is missing.
        if sum(math.prod(chunk.shape) for chunk in entry.chunks) != math.prod(entry.shape) or _overlap(entry.chunks):
            raise ValueError(f"tensor {name!r} is not what its chunks come to")


def _overlap(chunks: Sequence[ChunkEntry]) -> bool:
    """Whether two chunks have an element in common."""
    if len(chunks) < 2:
        return False
    cut = _most_cut(chunks)
    filled = (chunk for chunk in chunks if 0 not in chunk.shape)
    open_chunks: list[ChunkEntry] = []
    for chunk in sorted(filled, key=lambda chunk: chunk.offsets[cut]):
        # Only those that reach as far as this one along the dimension that is cut into most pieces can meet it.
        open_chunks = [one for one in open_chunks if one.offsets[cut] + one.shape[cut] > chunk.offsets[cut]]
        if any(_meet(one, chunk) for one in open_chunks):
            return True
        open_chunks.append(chunk)
    return False


def _most_cut(chunks: Sequence[ChunkEntry]) -> int:
    dimensions = range(len(chunks[0].offsets))
    return max(dimensions, key=lambda dimension: len({chunk.offsets[dimension] for chunk in chunks}))


def _meet(one: ChunkEntry, other: ChunkEntry) -> bool:
    for a, size_a, b, size_b in zip(one.offsets, one.shape, other.offsets, other.shape, strict=True):
        if a + size_a <= b or b + size_b <= a:
            return False
    return True


def check_values(
    values: Any, rank_values: Sequence[Any], tensors: Mapping[str, TensorEntry], *, world_size: int
) -> None:
    """Refuse state that lacks what every save writes, or that names tensors which are not there.

    Raises:
        ValueError: It does.
        TypeError: It is of another kind.
        RecursionError: It is nested deeper than it can be walked.
    """
    for part in _PARTS:
        if part not in values:
            raise ValueError(f"the state has no {part!r}")
    if len(rank_values) not in (0, world_size):
        raise ValueError(f"{len(rank_values)} of {world_size} ranks have a state of their own")
    _check_names([values, *rank_values], tensors)


def _check_names(encoded: list[Any] | dict[str, Any], tensors: Mapping[str, TensorEntry]) -> None:
    children: Iterable[Any] = encoded
    if isinstance(encoded, dict):
        mark = next(iter(encoded), None)
        if len(encoded) == 1 and mark in ("$tensor", "$array") and encoded[mark] not in tensors:
            raise ValueError(f"the state names a tensor {encoded[mark]!r}, which is not there")
        children = encoded.values()
    for child in children:
        if isinstance(child, list | dict):
            _check_names(child, tensors)


def _are_counts(numbers: tuple[Any, ...]) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)
