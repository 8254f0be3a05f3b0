"""Waiting for descriptors, whatever their numbers: select() takes none beyond 1023, and trainings hold more."""

from __future__ import annotations

import select
from collections.abc import Sequence


def await_readable(descriptors: Sequence[int], timeout_seconds: float | None = None) -> set[int]:
    """Those that can be read from, or whose other side is gone, as soon as there is one; none after the timeout."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    ready = waiting.poll(None if timeout_seconds is None else 1000 * timeout_seconds)
    return {descriptor for descriptor, _ in ready}
