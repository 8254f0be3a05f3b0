"""A rank waits long, but not for ever, and briefly once the script is on its way out."""

from __future__ import annotations

from production_ml.fault_tolerance.saving.patience import Patience
from production_ml.testing.clock import FakeClock


def test_patience_ends_with_its_time():
    clock = FakeClock()
    patience = Patience(10.0, clock=clock)

    assert patience.pause()
    clock.advance(10.0)
    assert not patience.pause()


def test_a_script_that_failed_does_not_wait_long():
    clock = FakeClock()
    patience = Patience(1000.0, clock=clock)
    patience.leave_soon(within_seconds=5.0)
    clock.advance(5.0)

    assert not patience.pause()


def test_leaving_never_makes_the_wait_longer():
    clock = FakeClock()
    patience = Patience(1.0, clock=clock)
    patience.leave_soon(within_seconds=60.0)
    clock.advance(1.0)

    assert not patience.pause()
