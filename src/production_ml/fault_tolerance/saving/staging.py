"""Staging: one copy of a rank's tensors in memory that is kept between saves, so that training may go on at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch

_Layout: TypeAlias = list[tuple[str, torch.dtype, torch.Size]]


class StagingMemory:
    """A copy target that is laid out once for a model and then reused.

    The first copy into fresh memory costs three to seven times one into memory that is in use, for the kernel has to
    find and clear every page. It is pinned where tensors come from a CUDA device, so that they copy side by side.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._layout: _Layout = []
        self._views: dict[str, torch.Tensor] = {}

    def stage(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy `tensors`; when this returns, they may change. What it returned before must be in use no more.

        Returns:
            Contiguous CPU copies by name, those with large elements first, so that all are aligned without gaps.

        Raises:
            RuntimeError: The memory for it is not there.
        """
        ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
        layout = [(name, tensor.dtype, tensor.shape) for name, tensor in ordered.items()]
        if layout != self._layout:
            self._lay_out(ordered)
            self._layout = layout
        devices = set()
        for name, tensor in ordered.items():
            on_cuda = tensor.is_cuda
            # Only CUDA copies into pinned memory can be waited for; elsewhere "non-blocking" would be a race.
            self._views[name].copy_(tensor.detach(), non_blocking=on_cuda)
            if on_cuda:
                devices.add(tensor.device)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return self._views

    def _lay_out(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._views, self._layout = {}, []
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        pinned = any(tensor.is_cuda for tensor in tensors.values())
        if size > self._memory.numel() or pinned != self._memory.is_pinned():
            # The old memory goes first: both at once might not fit.
            self._memory = torch.empty(0, dtype=torch.uint8)
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        position = 0
        for name, tensor in tensors.items():
            end = position + tensor.numel() * tensor.element_size()
            self._views[name] = self._memory[position:end].view(tensor.dtype).view(tensor.shape)
            position = end
