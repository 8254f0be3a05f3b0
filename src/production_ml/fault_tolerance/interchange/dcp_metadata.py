"""The `.metadata` of a DCP directory, a pickle: read through a closed list of classes, so that it runs nothing."""

from __future__ import annotations

import io
import pickle  # the unpickler below looks up nothing but what is on its list
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from torch.distributed._shard.sharded_tensor import metadata as sharded_metadata
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.serialization import _get_layout

from production_ml.core.errors import InputFileError

METADATA_FILE: Final = ".metadata"
_CLASSES: Final = {
    **{
        (dcp.__name__, name): getattr(dcp, name)
        for name in (
            "Metadata",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    },
    (filesystem.__name__, "_StorageInfo"): _StorageInfo,
    # DCP wrote these before torch 2.4.
    (sharded_metadata.__name__, "TensorProperties"): sharded_metadata.TensorProperties,
    (sharded_metadata.__name__, "MEM_FORMAT_ENCODING"): sharded_metadata.MEM_FORMAT_ENCODING,
    ("torch", "Size"): torch.Size,
    (_get_layout.__module__, "_get_layout"): _get_layout,
    ("collections", "OrderedDict"): dict,
    # The directory's own path; a pure path touches no file system.
    **{
        (module, name): PurePosixPath
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
}


class _RefusedError(Exception):
    """The pickle asks for something that is not on the list."""


class _MetadataUnpickler(pickle._Unpickler):
    """In Python: the one in C takes gigabytes where a damaged byte gives an object a large number."""

    def find_class(self, module: str, name: str) -> Any:
        listed = _CLASSES.get((module, name))
        if listed is not None:
            return listed
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return value
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError(f"an object outside of it ({pid!r})")


def read_dcp_metadata(directory: Path) -> Metadata:
    """The metadata of a DCP directory.

    Raises:
        InputFileError: It is missing, is no DCP metadata, or asks for anything but DCP's own classes, which it names.
    """
    path = directory / METADATA_FILE
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise InputFileError(
            path,
            f"cannot be read ({problem.strerror})",
            cure="Name a directory that torch.distributed.checkpoint.save wrote; .metadata is its last file.",
        ) from problem
    try:
        metadata: Metadata = _MetadataUnpickler(io.BytesIO(data)).load()
    except _RefusedError as refused:
        raise InputFileError(
            path,
            f"asks for {refused}, which has no place in DCP's metadata",
            meaning="Nothing of it was run, and nothing was imported.",
            cure="Find out who wrote this file: a pickle can run any code in a reader that lets it.",
        ) from refused
    except Exception as problem:
        raise InputFileError(path, f"is damaged ({type(problem).__name__})") from problem
    if not _is_what_it_should_be(metadata):
        raise InputFileError(path, "is not the metadata of a DCP checkpoint")
    return metadata


def location(metadata: Metadata, directory: Path, index: MetadataIndex) -> tuple[Path, int, int]:
    """The file, and the begin and length in bytes there, of one item.

    Raises:
        InputFileError: It is nowhere, outside of `directory`, or went through a stream extension such as compression.
    """
    path = directory / METADATA_FILE
    info = metadata.storage_data.get(index)
    if info is None:
        raise InputFileError(path, f"does not say where {index.fqn!r} is")
    relative = PurePosixPath(info.relative_path)
    if relative.is_absolute() or ".." in relative.parts:
        raise InputFileError(path, f"says that {index.fqn!r} is outside of the directory ({info.relative_path!r})")
    if getattr(info, "transform_descriptors", None):
        raise InputFileError(path, f"says that {index.fqn!r} was written through an extension, which is not supported")
    return directory / relative, info.offset, info.length


def _is_what_it_should_be(metadata: Any) -> bool:
    """Whether the parts are there and have the types that are relied on: unpickling sets attributes without a check."""
    try:
        return _is_sound(metadata)
    except (AttributeError, TypeError):
        return False


def _is_sound(metadata: Any) -> bool:
    if not isinstance(metadata, Metadata) or not isinstance(metadata.state_dict_metadata, dict):
        return False
    stored = metadata.storage_data
    return (
        isinstance(stored, dict)
        and all(isinstance(index, MetadataIndex) and _is_info(info) for index, info in stored.items())
        and all(
            isinstance(name, str) and (not isinstance(item, TensorStorageMetadata) or _is_tensor(item))
            for name, item in metadata.state_dict_metadata.items()
        )
        and _are_paths(metadata.planner_data or {})
    )


def _is_info(info: Any) -> bool:
    return (
        isinstance(info, _StorageInfo)
        and isinstance(info.relative_path, str)
        and all(type(number) is int and number >= 0 for number in (info.offset, info.length))
    )


def _is_tensor(item: TensorStorageMetadata) -> bool:
    return (
        isinstance(item.size, torch.Size)
        and isinstance(item.properties.dtype, torch.dtype)
        and all(_is_within(chunk, item.size) for chunk in item.chunks)
    )


def _is_within(chunk: Any, shape: torch.Size) -> bool:
    return (
        isinstance(chunk.offsets, torch.Size)
        and isinstance(chunk.sizes, torch.Size)
        and len(chunk.offsets) == len(chunk.sizes) == len(shape)
        and all(
            begin >= 0 and size >= 0 and begin + size <= total
            for begin, size, total in zip(chunk.offsets, chunk.sizes, shape, strict=True)
        )
    )


def _are_paths(paths: Any) -> bool:
    return isinstance(paths, dict) and all(
        isinstance(name, str) and isinstance(path, tuple) and path and all(isinstance(key, str | int) for key in path)
        for name, path in paths.items()
    )
