"""DCP's storage writer over our format: all ranks' shards durable and hashed, then one manifest, the commit."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.directory_save import DirectorySave
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.fault_tolerance.checkpoint_format.save_lock import SaveLock
from production_ml.fault_tolerance.checkpoint_format.state_tree import encode_tree
from production_ml.fault_tolerance.farewell import end_well
from production_ml.fault_tolerance.interchange.dcp_names import values_of
from production_ml.fault_tolerance.interchange.dcp_place import checked_step, named_step, place
from production_ml.fault_tolerance.interchange.shards import ShardBoxes
from production_ml.fault_tolerance.saving.draft import parse_metrics
from production_ml.fault_tolerance.saving.order import write_error
from production_ml.fault_tolerance.saving.parts import Part, merge_parts


@dataclass(frozen=True, slots=True)
class _Draft:
    """A save that the coordinator has begun; what its plans tell the ranks."""

    save_id: str
    number: int
    """Of the rank's shard."""


@dataclass(frozen=True, slots=True)
class _Written:
    """What one rank tells the coordinator."""

    part: Part
    objects: dict[str, Any]
    """By DCP's name: what is no tensor, in JSON."""


class VerifiedStorageWriter(StorageWriter):
    """Writes what DCP saves as a verified checkpoint of `directory`, committed when all ranks' shards are durable.

    Values that are not tensors are kept as JSON, never as a pickle; what JSON and tensors cannot hold is refused by its
    name. DCP wraps errors in its `CheckpointException`; `own_errors` brings them back.

    Args:
        directory: The checkpoint directory, which all ranks share.
        step: The step to save. `dcp.save(checkpoint_id=…)` may give it instead: a number, or a path that ends with
            `step-…`.
        metrics: Kept with the checkpoint; policies choose the best by them. The coordinator's count.

    Raises:
        ConfigError: The step is not a whole number of at least 0, or a metric no number.
    """

    def __init__(
        self, directory: str | os.PathLike[str], step: int | None = None, *, metrics: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        # DCP talks in collectives, and a script often ends with this.
        end_well()
        self._directory = CheckpointDirectory(Path(directory))
        self._step = None if step is None else checked_step(step)
        self._metrics = parse_metrics({} if metrics is None else metrics)
        self._abandon: weakref.finalize[Any, VerifiedStorageWriter] | None = None
        self._begun: _Draft | None = None

    @property
    def checkpoint_id(self) -> str:
        """The checkpoint's path."""
        return str(self._directory.committed(self._known_step()))

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A new save begins; what an earlier one left unfinished is cleared away."""
        self._give_up()
        if checkpoint_id is not None:
            self._directory, self._step = place(self._directory, checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 - DCP's
        """DCP's first word to each rank.

        Raises:
            ConfigError: The ranks are to save without talking, so that nobody could commit.
        """
        if not kwargs.get("use_collectives", True):
            raise ConfigError("use_collectives", False, "a verified checkpoint is committed by all ranks together")
        self._known_step()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing to do."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Begin the save, and tell each rank where to write.

        Raises:
            CheckpointWriteError: The directory cannot be written to.
        """
        # DCP resets a writer that is used again only where it is given an id.
        self._give_up()
        step, save_id = self._known_step(), secrets.token_hex(8)
        try:
            self._directory.remove_leftovers()
            lock = self._directory.begin(step, save_id)
        except OSError as problem:
            raise self._write_error(problem) from problem
        self._begun = _Draft(save_id, 0)
        written = self._directory.incomplete(step, save_id)
        self._abandon = weakref.finalize(self, _abandon, self._directory, written, lock, os.getpid())
        return [replace(plan, storage_data=_Draft(save_id, number)) for number, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's shard durably.

        Raises:
            CheckpointWriteError: Something cannot be saved, or the file system does not take it.
        """
        try:
            told = self._write_shard(plan, planner)
        except BaseException:
            # On the coordinator this clears the whole save away; what other ranks write fails then, and DCP tells all.
            self._give_up()
            raise
        # Every result carries the one account of the whole shard: in a pickle it is there once.
        future: Future[list[WriteResult]] = Future()
        future.set_result([WriteResult(item.index, _size_bytes(item), told) for item in plan.items])
        return future

    def _write_shard(self, plan: SavePlan, planner: SavePlanner) -> _Written:
        draft: _Draft = plan.storage_data
        written = self._written_to(draft)
        content, objects = ShardBoxes(), dict[str, Any]()
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                objects[item.index.fqn] = _add_object(item, planner, content)
            else:
                _add_tensor(item, planner, content)
        try:
            return _Written(content.write(written, draft.number) if content.holdings else Part({}, {}), objects)
        except OSError as problem:
            raise self._write_error(problem) from problem

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit: all shards are durable.

        Raises:
            CheckpointWriteError: The ranks' boxes do not make up their tensors, or the file system does not take it.
        """
        ranks: list[_Written] = [result[0].storage_data for result in results if result]
        objects = {name: value for rank in ranks for name, value in rank.objects.items()}
        step, begun = self._known_step(), self._begun
        if begun is None or self._abandon is None:
            raise CheckpointWriteError(f"The checkpoint of step {step} was not begun.", cure="Save it with dcp.save.")
        whole = merge_parts([rank.part for rank in ranks])
        manifest = Manifest(
            step=step,
            save_id=begun.save_id,
            created_at=SYSTEM_CLOCK.wall_seconds(),
            world_size=len(results),
            metrics=self._metrics,
            values=values_of(metadata, objects),
            files=whole.files,
            tensors=whole.tensors,
        )
        try:
            self._directory.commit(self._directory.incomplete(step, begun.save_id), manifest)
        except OSError as problem:
            raise self._write_error(problem) from problem
        finally:
            self._give_up()

    def storage_meta(self) -> StorageMeta | None:
        """The checkpoint's path, for DCP's own log."""
        return StorageMeta(checkpoint_id=self.checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it names a step."""
        return named_step(checkpoint_id) is not None

    def _known_step(self) -> int:
        if self._step is None:
            raise ConfigError("step", None, "is missing", cure="Give VerifiedStorageWriter(directory, step).")
        return self._step

    def _written_to(self, draft: _Draft) -> DirectorySave:
        """Where the ranks write. A planner that caches plans gives a rank the plan of an earlier save, with its id."""
        step = self._known_step()
        told = self._directory.incomplete(step, draft.save_id)
        if told.path.is_dir():
            return told
        found = sorted(self._directory.path.glob(self._directory.incomplete(step, "*").path.name))
        if len(found) != 1:
            raise CheckpointWriteError(
                f"The checkpoint of step {step} was given up: {len(found)} saves of it are under way.",
                cure="Let one process group save it, on a file system that all ranks share.",
            )
        return DirectorySave(found[0])

    def _give_up(self) -> None:
        if self._abandon is not None:
            self._abandon()
        self._abandon = self._begun = None

    def _write_error(self, problem: OSError) -> CheckpointWriteError:
        what = f"The checkpoint of step {self._step} could not be written to {self._directory.path}"
        return write_error(what, problem)


def _abandon(directory: CheckpointDirectory, written: DirectorySave, lock: SaveLock, owner: int) -> None:
    if os.getpid() != owner:  # a fork that ends has no say in its parent's save
        return
    with contextlib.suppress(OSError):
        directory.abandon(written)
    lock.release()


def _add_tensor(item: WriteItem, planner: SavePlanner, content: ShardBoxes) -> None:
    described = item.tensor_data
    data = planner.resolve_data(item)
    if described is None or not isinstance(data, torch.Tensor):
        raise CheckpointWriteError(f"{item.index.fqn} was planned as a tensor, but is a {type(data).__name__}.")
    content.add(item.index.fqn, data, offsets=tuple(described.chunk.offsets), shape=tuple(described.size))


def _add_object(item: WriteItem, planner: SavePlanner, content: ShardBoxes) -> Any:
    """The JSON form of what is no tensor; tensors in it go into the shard."""
    fqn, tensors = item.index.fqn, dict[str, torch.Tensor]()
    encoded = encode_tree(_object(item, planner), fqn, tensors)
    for name, tensor in tensors.items():
        content.add(name, tensor, offsets=None, shape=tuple(tensor.shape))
    return encoded


def _object(item: WriteItem, planner: SavePlanner) -> Any:
    if (
        isinstance(planner, DefaultSavePlanner)
        and type(planner).transform_object is DefaultSavePlanner.transform_object
    ):
        return planner.lookup_object(item.index)
    data = planner.resolve_data(item)
    if not isinstance(data, io.BytesIO):
        return data
    data.seek(0)
    try:
        return torch.load(data, weights_only=True)
    except Exception as problem:
        raise CheckpointWriteError(
            f"{item.index.fqn} comes from {type(planner).__name__} as bytes that are no plain value.",
            cure="Give tensors, numbers, strings and nestings of them; nothing is pickled.",
        ) from problem


def _size_bytes(item: WriteItem) -> int:
    return item.tensor_storage_size() or 0
