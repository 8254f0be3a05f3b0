"""Copies from GPUs into an image: on streams of their own, in the order of the device's work, beside its work."""

from __future__ import annotations

import torch


class DeviceCopies:
    """The copies of one save. Everything here is a matter of microseconds, but for `await_end`."""

    def __init__(self) -> None:
        self._events: dict[torch.device, torch.cuda.Event] = {}

    def make(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Begin copying each (source, target) as the source is after all work that its device was given so far."""
        by_device: dict[torch.device, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for source, target in pairs:
            by_device.setdefault(source.device, []).append((source, target))
        for device, group in by_device.items():
            stream = _stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.no_grad(), torch.cuda.stream(stream):
                for source, target in group:
                    target.copy_(source, non_blocking=True)
                    # The allocator must not give the memory away while the copy still reads it.
                    source.record_stream(stream)
                self._events[device] = stream.record_event()

    def hold_back(self) -> None:
        """Let the devices do nothing that comes after this before the copies so far are made."""
        for device, event in self._events.items():
            torch.cuda.current_stream(device).wait_event(event)

    def await_end(self) -> None:
        """Return when the copies are made."""
        for event in self._events.values():
            event.synchronize()


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[device]
