"""Copies take their turn in a device's work; the device is stood in for, and tests/gpu has the same with a real one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch

from production_ml.fault_tolerance.saving.device_copies import DeviceCopies

_numbers = itertools.count(1)


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a device."""

    number = 0
    is_read_by: object = None

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.number)

    def record_stream(self, stream: object) -> None:
        self.is_read_by = stream


@dataclass(eq=False)
class Stream:
    """What a stream was told, in its order."""

    name: str
    told: list[str] = field(default_factory=list)

    def wait_stream(self, other: Stream) -> None:
        self.told.append(f"wait for all of {other.name}")

    def record_event(self) -> Event:
        self.told.append("event")
        return Event(self)

    def wait_event(self, event: Event) -> None:
        self.told.append(f"wait for the event of {event.stream.name}")


@dataclass(eq=False)
class Event:
    stream: Stream

    def synchronize(self) -> None:
        self.stream.told.append("awaited")


@dataclass
class Driver:
    """The CUDA runtime, as far as streams go."""

    training: Stream = field(default_factory=lambda: Stream("training"))
    made: list[Stream] = field(default_factory=list)

    def make(self, device: torch.device) -> Stream:
        self.made.append(Stream(f"copies {len(self.made)}"))
        return self.made[-1]

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        stream.told.append("copies")
        yield


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: driver.training)
    monkeypatch.setattr(torch.cuda, "Stream", driver.make)
    monkeypatch.setattr(torch.cuda, "stream", driver.stream)
    # Each test has a device of its own, as its stream is kept for ever.
    monkeypatch.setattr(OnDevice, "number", next(_numbers))
    return driver


def on_device(value: float) -> OnDevice:
    return torch.full((4,), value).as_subclass(OnDevice)


def test_without_a_device_nothing_is_asked_of_one(driver):
    copies = DeviceCopies()

    copies.make([])
    copies.hold_back()
    copies.await_end()

    assert (driver.made, driver.training.told) == ([], [])


def test_copies_come_after_the_work_before_them_and_before_what_is_held_back(driver):
    copies = DeviceCopies()
    sources, targets = [on_device(1.0), on_device(2.0)], [torch.zeros(4), torch.zeros(4)]

    copies.make(list(zip(sources, targets, strict=True)))
    copies.hold_back()
    copies.await_end()

    [stream] = driver.made
    assert stream.told == ["wait for all of training", "copies", "event", "awaited"]
    assert driver.training.told == ["wait for the event of copies 0"]
    assert [target.tolist() for target in targets] == [[1.0] * 4, [2.0] * 4]


def test_the_memory_of_what_is_copied_is_not_given_away_before(driver):
    source = on_device(1.0)

    DeviceCopies().make([(source, torch.zeros(4))])

    assert source.is_read_by is driver.made[0]


def test_a_device_keeps_its_stream_from_save_to_save_and_the_last_copies_are_awaited(driver):
    copies = DeviceCopies()
    for _ in range(2):
        copies.make([(on_device(1.0), torch.zeros(4))])
    copies.await_end()

    [stream] = driver.made
    assert stream.told[-2:] == ["event", "awaited"]
    assert stream.told.count("awaited") == 1
