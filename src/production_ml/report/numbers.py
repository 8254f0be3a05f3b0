"""Numbers as people read them: `1.23 s`, `42.1 MiB`, `12,345`."""

from __future__ import annotations

import math
from datetime import datetime, timezone

UNKNOWN = "—"
"""What stands where the log says nothing."""


def seconds(duration: float | None) -> str:
    """A duration: `31.0 ms`, `1.23 s`, `2 min 05 s`, `1 h 02 min`, `3 d 04 h`."""
    if duration is None or not math.isfinite(duration):
        return UNKNOWN
    if abs(duration) < 0.9995:
        return f"{_three_digits(duration * 1000)} ms" if duration else "0 s"
    if abs(duration) < 59.95:
        return f"{_three_digits(duration)} s"
    whole = round(duration)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"


def size(size_bytes: float | None) -> str:
    """A size in binary units: `812 B`, `42.1 MiB`."""
    if size_bytes is None or not math.isfinite(size_bytes):
        return UNKNOWN
    amount = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(amount) < 1023.5 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{_three_digits(amount)} {unit}"


def count(number: int | None) -> str:
    """A whole number with thousands marked: `12,345`."""
    return UNKNOWN if number is None else f"{number:,}"


def value(number: float | None) -> str:
    """A measured value in four significant digits: `0.1234`, `12,345`, `1.2e-05`, `NaN`."""
    if number is None:
        return UNKNOWN
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "∞" if number > 0 else "-∞"
    if number == 0 or 1e-4 <= abs(number) < 1e4:
        return f"{number:,.4g}"
    return f"{number:,.0f}" if 1e4 <= abs(number) < 1e9 else f"{number:.3g}"


def moment(wall_seconds: float | None) -> str:
    """A point in time: `2026-01-01 12:00:00 UTC`."""
    if wall_seconds is None:
        return UNKNOWN
    return datetime.fromtimestamp(wall_seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def plural(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _three_digits(number: float) -> str:
    decimals = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{decimals}f}"
