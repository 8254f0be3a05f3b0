"""Verification of one checkpoint by several threads, a file each, that tells how far it is and can be stopped."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Final

from production_ml.core.errors import CheckpointError, DamagedCheckpointError
from production_ml.fault_tolerance.checkpoint_format.base import CheckpointPlace
from production_ml.fault_tolerance.checkpoint_format.blocks import block_range
from production_ml.fault_tolerance.checkpoint_format.manifest import ChunkEntry, FileEntry, Manifest
from production_ml.fault_tolerance.checkpoint_format.shard_file import ShardReader
from production_ml.fault_tolerance.checkpoint_format.verification import Damage, chunks_by_file

_THREADS: Final = min(8, os.cpu_count() or 1)


def verify_in_parallel(
    directory: CheckpointPlace,
    manifest: Manifest,
    *,
    threads: int = _THREADS,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> list[Damage]:
    """Everything that is wrong with a checkpoint whose manifest is sound; nothing where it is.

    Args:
        directory: Where it is.
        manifest: Its verified manifest.
        threads: How many files are read at once.
        on_bytes: Called from any thread with how many bytes more were checked.

    Raises:
        CheckpointError: It cannot be judged: the system refuses to read it.
    """
    stopped = Event()
    files = chunks_by_file(manifest)
    # Large files first, so that no thread ends with one alone.
    ordered = sorted(files, key=lambda file: -manifest.files[file].size_bytes)
    with ThreadPoolExecutor(max(1, min(threads, len(files)))) as pool:
        try:
            futures = {
                file: pool.submit(_verify_file, directory, manifest, file, files[file], on_bytes, stopped)
                for file in ordered
            }
            return [damage for file in files for damage in futures[file].result()]
        finally:
            # An interrupted main thread must not wait until every byte is read.
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)


def structural_problem(directory: CheckpointPlace, manifest: Manifest) -> str | None:
    """What is wrong with the files by their names and sizes alone; None where nothing is."""
    for file, entry in manifest.files.items():
        try:
            with contextlib.closing(directory.source(manifest.step, file)) as source:
                size_bytes = source.size_bytes
        except CheckpointError as problem:
            return f"{file}: {problem.problem}" if isinstance(problem, DamagedCheckpointError) else problem.what
        if size_bytes != entry.size_bytes:
            return f"{file} has {size_bytes:,} bytes instead of {entry.size_bytes:,}"
    return None


def _verify_file(
    directory: CheckpointPlace,
    manifest: Manifest,
    file: str,
    chunks: list[tuple[str, str, ChunkEntry]],
    on_bytes: Callable[[int], None],
    stopped: Event,
) -> list[Damage]:
    found: list[Damage] = []
    sound: set[str] = set()
    try:
        with _reader(directory, manifest.step, file, manifest.files[file]) as reader:
            for name, dtype, chunk in chunks:
                try:
                    located = reader.locate(name, dtype, chunk)
                    # Tied tensors share their bytes: where these are sound, they are read once.
                    for index in range(len(located.hashes) if chunk.key not in sound else 0):
                        if stopped.is_set():
                            return found
                        begin, end = block_range(located.size_bytes, index)
                        on_bytes(end - begin)
                        reader.verify_block(located, index)
                    sound.add(chunk.key)
                except DamagedCheckpointError as error:
                    found.append(Damage.of(error))
    except DamagedCheckpointError as error:
        found.append(Damage.of(error))
    return found


def _reader(directory: CheckpointPlace, step: int, file: str, entry: FileEntry) -> ShardReader:
    return ShardReader(directory.source(step, file), entry, step=step)
