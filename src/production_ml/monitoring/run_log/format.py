"""The bytes of a run log: framed records, each with its length and checksum, so that a torn tail is seen as one.

A file is a magic word and then frames: `length: u32, crc32: u32, payload`. A payload starts with its kind:

- `S`, the source: JSON, once, first.
- `N`, names: a u16 id, then a JSON list of metric names; the metrics records that follow refer to it.
- `M`, metrics: u16 names id, i64 step, f64 wall seconds, then one f64 per name. NaN and infinities stay what they are.
- `E`, an event: JSON.

A length of 0 is where a preallocated file ends for now.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from production_ml.core.structured_logging import json_safe

MAGIC: Final = b"PMLRUN01"
FRAME: Final = struct.Struct("<II")
METRICS_HEAD: Final = struct.Struct("<cHqd")
NAMES_HEAD: Final = struct.Struct("<cH")
LARGEST_PAYLOAD_BYTES: Final = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The process that wrote a file."""

    role: str
    """`rank` or `launcher`."""
    rank: int
    world_size: int
    attempt: int
    node: str
    pid: int
    owner_pid: int
    owner_start: int
    """When the owner started, in clock ticks since boot: a pid alone is used again."""
    started_at: float
    """Wall seconds."""


@dataclass(frozen=True, slots=True)
class MetricsRecord:
    """The values of one `log()` call."""

    step: int
    wall_seconds: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened, with its facts."""

    name: str
    wall_seconds: float
    step: int | None = None
    level: str = "info"
    message: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


Record = MetricsRecord | EventRecord


def frame(payload: bytes) -> bytes:
    """A payload as it stands in the file."""
    return FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def encode_source(source: Source) -> bytes:
    return frame(b"S" + json.dumps(asdict(source)).encode())


def encode_names(names_id: int, names: tuple[str, ...]) -> bytes:
    return frame(NAMES_HEAD.pack(b"N", names_id) + json.dumps(names).encode())


def encode_event(event: EventRecord) -> bytes:
    return frame(b"E" + json.dumps(json_safe(asdict(event))).encode())


class Decoder:
    """Turns payloads into records; it remembers the names that metrics records refer to."""

    def __init__(self) -> None:
        self.source: Source | None = None
        self._names: dict[int, tuple[str, ...]] = {}

    def decode(self, payload: bytes) -> Record | None:
        """The record, or None where the payload only informs the decoder.

        Raises:
            ValueError: The payload passed its checksum and is still none of ours.
        """
        kind = payload[:1]
        if kind == b"M":
            return self._metrics(payload)
        if kind == b"E":
            return EventRecord(**json.loads(payload[1:]))
        if kind == b"N":
            _, names_id = NAMES_HEAD.unpack_from(payload)
            self._names[names_id] = tuple(json.loads(payload[NAMES_HEAD.size :]))
            return None
        if kind == b"S":
            self.source = Source(**json.loads(payload[1:]))
            return None
        raise ValueError(f"unknown record kind {kind!r}")

    def _metrics(self, payload: bytes) -> MetricsRecord:
        _, names_id, step, wall_seconds = METRICS_HEAD.unpack_from(payload)
        names = self._names.get(names_id)
        if names is None:
            raise ValueError(f"metrics refer to the names {names_id}, which were not read")
        values = struct.unpack_from(f"<{len(names)}d", payload, METRICS_HEAD.size)
        return MetricsRecord(step, wall_seconds, dict(zip(names, values, strict=True)))
