"""Reading the run log, while it grows or after its writer died."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
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
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourcedRecord:
    """A record and who wrote it."""

    source: Source
    record: Record


class LogFile:
    """One file, read on from where the last reading stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0
        self._decoder = Decoder()
        self._damage_reported = False

    def read_new(self) -> list[SourcedRecord]:
        """The whole records that came since the last call; a torn tail waits until it is whole."""
        with self.path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        offset = 0
        if self._position == 0:
            if len(data) < len(MAGIC):
                return []
            if not data.startswith(MAGIC):
                self._report_damage("it is not a run log")
                return []
            offset = len(MAGIC)
        records, consumed = self._parse(data, offset)
        self._position += consumed
        return records

    def _parse(self, data: bytes, offset: int) -> tuple[list[SourcedRecord], int]:
        records: list[SourcedRecord] = []
        while offset + FRAME.size <= len(data):
            length, checksum = FRAME.unpack_from(data, offset)
            end = offset + FRAME.size + length
            if length == 0 or length > LARGEST_PAYLOAD_BYTES or end > len(data):
                break
            payload = data[offset + FRAME.size : end]
            if zlib.crc32(payload) != checksum:
                self._report_damage(f"the record at byte {self._position + offset} fails its checksum and is left out")
            elif (record := self._decode(payload, self._position + offset)) is not None:
                records.append(record)
            offset = end
        return records, offset

    def _decode(self, payload: bytes, position: int) -> SourcedRecord | None:
        try:
            record = self._decoder.decode(payload)
        except (ValueError, TypeError) as problem:
            self._report_damage(f"the record at byte {position} cannot be understood ({problem})")
            return None
        source = self._decoder.source
        return SourcedRecord(source, record) if record is not None and source is not None else None

    @property
    def source(self) -> Source | None:
        """Who writes this file, once that has been read."""
        return self._decoder.source

    def _report_damage(self, problem: str) -> None:
        if not self._damage_reported:
            self._damage_reported = True
            _logger.warning("%s: %s. Check the disk; the other records are used.", self.path, problem)


class RunLogFollower:
    """Reads what is new in all files of a run, those that appear later included."""

    def __init__(self, run: RunDirectory) -> None:
        self._directory = run.log_directory
        self._files: dict[Path, LogFile] = {}

    def poll(self) -> list[SourcedRecord]:
        """The records since the last poll, in the order of their wall time."""
        for path in self._directory.glob("*.runlog"):
            self._files.setdefault(path, LogFile(path))
        records = [record for file in self._files.values() for record in file.read_new()]
        return sorted(records, key=lambda sourced: sourced.record.wall_seconds)

    def sources(self) -> list[Source]:
        """All processes that have written so far."""
        return [file.source for file in self._files.values() if file.source is not None]


class RunLog:
    """A run as its log tells it, all ranks and attempts."""

    def __init__(self, run: RunDirectory, identity: RunIdentity, records: list[SourcedRecord]) -> None:
        self.run = run
        self.identity = identity
        self.records = records

    @classmethod
    def open(cls, run_dir: Path | str) -> RunLog:
        """Read a run.

        Raises:
            InputFileError: The directory holds no run.
        """
        run = RunDirectory(Path(run_dir))
        identity = run.identity()
        return cls(run, identity, RunLogFollower(run).poll())

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
