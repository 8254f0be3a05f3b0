"""DCP's storage reader over our format: what a rank reads is verified before any of its tensors is touched."""

from __future__ import annotations

import io
import os
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from production_ml.core.errors import CheckpointError, InputFileError, ProductionMLError
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.manifest import TensorEntry
from production_ml.fault_tolerance.checkpoint_format.tensor_types import DTYPES
from production_ml.fault_tolerance.farewell import end_well
from production_ml.fault_tolerance.interchange.dcp_names import NamedState, named_state
from production_ml.fault_tolerance.interchange.dcp_place import checked_step, named_step, place
from production_ml.fault_tolerance.interchange.source import CheckpointSource
from production_ml.fault_tolerance.interchange.tensor_source import read_box


class VerifiedStorageReader(StorageReader):
    """Reads a verified checkpoint for `dcp.load`, into any world size; whoever wrote it.

    What DCP saved has the names that it had. A checkpoint of `CheckpointManager` has `model.…`; `optimizer.…` as
    `get_optimizer_state_dict` gives it; `step`; `metrics`; and every extra by its name. Each rank verifies what it
    reads before it touches a tensor. DCP wraps errors in its `CheckpointException`; `own_errors` brings them back.

    Args:
        directory: The checkpoint directory.
        step: Which checkpoint; the newest where it is None.

    Raises:
        ConfigError: The step is not a whole number of at least 0.
    """

    def __init__(self, directory: str | os.PathLike[str], step: int | None = None) -> None:
        super().__init__()
        # DCP talks in collectives, and a script often ends with this.
        end_well()
        self._directory = CheckpointDirectory(Path(directory))
        self._step = None if step is None else checked_step(step)
        self._named: NamedState | None = None

    @property
    def checkpoint_id(self) -> str:
        """The checkpoint's path."""
        return str(self._directory.path if self._step is None else self._directory.committed(self._step))

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A new load begins."""
        self._named = None
        if checkpoint_id is not None:
            self._directory, self._step = place(self._directory, checkpoint_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - DCP's signature
        """What the manifest says, in DCP's words.

        Raises:
            CheckpointException: The manifest is damaged, or there is no such checkpoint; our own error is inside.
        """
        # A reader that is used again looks for the newest again; DCP resets it only where it is given an id.
        self._named = None
        try:
            named = self._read_names()
        except ProductionMLError as problem:
            # DCP takes any Exception here for a sign to look for metadata elsewhere, and then tells of none.
            raise CheckpointException("read_metadata", {0: (problem, traceback.StackSummary())}) from problem
        described: dict[str, Any] = {
            fqn: _tensor_metadata(named.manifest.tensors[tensor]) for fqn, tensor in named.tensors.items()
        }
        described |= {fqn: BytesStorageMetadata() for fqn in named.objects}
        return Metadata(described, planner_data=dict(named.paths), storage_meta=StorageMeta(self.checkpoint_id))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Tell the coordinator which checkpoint this rank is about to read."""
        manifest = self._read_names().manifest
        return replace(plan, storage_data=(manifest.step, manifest.save_id))

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """See that all ranks read the same checkpoint.

        Raises:
            CheckpointError: They do not: each looked for the newest, and a save was committed meanwhile.
        """
        found = {plan.storage_data for plan in plans}
        if len(found) > 1:
            steps = ", ".join(str(step) for step, _ in sorted(found))
            raise _changed_meanwhile(f"{self._directory.path}: the ranks found different newest checkpoints ({steps}).")
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read and verify all that this rank needs, then fill its tensors.

        Raises:
            DamagedCheckpointError: Something is not what was written; nothing was changed on this rank.
            CheckpointError: The checkpoint was replaced by another of its step since the ranks planned.
        """
        named = self._read_names()
        with CheckpointSource(self._directory, named.manifest.step) as source:
            if source.manifest.save_id != named.manifest.save_id:
                raise _changed_meanwhile(f"{source.name}: was saved anew while it was being read.")
            # All before any: a damaged checkpoint must not leave a model half loaded.
            found = [
                None
                if item.type == LoadItemType.BYTE_IO
                else read_box(source, named.tensors[item.storage_index.fqn], *_box(item))
                for item in plan.items
            ]
            objects = {
                item.storage_index.fqn: named.object(item.storage_index.fqn, source)
                for item in plan.items
                if item.type == LoadItemType.BYTE_IO
            }
        for item, data in zip(plan.items, found, strict=True):
            if data is None:
                planner.load_bytes(item, _as_dcp_bytes(objects[item.storage_index.fqn]))
                continue
            target = planner.resolve_tensor(item).detach()
            target.copy_(data)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it names a step."""
        return named_step(checkpoint_id) is not None

    def _read_names(self) -> NamedState:
        if self._named is None:
            step = self._step
            if step is None:
                steps = self._directory.steps()
                if not steps:
                    raise InputFileError(self._directory.path, "holds no checkpoints")
                step = steps[-1]
            self._named = named_state(self._directory.manifest(step))
        return self._named


def _changed_meanwhile(what: str) -> CheckpointError:
    return CheckpointError(
        what,
        meaning="Nothing was loaded: the ranks would have had parts of two checkpoints.",
        cure="Load again, or name the step: VerifiedStorageReader(directory, step).",
    )


def _as_dcp_bytes(value: Any) -> io.BytesIO:
    """What DCP's load planner unpickles. It comes from this process, out of verified JSON, not from a file."""
    data = io.BytesIO()
    torch.save(value, data)
    data.seek(0)
    return data


def _tensor_metadata(entry: TensorEntry) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.shape)) for chunk in entry.chunks]
    return TensorStorageMetadata(TensorProperties(dtype=DTYPES[entry.dtype]), torch.Size(entry.shape), chunks)


def _box(item: ReadItem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and shape of what is wanted: DCP counts from the beginning of the stored chunk."""
    begin = item.storage_index.offset or torch.Size([0] * len(item.storage_offsets))
    offsets = tuple(first + more for first, more in zip(begin, item.storage_offsets, strict=True))
    return offsets, tuple(item.lengths)
