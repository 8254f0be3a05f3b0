"""The commit: every rank's shard and part stored, then rank 0's manifest, then the name. Files carry the news.

Nothing here talks over the process group: it belongs to the training, which may be in another process, or dead.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance.checkpoint_format.blocks import block_hashes
from production_ml.fault_tolerance.checkpoint_format.directory_save import shard_name
from production_ml.fault_tolerance.checkpoint_format.manifest import FileEntry, Manifest
from production_ml.fault_tolerance.checkpoint_format.shard_layout import ShardLayout
from production_ml.fault_tolerance.saving.order import UNCHANGED, SaveOrder, write_error
from production_ml.fault_tolerance.saving.parts import (
    Part,
    decode_part,
    describe_part,
    encode_failure,
    encode_part,
    merge_parts,
)
from production_ml.fault_tolerance.saving.patience import Patience
from production_ml.storage.hashing import hash_bytes

_LISTING_LAG_SECONDS: Final = 10.0
"""Over NFS the old name may be seen to go before the new one is seen to come. Only a failed save waits for it."""


class GivenUpError(CheckpointWriteError):
    """Rank 0 gave a save up, and knows why; this rank had written its share."""


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
        if order.rank != 0 and problem.errno == errno.ENOENT and _is_gone(order):
            raise _given_up(order) from problem
        what = f"The checkpoint of step {order.step} could not be written to {order.directory.url}"
        raise write_error(what, problem) from problem
    return None


def give_up(order: SaveOrder, problem: BaseException) -> None:
    """There will be no such checkpoint, for this rank's share will not come; tell the other ranks."""
    with contextlib.suppress(OSError):
        if order.rank == 0:
            order.directory.abandon(order.written)
        else:
            order.written.write_part(order.rank, _failure(problem))


def _lead(order: SaveOrder, image: memoryview, patience: Patience, on_part: Callable[[Part], None]) -> Manifest:
    try:
        whole = merge_parts([_write_shard(order, image, on_part), *_await_parts(order, patience)])
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
        order.written.write_part(order.rank, encode_part(_write_shard(order, image, on_part)))
    except BaseException as problem:
        # The shard goes first: on a full disk it makes the room for the few bytes that tell rank 0.
        with contextlib.suppress(OSError):
            order.written.withdraw(order.rank)
        with contextlib.suppress(OSError):
            order.written.write_part(order.rank, _failure(problem))
        raise
    _await_commit(order, patience)


def complete_part(order: SaveOrder, image: memoryview) -> Part:
    """Make an image a shard byte for byte, and say what it holds, without writing it anywhere."""
    if not order.contents.holdings:
        return Part({}, {}, _rank_values(order))
    return _describe(order, shard_name(order.rank), *complete_image(image, order.contents.layout))


def complete_image(image: memoryview, layout: ShardLayout) -> tuple[FileEntry, Mapping[str, tuple[str, ...]]]:
    """Put the header before the tensors of an image, which is then a shard byte for byte, and hash it.

    Returns:
        What a reader needs to verify the shard, and the hashes of each tensor's blocks by key.
    """
    image[: len(layout.header)] = layout.header
    entry = FileEntry(size_bytes=layout.size_bytes, header_hash=hash_bytes(layout.header))
    return entry, hash_shard(image, layout)


def hash_shard(image: memoryview, layout: ShardLayout) -> dict[str, tuple[str, ...]]:
    """XXH3-128 of each block of each tensor, by key."""
    return {key: block_hashes(image[extent.begin : extent.end]) for key, extent in layout.extents.items()}


def _write_shard(order: SaveOrder, image: memoryview, on_part: Callable[[Part], None]) -> Part:
    """Store the shard while another thread hashes it; `on_part` hears of it also where the place does not take it."""
    if not order.contents.holdings:
        part = Part({}, {}, _rank_values(order))
        on_part(part)
        return part
    layout = order.contents.layout
    # Before both threads: what is written is what is hashed.
    image[: len(layout.header)] = layout.header

    def complete() -> tuple[FileEntry, Mapping[str, tuple[str, ...]]]:
        found = complete_image(image, layout)
        on_part(_describe(order, shard_name(order.rank), *found))
        return found

    with ThreadPoolExecutor(1, thread_name_prefix="checkpoint-hash") as hasher:
        completing = hasher.submit(complete)
        name = order.written.write_shard(order.rank, image, layout.size_bytes)
        return _describe(order, name, *completing.result())


def _describe(order: SaveOrder, name: str, file: FileEntry, hashes: Mapping[str, tuple[str, ...]]) -> Part:
    return replace(describe_part(name, order.contents.holdings, file, hashes), rank_values=_rank_values(order))


def _rank_values(order: SaveOrder) -> tuple[Any, ...]:
    return () if order.rank_values is None else (order.rank_values,)


def _await_parts(order: SaveOrder, patience: Patience) -> list[Part]:
    """The other ranks' parts, in rank order."""
    ranks = range(1, order.world_size)
    found: dict[int, Part] = {}
    while missing := [rank for rank in ranks if rank not in found]:
        told = order.written.read_parts(missing)
        found |= {rank: decode_part(rank, told[rank]) for rank in sorted(told)}
        late = [rank for rank in missing if rank not in found]
        if late and not patience.pause():
            raise CheckpointWriteError(
                f"The checkpoint of step {order.step} was given up: rank {late[0]} did not write its shard in time.",
                meaning=UNCHANGED,
                cure=f"Look at what rank {late[0]} did last: it may have died, or its disk may hang.",
            )
    return [found[rank] for rank in ranks]


def _await_commit(order: SaveOrder, patience: Patience) -> None:
    while order.written.is_claimed():
        if not patience.pause():
            raise CheckpointWriteError(
                f"The checkpoint of step {order.step} was not committed in time by rank 0.",
                meaning=UNCHANGED,
                cure="Look at what rank 0 did last: it may have died, or its disk may hang.",
            )
    arrival = Patience(min(_LISTING_LAG_SECONDS, patience.timeout_seconds))
    while not order.directory.is_committed(order.written):
        if not arrival.pause():
            raise _given_up(order)


def _is_gone(order: SaveOrder) -> bool:
    """Whether rank 0 has given the save up while this rank wrote."""
    try:
        return not order.written.is_claimed()
    except OSError:
        return False


def _given_up(order: SaveOrder) -> GivenUpError:
    return GivenUpError(
        f"The checkpoint of step {order.step} was given up by rank 0.",
        meaning=UNCHANGED,
        cure="Rank 0's log says why (event checkpoint_save_failed).",
    )


def _failure(problem: BaseException) -> bytes:
    number, is_healed = getattr(problem, "errno", None), getattr(problem, "is_healed", False)
    return encode_failure(_reason(problem), errno=number, is_healed=is_healed)


def _reason(problem: BaseException) -> str:
    if isinstance(problem, CheckpointWriteError):
        return problem.what.rstrip(".")
    return (isinstance(problem, OSError) and problem.strerror) or repr(problem)
