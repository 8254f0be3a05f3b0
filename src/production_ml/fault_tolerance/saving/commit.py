"""The commit: every rank's shard and part durable, then rank 0's manifest, then the name. Files alone carry the news.

Nothing here talks over the process group: it belongs to the training, which may be in another process, or dead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.manifest import MANIFEST_FILE, FileEntry, Manifest, read_save_id
from production_ml.fault_tolerance.saving.order import UNCHANGED, SaveOrder, write_error
from production_ml.fault_tolerance.saving.parts import (
    Part,
    describe_part,
    fresh_listing,
    merge_parts,
    part_name,
    read_parts,
    shard_name,
    write_failure,
    write_part,
)
from production_ml.fault_tolerance.saving.patience import Patience
from production_ml.fault_tolerance.saving.shard_writer import complete_image, write_shard

_LISTING_LAG_SECONDS: Final = 60.0
"""Over NFS the old name may be seen to go long before the new one is seen to come. Only a failed save waits for it."""


def carry_out(
    order: SaveOrder, image: memoryview, patience: Patience, on_part: Callable[[Part], None] = lambda _part: None
) -> Manifest | None:
    """Write this rank's share of a checkpoint and stay until it is committed.

    Args:
        order: What to write.
        image: The memory of this rank's shard, laid out as the order says.
        patience: How long to wait for other ranks.
        on_part: Gets what this rank's image holds as soon as that is known, also where the disk does not take it.

    Returns:
        The manifest on rank 0, None on the others.

    Raises:
        CheckpointWriteError: There will be no such checkpoint.
    """
    try:
        if order.rank == 0:
            return _lead(order, image, patience, on_part)
        _follow(order, image, patience, on_part)
    except OSError as problem:
        what = f"The checkpoint of step {order.step} could not be written to {order.directory.path}"
        raise write_error(what, problem) from problem
    return None


def give_up(order: SaveOrder, problem: str) -> None:
    """There will be no such checkpoint, for this rank's share will not come; tell the other ranks."""
    with contextlib.suppress(OSError):
        if order.rank == 0:
            order.directory.abandon(order.written)
        else:
            write_failure(order.written, order.rank, problem)


def _lead(order: SaveOrder, image: memoryview, patience: Patience, on_part: Callable[[Part], None]) -> Manifest:
    try:
        whole = merge_parts([_write_shard(order, image, on_part), *_await_parts(order, patience)])
        for rank in range(1, order.world_size):
            (order.written / part_name(rank)).unlink()
        manifest = Manifest(
            step=order.step,
            save_id=order.save_id,
            created_at=SYSTEM_CLOCK.wall_seconds(),
            world_size=order.world_size,
            metrics=order.metrics,
            values=order.values,
            rank_values=whole.rank_values,
            files=whole.files,
            tensors=whole.tensors,
        )
        order.directory.commit(order.written, manifest)
    except BaseException:
        with contextlib.suppress(OSError):
            order.directory.abandon(order.written)
        raise
    return manifest


def _follow(order: SaveOrder, image: memoryview, patience: Patience, on_part: Callable[[Part], None]) -> None:
    try:
        write_part(order.written, order.rank, _write_shard(order, image, on_part))
    except BaseException as problem:
        # The shard goes first: on a full disk it makes the room for the few bytes that tell rank 0.
        with contextlib.suppress(OSError):
            (order.written / shard_name(order.rank)).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            write_failure(order.written, order.rank, _reason(problem))
        raise
    _await_commit(order, patience)


def complete_part(order: SaveOrder, image: memoryview) -> Part:
    """Make an image a shard byte for byte, and say what it holds, without writing it anywhere."""
    if not order.contents.holdings:
        return Part({}, {}, _rank_values(order))
    return _describe(order, *complete_image(image, order.contents.layout))


def _write_shard(order: SaveOrder, image: memoryview, on_part: Callable[[Part], None]) -> Part:
    if not order.contents.holdings:
        part = Part({}, {}, _rank_values(order))
        on_part(part)
        return part

    def on_hashed(file: FileEntry, hashes: Mapping[str, tuple[str, ...]]) -> None:
        on_part(_describe(order, file, hashes))

    path = order.written / shard_name(order.rank)
    return _describe(order, *write_shard(path, image, order.contents.layout, on_hashed))


def _describe(order: SaveOrder, file: FileEntry, hashes: Mapping[str, tuple[str, ...]]) -> Part:
    part = describe_part(order.rank, order.contents.holdings, file, hashes)
    return replace(part, rank_values=_rank_values(order))


def _rank_values(order: SaveOrder) -> tuple[Any, ...]:
    return () if order.rank_values is None else (order.rank_values,)


def _await_parts(order: SaveOrder, patience: Patience) -> list[Part]:
    """The other ranks' parts, in rank order."""
    ranks = range(1, order.world_size)
    found: dict[int, Part] = {}
    while missing := [rank for rank in ranks if rank not in found]:
        found |= read_parts(order.written, missing)
        late = [rank for rank in missing if rank not in found]
        if late and not patience.pause():
            raise CheckpointWriteError(
                f"The checkpoint of step {order.step} was given up: rank {late[0]} did not write its shard in time.",
                meaning=UNCHANGED,
                cure=f"Look at what rank {late[0]} did last: it may have died, or its disk may hang.",
            )
    return [found[rank] for rank in ranks]


def _await_commit(order: SaveOrder, patience: Patience) -> None:
    while order.written.name in fresh_listing(order.directory.path):
        if not patience.pause():
            raise CheckpointWriteError(
                f"The checkpoint of step {order.step} was not committed in time by rank 0.",
                meaning=UNCHANGED,
                cure="Look at what rank 0 did last: it may have died, or its disk may hang.",
            )
    arrival = Patience(min(_LISTING_LAG_SECONDS, patience.timeout_seconds))
    while not _is_committed(order):
        if not arrival.pause():
            raise CheckpointWriteError(
                f"The checkpoint of step {order.step} was given up by rank 0.",
                meaning=UNCHANGED,
                cure="Rank 0's log says why (event checkpoint_save_failed).",
            )


def _is_committed(order: SaveOrder) -> bool:
    target = order.directory.committed(order.step)
    if target.name not in fresh_listing(order.directory.path):
        return False
    return read_save_id(target / MANIFEST_FILE) == order.save_id


def _reason(problem: BaseException) -> str:
    return (isinstance(problem, OSError) and problem.strerror) or repr(problem)
