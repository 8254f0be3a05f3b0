"""The systems that meet the faults: ours, and what people use today, each as its documentation says."""

from __future__ import annotations

import importlib
from typing import Final

from .base import Loaded, Saver, System, short

_KINDS: Final = {
    "production_ml": (".ours", "Ours"),
    "torch.save": (".torch_save", "TorchSave"),
    "torch.save+rename": (".torch_save", "TorchSaveRenamed"),
    "dcp": (".dcp", "Dcp"),
    "dcp-threads": (".dcp", "DcpThreads"),
    "dcp-async": (".dcp", "DcpAsync"),
    "lightning": (".lightning_io", "Lightning"),
    "accelerate": (".accelerate_state", "Accelerate"),
}
NAMES: Final = tuple(_KINDS)

__all__ = ["NAMES", "Loaded", "Saver", "System", "short", "system"]


def system(name: str) -> System:
    """The system of that name; its package is imported now, so that forks need not."""
    module, kind = _KINDS[name]
    made: System = getattr(importlib.import_module(module, __package__), kind)()
    return made
