"""A checkpoint as a directory that `torch.distributed.checkpoint.load` reads, and the way back, piece by piece."""

from __future__ import annotations

import io
import os
import pickle
import queue
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from production_ml.core.errors import InputFileError
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.interchange.builder import CheckpointBuilder
from production_ml.fault_tolerance.interchange.consolidated import Exported
from production_ml.fault_tolerance.interchange.dcp_metadata import location, read_dcp_metadata
from production_ml.fault_tolerance.interchange.foreign_state import ImportConfig, SortedState, sort_state
from production_ml.fault_tolerance.interchange.output import durable_directory, what_broke_it_off
from production_ml.fault_tolerance.interchange.source import CheckpointSource
from production_ml.fault_tolerance.interchange.tensor_source import read_tensor
from production_ml.fault_tolerance.interchange.whole_state import nested, stand_ins, state_by_name

_FILE_BYTES: Final = 64 << 20


def write_dcp_directory(
    directory: CheckpointPlace,
    step: int,
    target_path: str | os.PathLike[str],
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write the checkpoint of `step` as a new directory for `torch.distributed.checkpoint.load`, of any world size.

    It holds `model`, `optimizer` (as DCP's `get_optimizer_state_dict` gives it), `step`, `metrics` and the extras. Each
    tensor is verified, and held in memory only until its file is written: the largest tensor, or 64 MiB.

    Args:
        directory: Where the checkpoint is.
        step: Which one.
        target_path: The directory to make.
        on_bytes: Called with the size of each tensor that was read, to show how far it is.

    Raises:
        InputFileError: The name is taken.
        DamagedCheckpointError: A tensor is not what was saved; nothing is left behind.
        CheckpointWriteError: The file system does not take the directory, or an extra has the name of another part.
        CheckpointError: The checkpoint cannot be read for another reason.
    """
    target = Path(target_path)
    with CheckpointSource(directory, step, on_bytes=on_bytes) as source:
        tensors = stand_ins(source.manifest)
        planner = _LazyPlanner(source, tensors)
        with durable_directory(target) as written:
            # One thread: with more, DCP loses the errors of a full disk (torch 2.13).
            writer = _StreamingWriter(written, thread_count=1)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
                _save(state_by_name(source.manifest, tensors), writer, planner)
            size_bytes = sum(file.stat().st_size for file in written.iterdir())
    return Exported(path=target, size_bytes=size_bytes, tensors=len(tensors), left_out=())


def _save(state: dict[str, Any], writer: FileSystemWriter, planner: DefaultSavePlanner) -> None:
    problem: BaseException | None = None
    try:
        save(state, storage_writer=writer, planner=planner, no_dist=True)
    except CheckpointException as failed:
        problem = next(iter(failed.failures.values()))[0]
    if problem is not None:
        # Out here, because a raise within the handler would replace what the problem itself hides.
        with what_broke_it_off():
            raise problem


class _LazyPlanner(DefaultSavePlanner):
    """Plans with tensors without memory, and reads each when DCP wants to write it."""

    def __init__(self, source: CheckpointSource, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._source = source
        self._names = {id(tensor): name for name, tensor in tensors.items()}

    def transform_object(self, write_item: Any, object: Any) -> Any:  # noqa: A002 - DCP's name
        read = self._with_tensors(object)
        return read if isinstance(read, torch.Tensor) else super().transform_object(write_item, read)

    def _with_tensors(self, value: Any) -> Any:
        """`value` with tensors in the place of stand-ins; DCP does not open tuples, so they may hold some."""
        if isinstance(value, torch.Tensor):
            return read_tensor(self._source, self._names[id(value)])
        if isinstance(value, Mapping):
            return {key: self._with_tensors(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._with_tensors(item) for item in value)
        return value


class _StreamingWriter(FileSystemWriter):
    """Begins a new file now and then: DCP's writer holds every tensor of a file until the file is closed."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        files: queue.Queue[tuple[Path, str, list[WriteItem]]] = queue.Queue()
        for number, items in enumerate(_in_files(plan.items)):
            name = f"{plan.storage_data.prefix}{number}{DEFAULT_SUFFIX}"
            files.put((Path(self.path) / name, name, items))
        return self._write_data(planner, files)


def _in_files(items: list[WriteItem]) -> Iterator[list[WriteItem]]:
    """The items in their order, in lists of about `_FILE_BYTES`."""
    begun: list[WriteItem] = []
    size_bytes = 0
    for item in items:
        begun.append(item)
        size_bytes += item.tensor_storage_size() or 0
        if size_bytes >= _FILE_BYTES:
            yield begun
            begun, size_bytes = [], 0
    if begun:
        yield begun


@dataclass(frozen=True, slots=True)
class _Item:
    """Where DCP keeps a piece of a tensor."""

    fqn: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class UnreadableValue:
    """Stands for a value that is more than a plain one; where it is wanted after all, it is refused by name."""


class DcpDirectory:
    """A directory that `torch.distributed.checkpoint.save` wrote. Nothing in it is unpickled freely.

    Raises:
        InputFileError: It is no such directory, or its metadata asks for more than DCP's own classes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._metadata: Metadata = read_dcp_metadata(path)

    def sort(self, config: ImportConfig) -> SortedState:
        """What is in it, sorted; tensors are stand-ins without memory, for `add_to`.

        Raises:
            InputFileError: An item is not what the metadata says, or more than a plain value.
            ConfigError: The model cannot be found in it.
            CheckpointWriteError: Something in it cannot be saved; the message names it.
        """
        self._stand_ins = {
            fqn: torch.empty(item.size, dtype=item.properties.dtype, device="meta")
            for fqn, item in self._metadata.state_dict_metadata.items()
            if isinstance(item, TensorStorageMetadata)
        }
        objects = {
            fqn: self._object(fqn, is_needed=not config.model_only)
            for fqn in self._metadata.state_dict_metadata
            if fqn not in self._stand_ins
        }
        paths = self._metadata.planner_data or {}
        return sort_state(nested({**self._stand_ins, **objects}, paths), config)

    def add_to(self, builder: CheckpointBuilder, found: SortedState) -> None:
        """Give `builder` the tensors of what `sort` found, box by box as they were saved.

        Raises:
            InputFileError: One is not what the metadata says.
        """
        fqns = {id(stand_in): fqn for fqn, stand_in in self._stand_ins.items()}
        for name, tensor in found.tensors.items():
            fqn = fqns.get(id(tensor))
            if fqn is None:  # it came inside of a value, such as a tuple of tensors
                builder.add(name, tensor)
                continue
            for item in self._items(fqn):
                builder.add(name, self._piece(item, tensor.dtype), offsets=item.offsets, shape=tuple(tensor.shape))

    def _object(self, fqn: str, *, is_needed: bool) -> Any:
        try:
            return self._read(MetadataIndex(fqn))
        except InputFileError:
            if is_needed:
                raise
            return UnreadableValue()

    def _items(self, fqn: str) -> Iterator[_Item]:
        described = self._metadata.state_dict_metadata[fqn]
        for chunk in described.chunks if isinstance(described, TensorStorageMetadata) else []:
            yield _Item(fqn, tuple(chunk.offsets), tuple(chunk.sizes))

    def _piece(self, item: _Item, dtype: torch.dtype) -> torch.Tensor:
        piece = self._read(MetadataIndex(item.fqn, item.offsets))
        if not isinstance(piece, torch.Tensor) or (tuple(piece.shape), piece.dtype) != (item.sizes, dtype):
            raise InputFileError(self._path, f"{item.fqn!r} is not what the metadata says: the directory is damaged")
        return piece

    def _read(self, index: MetadataIndex) -> Any:
        path, begin, length = location(self._metadata, self._path, index)
        try:
            with path.open("rb") as file:
                file.seek(begin)
                data = file.read(length)
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as problem:
            raise InputFileError(
                path,
                f"{index.fqn!r} is more than a tensor or plain value ({_first_line(problem)})",
                meaning="It was not loaded: to unpickle it could run any code that is in it.",
                cure="Import the model alone with --model-only, or save anew without it.",
            ) from problem
        except Exception as problem:  # a damaged pickle leads torch's unpickler to any error there is
            raise InputFileError(path, f"{index.fqn!r} cannot be read ({_first_line(problem)})") from problem


def _first_line(problem: Exception) -> str:
    return str(problem).partition("\n")[0] or type(problem).__name__
