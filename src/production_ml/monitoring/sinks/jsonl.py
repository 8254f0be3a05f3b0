"""Metrics and events as JSON lines, for jq, pandas and whatever reads text."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from production_ml.core.clock import iso_utc
from production_ml.core.structured_logging import json_safe
from production_ml.monitoring.run_directory import RunDirectory, RunIdentity
from production_ml.monitoring.run_log import MetricsRecord, SourcedRecord


class JsonLinesSink:
    """Writes `metrics.jsonl` in the run directory; each exporter of the run begins the file anew from the log."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._length_bytes = 0

    def open(self, run: RunDirectory, identity: RunIdentity) -> None:  # noqa: ARG002 - the Protocol's
        self._descriptor = os.open(run.metrics_jsonl, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def write(self, records: Sequence[SourcedRecord]) -> None:
        data = "".join(line(record) + "\n" for record in records).encode()
        # Where the last whole batch ended, so that a batch that is given again leaves no half lines and no doubles.
        written = os.pwrite(self._descriptor, data, self._length_bytes)
        if written < len(data):
            raise OSError(f"only {written} of {len(data)} bytes found room on the disk")
        self._length_bytes += written

    def close(self) -> None:
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, self._length_bytes)
            os.close(self._descriptor)
            self._descriptor = -1


def line(sourced: SourcedRecord) -> str:
    """One record as one line of JSON."""
    record, source = sourced.record, sourced.source
    facts: dict[str, Any] = {
        "time": iso_utc(record.wall_seconds),
        "step": record.step,
        "role": source.role,
        "rank": source.rank,
        "attempt": source.attempt,
        "node": source.node,
    }
    if isinstance(record, MetricsRecord):
        facts["metrics"] = record.values
    else:
        facts |= {"event": record.name, "level": record.level, "message": record.message, "fields": record.fields}
    return json.dumps(json_safe(facts))
