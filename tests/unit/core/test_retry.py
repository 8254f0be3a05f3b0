"""What may pass is tried again, ever later and not for ever; what will not pass is raised at once."""

from __future__ import annotations

import pytest

from production_ml.core.errors import ConfigError
from production_ml.core.retry import Retry, RetryPolicy
from production_ml.core.structured_logging import subscribe, unsubscribe
from production_ml.testing.clock import FakeClock


class Flaky:
    """Fails so many times before it succeeds; may take its time."""

    def __init__(self, failures, error=None, *, takes=lambda: None):
        self.calls = 0
        self._failures = failures
        self._error = error or ConnectionResetError("connection reset")
        self._takes = takes

    def __call__(self):
        self.calls += 1
        self._takes()
        if self.calls <= self._failures:
            raise self._error
        return "done"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def retry_with(clock, pauses):
    """A retry that draws the longest pause each time, in a time that only pauses move."""

    def make(**policy):
        def pause(seconds):
            pauses.append(seconds)
            clock.advance(seconds)

        is_transient = lambda error: isinstance(error, ConnectionError)  # noqa: E731
        return Retry(
            RetryPolicy(**policy), is_transient=is_transient, clock=clock, pause=pause, draw=lambda low, high: high
        )

    return make


def test_what_succeeds_is_not_repeated(retry_with, pauses):
    work = Flaky(0)

    assert retry_with().call("work", work) == "done"
    assert (work.calls, pauses) == (1, [])


def test_pauses_double_up_to_the_longest(retry_with, pauses):
    retry = retry_with(tries=6, first_pause_seconds=1.0, longest_pause_seconds=5.0)

    assert retry.call("work", Flaky(5)) == "done"
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_the_last_try_raises_its_own_error_and_says_how_often_it_was_tried(retry_with):
    work = Flaky(99)

    with pytest.raises(ConnectionResetError) as caught:
        retry_with(tries=3).call("work", work)

    assert work.calls == 3
    assert "after 3 tries" in caught.value.__notes__[0]


def test_no_try_begins_after_the_budget(retry_with, clock):
    work = Flaky(99, takes=lambda: clock.advance(4.0))
    retry = retry_with(tries=99, first_pause_seconds=1.0, longest_pause_seconds=1.0, budget_seconds=9.5)

    with pytest.raises(ConnectionResetError):
        retry.call("work", work)

    assert work.calls == 2


def test_an_error_that_will_not_pass_is_raised_at_once(retry_with, pauses):
    work = Flaky(1, PermissionError("no"))

    with pytest.raises(PermissionError) as caught:
        retry_with().call("work", work)

    assert (work.calls, pauses) == (1, [])
    assert not hasattr(caught.value, "__notes__")


def test_pauses_are_drawn_from_zero_to_the_longest(clock, rng):
    drawn = []
    retry = Retry(
        RetryPolicy(tries=200, first_pause_seconds=1.0, longest_pause_seconds=1.0, budget_seconds=1e9),
        is_transient=lambda error: True,
        clock=clock,
        pause=drawn.append,
        draw=rng.uniform,
    )

    retry.call("work", Flaky(199))

    assert 0 <= min(drawn) < 0.1
    assert 0.9 < max(drawn) <= 1.0


def test_each_retry_is_told_without_secrets(retry_with):
    received = []
    subscribe(received.append)
    try:
        error = ConnectionResetError("https://alice:hunter2@store/x?X-Amz-Signature=abcdef was reset")
        retry_with().call("upload of x", Flaky(1, error))
    finally:
        unsubscribe(received.append)

    (event,) = received
    assert (event.name, event.level_name) == ("retry", "warning")
    assert (event.fields["what"], event.fields["failures"]) == ("upload of x", 1)
    for secret in ("hunter2", "abcdef"):
        assert secret not in event.message + event.fields["error"]


@pytest.mark.parametrize("wrong", [{"tries": 0}, {"budget_seconds": -1.0}, {"first_pause_seconds": -0.1}])
def test_a_policy_that_cannot_work_is_refused(wrong):
    with pytest.raises(ConfigError):
        RetryPolicy(**wrong)
