"""A checkpoint as one `torch.save` file, and the way back from such files, never by running what they say."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch

from production_ml.core.errors import InputFileError
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPES
from production_ml.fault_tolerance.interchange.consolidated import Exported
from production_ml.fault_tolerance.interchange.foreign_state import ImportConfig, SortedState, sort_state
from production_ml.fault_tolerance.interchange.output import durable_file, what_broke_it_off, write_all
from production_ml.fault_tolerance.interchange.source import CheckpointSource
from production_ml.fault_tolerance.interchange.whole_state import state_by_number

_REFUSED: Final = re.compile(r"(?:GLOBAL|global|class) ([\w.]+\.\w+)")


def write_torch_file(
    directory: CheckpointPlace,
    step: int,
    target_path: str | os.PathLike[str],
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write the checkpoint of `step` as one file for `torch.load(path, weights_only=True)`.

    It holds `model`, `optimizer` (as `optimizer.load_state_dict` takes it), `step`, `metrics` and the extras. While it
    is written, the tensors are kept in a nameless file beside it, not in memory: there has to be room for both.

    Args:
        directory: Where the checkpoint is.
        step: Which one.
        target_path: The file to write.
        on_bytes: Called with the size of each tensor that was read, to show how far it is.

    Raises:
        DamagedCheckpointError: A tensor is not what was saved; nothing is left behind.
        CheckpointWriteError: The file system does not take the file, or an extra has the name of another part.
        CheckpointError: The checkpoint cannot be read for another reason.
    """
    target = Path(target_path)
    with CheckpointSource(directory, step, on_bytes=on_bytes) as source, durable_file(target) as file:
        with tempfile.TemporaryFile(dir=target.parent, buffering=0) as scratch:
            tensors = _in_file(source, scratch)
            buffered = io.BufferedWriter(file, 1 << 20)
            with what_broke_it_off():
                torch.save(state_by_number(source.manifest, tensors), buffered)
            buffered.flush()
            buffered.detach()
        size_bytes = file.tell()
    return Exported(path=target, size_bytes=size_bytes, tensors=len(tensors), left_out=())


def read_torch_file(path: Path, config: ImportConfig) -> SortedState:
    """What is in a `torch.save` file, sorted; its tensors are mapped from the file, not read.

    Raises:
        InputFileError: It is no such file, or holds more than tensors and plain values.
        ConfigError: The model cannot be found in it.
        CheckpointWriteError: Something in it cannot be saved; the message names it.
    """
    state = _load(path)
    if not isinstance(state, Mapping):
        raise InputFileError(path, f"holds a {type(state).__name__}, not a state dict", cure="Save model.state_dict().")
    return sort_state(state, config)


def _in_file(source: CheckpointSource, scratch: IO[bytes]) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, verified, as private mappings of one file; tied ones are one and the same."""
    places: dict[str, tuple[int, int]] = {}
    known: dict[Any, tuple[int, int]] = {}
    end = 0
    raw = io.FileIO(scratch.fileno(), "wb", closefd=False)
    for name, entry in source.manifest.tensors.items():
        identity = tuple((chunk.file, chunk.key) for chunk in entry.chunks)
        if identity not in known:
            data = source.whole(name).reshape(-1)
            write_all(raw, data.data)
            known[identity] = (end, data.nbytes)
            end += data.nbytes
        places[name] = known[identity]
    mapped = memoryview(mmap.mmap(scratch.fileno(), end, access=mmap.ACCESS_COPY)) if end else memoryview(bytearray())
    storages = {place: _bytes_at(mapped, *place) for place in set(places.values())}
    return {
        name: storages[place].view(DTYPES[entry.dtype]).view(entry.shape)
        for (name, entry), place in zip(source.manifest.tensors.items(), places.values(), strict=True)
    }


def _bytes_at(mapped: memoryview, begin: int, size: int) -> torch.Tensor:
    """A tensor of its own storage: torch.save writes whole storages."""
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_numpy(np.frombuffer(mapped[begin : begin + size], dtype=np.uint8))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputFileError(
            path,
            "is not a file" if path.exists() else "does not exist",
            cure="Name a file of torch.save or safetensors, or a directory that torch.distributed.checkpoint wrote.",
        )
    try:
        with warnings.catch_warnings():
            # torch warns of pickles that are not its own, and then refuses them: the refusal is enough.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as problem:
        named = _REFUSED.search(str(problem))
        what = f"holds {named[1]}, which is no plain value" if named else "cannot be read as tensors and plain values"
        raise InputFileError(
            path,
            what,
            meaning="It was not loaded: to unpickle it could run any code that is in it.",
            cure="Where you trust it, load it yourself and save anew what state_dict() gives.",
        ) from problem
    except Exception as problem:  # a damaged pickle leads torch's unpickler to any error there is
        raise InputFileError(
            path,
            f"is not a file of torch.save, or is damaged ({type(problem).__name__})",
            cure="Say what it is: --from safetensors, dcp or torch.",
        ) from problem


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
