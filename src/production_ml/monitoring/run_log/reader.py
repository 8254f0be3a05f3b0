"""Reading the run log, while it grows, after its writer died, and around what a bad disk did to it."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from production_ml.monitoring.run_directory import RunDirectory, RunIdentity
from production_ml.monitoring.run_log.format import (
    FRAME,
    LARGEST_PAYLOAD_BYTES,
    MAGIC,
    Decoder,
    EventRecord,
    MetricsRecord,
    Record,
    Source,
    find_frame,
)

_SMALLEST_PIECE_BYTES = 2 * (LARGEST_PAYLOAD_BYTES + FRAME.size)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourcedRecord:
    """A record and who wrote it."""

    source: Source
    record: Record


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a log that could not be read; the records around them were."""

    path: Path
    begin: int
    end: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: bytes {self.begin} to {self.end} are left out: {self.problem}"


class LogFile:
    """One file, read on from where the last reading stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damages: list[Damage] = []
        self._position = 0
        self._decoder = Decoder()

    @property
    def source(self) -> Source | None:
        """Who writes this file, once that has been read."""
        return self._decoder.source

    def read_new(self, at_most_bytes: int = -1) -> list[SourcedRecord]:
        """The whole records that came since the last call; a torn tail waits until it is whole.

        Args:
            at_most_bytes: How much to take at once; -1 for all there is.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                data = file.read(at_most_bytes)
        except OSError as problem:  # the directory was moved away, or a network disk is gone for a while
            _logger.debug("%s: %s", self.path, problem)
            return []
        records, consumed = self._parse(data)
        if not consumed and len(data) == at_most_bytes:
            consumed = len(data) - LARGEST_PAYLOAD_BYTES - FRAME.size  # a record that began before would be whole
            self._note_damage(0, consumed, "no record was found")
        self._position += consumed
        return records

    def _parse(self, data: bytes) -> tuple[list[SourcedRecord], int]:
        records: list[SourcedRecord] = []
        offset = self._pass_magic(data)
        while (found := find_frame(data, offset)) is not None:
            begin, end = found
            if begin > offset:
                self._note_damage(offset, begin, "no record there passes its checksum")
            try:
                record = self._decoder.decode(data[begin + FRAME.size : end])
                if record is not None:
                    records.append(SourcedRecord(self._known_source(), record))
            except ValueError as problem:
                self._note_damage(begin, end, f"the record cannot be understood ({problem})")
            offset = end
        return records, offset

    def _pass_magic(self, data: bytes) -> int:
        if self._position > 0 or len(data) < len(MAGIC):
            return 0
        if not data.startswith(MAGIC):
            self._note_damage(0, len(MAGIC), f"a run log begins with {MAGIC.decode()}")
        return len(MAGIC)

    def _known_source(self) -> Source:
        if self._decoder.source is None:
            raise ValueError("who wrote it was not read")
        return self._decoder.source

    def _note_damage(self, begin: int, end: int, problem: str) -> None:
        damage = Damage(self.path, self._position + begin, self._position + end, problem)
        last = self.damages[-1] if self.damages else None
        if last is not None and last.end == damage.begin and last.problem == problem:
            self.damages[-1] = replace(last, end=damage.end)
            return
        self.damages.append(damage)
        _logger.warning("%s. The other records are used. Check the disk.", damage)


class RunLogFollower:
    """Reads what is new in all files of a run, those that appear later included."""

    def __init__(self, run: RunDirectory) -> None:
        self._directory = run.log_directory
        self._files: dict[Path, LogFile] = {}

    def poll(self, at_most_bytes: int = -1) -> list[SourcedRecord]:
        """The records since the last poll, in the order of their wall time; those of one file stay in their order.

        Args:
            at_most_bytes: How much of each file to take at once, 8 MiB or more; -1 for all there is.
        """
        limit = max(at_most_bytes, _SMALLEST_PIECE_BYTES) if at_most_bytes >= 0 else -1
        for path in sorted(self._directory.glob("*.runlog")):
            self._files.setdefault(path, LogFile(path))
        pieces = [file.read_new(limit) for file in self._files.values()]
        return list(heapq.merge(*pieces, key=lambda sourced: sourced.record.wall_seconds))

    def sources(self) -> list[Source]:
        """All processes that have written so far."""
        return [file.source for file in self._files.values() if file.source is not None]

    def damages(self) -> list[Damage]:
        """What could not be read so far."""
        return [damage for file in self._files.values() for damage in file.damages]


class RunLog:
    """A run as its log tells it, all ranks and attempts."""

    def __init__(
        self,
        run: RunDirectory,
        identity: RunIdentity,
        records: Sequence[SourcedRecord],
        damages: Sequence[Damage] = (),
    ) -> None:
        self.run = run
        self.identity = identity
        self.records = records
        self.damages = damages

    @classmethod
    def open(cls, run_dir: Path | str) -> RunLog:
        """Read a run. What is damaged is left out, warned of, and listed in `damages`.

        Raises:
            InputFileError: The directory holds no run.
        """
        run = RunDirectory(Path(run_dir))
        identity = run.identity()
        follower = RunLogFollower(run)
        return cls(run, identity, follower.poll(), follower.damages())

    def metrics(self) -> Iterator[tuple[Source, MetricsRecord]]:
        """Every metrics record with who wrote it, in time order."""
        for sourced in self.records:
            if isinstance(sourced.record, MetricsRecord):
                yield sourced.source, sourced.record

    def events(self, name: str | None = None) -> Iterator[tuple[Source, EventRecord]]:
        """Every event, or those of one name, in time order."""
        for sourced in self.records:
            if isinstance(sourced.record, EventRecord) and name in (None, sourced.record.name):
                yield sourced.source, sourced.record
