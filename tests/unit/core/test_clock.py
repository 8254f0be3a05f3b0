"""Times read the same everywhere, and a test can hold them still."""

from __future__ import annotations

from production_ml.core.clock import SYSTEM_CLOCK, Clock, iso_utc
from production_ml.testing.clock import FakeClock


def test_a_time_is_written_in_utc_with_milliseconds():
    assert iso_utc(1_767_268_800.0625) == "2026-01-01T12:00:00.062Z"


def test_the_monotonic_clock_never_goes_back():
    readings = [SYSTEM_CLOCK.monotonic_seconds() for _ in range(1000)]

    assert readings == sorted(readings)


def test_a_fake_clock_moves_when_it_is_told_and_a_corrected_wall_leaves_durations_alone():
    clock = FakeClock(100.0)
    held: Clock = clock
    clock.advance(2.5)
    clock.set_wall(50.0)
    clock.advance(0.5)

    assert (held.wall_seconds(), held.monotonic_seconds()) == (50.5, 3.0)
