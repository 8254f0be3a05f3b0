"""Metrics and events as JSON lines, for jq, pandas and whatever reads text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TextIO

from production_ml.core.clock import iso_utc
from production_ml.core.structured_logging import json_safe
from production_ml.monitoring.run_directory import RunDirectory, RunIdentity
from production_ml.monitoring.run_log import MetricsRecord, SourcedRecord


class JsonLinesSink:
    """Writes `metrics.jsonl` in the run directory; each exporter of the run begins the file anew from the log."""

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def open(self, run: RunDirectory, identity: RunIdentity) -> None:
        self._file = run.metrics_jsonl.open("w", encoding="utf-8")

    def write(self, records: Sequence[SourcedRecord]) -> None:
        if self._file is None:
            raise ValueError("write() before open()")
        self._file.write("".join(line(record) + "\n" for record in records))
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def line(sourced: SourcedRecord) -> str:
    """One record as one line of JSON."""
    record, source = sourced.record, sourced.source
    who = {"role": source.role, "rank": source.rank, "attempt": source.attempt, "node": source.node}
    when = {"time": iso_utc(record.wall_seconds), "step": record.step}
    if isinstance(record, MetricsRecord):
        what = {"metrics": dict(record.values)}
    else:
        what = {"event": record.name, "level": record.level, "message": record.message, **record.fields}
    return json.dumps(json_safe(when | who | what))
