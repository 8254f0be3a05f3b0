"""Lightning's own checkpoint writer and reader, which its Trainer and ModelCheckpoint go through."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ..training import Training
from .base import Loaded
from .torch_save import TorchSave, take_over

# The first save of a process looks for an object store's client: better once than in every fork.
with contextlib.suppress(ImportError):
    import s3fs  # noqa: F401


class Lightning(TorchSave):
    name = "lightning"
    # Its temporary file lies in TMPDIR: from another file system it is copied, and a half copy bears the final name.
    hides_unfinished = False
    suffix = ".ckpt"

    def write(self, state: dict[str, Any], path: Path) -> None:
        """As its Trainer writes."""
        TorchCheckpointIO().save_checkpoint(state, path)

    def load_newest(self, root: Path, training: Training) -> Loaded:
        plugin = TorchCheckpointIO()
        return self.newest_loadable(root, lambda path: take_over(training, plugin.load_checkpoint(path)))
