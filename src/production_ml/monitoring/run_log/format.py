"""The bytes of a run log: framed records, each with its length and checksum, so that damage is seen and passed over.

A file is a magic word and then frames: `length: u32, crc32: u32, payload`. A payload starts with its kind:

- `S`, the source: JSON. First in the file, and repeated now and then.
- `N`, names: their u32 id, then a JSON list of metric names. Repeated now and then.
- `M`, metrics: u32 names id, i64 step, f64 wall seconds, then one f64 per name. NaN and infinities stay what they are.
- `E`, an event: JSON.

The id of names is their checksum. A number that counts up would be given again by a later writer or after damage,
and then values would be read under names that are not theirs.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from production_ml.core.structured_logging import json_safe

MAGIC: Final = b"PMLRUN02"
FRAME: Final = struct.Struct("<II")
LARGEST_PAYLOAD_BYTES: Final = 4 << 20
_NAMES_HEAD: Final = struct.Struct("<cI")
_METRICS_HEAD: Final = struct.Struct("<cIqd")
_KINDS: Final = re.compile(b"[SNME]")


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


@dataclass(frozen=True, slots=True)
class NamesLayout:
    """How the values of one set of metric names are laid out."""

    names_id: int
    definition: bytes
    """The frame that has to precede the first values."""
    values: struct.Struct

    @classmethod
    def of(cls, names: Iterable[object]) -> NamesLayout:
        """The layout of `names`, in this order."""
        listed = json.dumps([str(name) for name in names]).encode()
        names_id = zlib.crc32(listed)
        values = struct.Struct(f"{_METRICS_HEAD.format}{len(json.loads(listed))}d")
        return cls(names_id, frame(_NAMES_HEAD.pack(b"N", names_id) + listed), values)


def frame(payload: bytes) -> bytes:
    """A payload as it stands in the file."""
    return FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def encode_source(source: Source) -> bytes:
    """The frame that says who writes."""
    return frame(b"S" + json.dumps(asdict(source)).encode())


def encode_event(event: EventRecord) -> bytes:
    """The frame of an event; facts that JSON has no type for are written as text."""
    # Not asdict(): it deep-copies the facts, and a model's configuration may hold what cannot be copied.
    facts = {name: getattr(event, name) for name in EventRecord.__slots__}
    return frame(b"E" + json.dumps(json_safe(facts)).encode())


def find_frame(data: bytes, start: int) -> tuple[int, int] | None:
    """Where the first sound frame at or after `start` begins and where it ends; None while there is none."""
    if end := _end_of_sound_frame(data, start):
        return start, end
    for kind in _KINDS.finditer(data, start + FRAME.size + 1):
        begin = kind.start() - FRAME.size
        if end := _end_of_sound_frame(data, begin):
            return begin, end
    return None


def _end_of_sound_frame(data: bytes, begin: int) -> int:
    """0 where the bytes at `begin` are no whole, undamaged frame."""
    if begin + FRAME.size >= len(data):
        return 0
    length, checksum = FRAME.unpack_from(data, begin)
    end: int = begin + FRAME.size + length
    if not 0 < length <= LARGEST_PAYLOAD_BYTES or end > len(data):
        return 0
    return end if zlib.crc32(data[begin + FRAME.size : end]) == checksum else 0


class Decoder:
    """Turns payloads into records; it remembers the source, and the names that metrics records refer to."""

    def __init__(self) -> None:
        self.source: Source | None = None
        self._names: dict[int, tuple[str, ...]] = {}

    def decode(self, payload: bytes) -> Record | None:
        """The record, or None where the payload only informs the decoder.

        Raises:
            ValueError: The payload cannot be understood, though its checksum holds.
        """
        kind, text = payload[:1], payload[1:]
        try:
            if kind == b"M":
                return self._metrics(payload)
            if kind == b"E":
                return EventRecord(**json.loads(text))
            if kind == b"N":
                _, names_id = _NAMES_HEAD.unpack_from(payload)
                self._names[names_id] = tuple(json.loads(payload[_NAMES_HEAD.size :]))
                return None
            if kind == b"S":
                self.source = Source(**json.loads(text))
                return None
        except (TypeError, struct.error) as problem:
            raise ValueError(str(problem)) from problem
        raise ValueError(f"its kind {kind!r} is unknown")

    def _metrics(self, payload: bytes) -> MetricsRecord:
        _, names_id, step, wall_seconds = _METRICS_HEAD.unpack_from(payload)
        names = self._names.get(names_id)
        if names is None:
            raise ValueError("the names of its metrics were not read")
        values = struct.unpack(f"<{len(names)}d", payload[_METRICS_HEAD.size :])
        return MetricsRecord(step, wall_seconds, dict(zip(names, values, strict=True)))
