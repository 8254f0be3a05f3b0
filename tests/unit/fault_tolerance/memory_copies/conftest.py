"""What the tests of copies in memory share: a copy of a small shard, as a keeper makes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.memory_copies.kept import KeptCopy
from production_ml.fault_tolerance.memory_copies.meeting_place import MeetingPlace
from production_ml.fault_tolerance.memory_copies.record import CopyRecord
from production_ml.fault_tolerance.saving.commit import complete_part
from production_ml.fault_tolerance.saving.image import ShardImage
from production_ml.fault_tolerance.saving.order import Holding, SaveOrder, ShardContents

ROWS = 1000


def make_copy(step: int = 1, *, rank: int = 0, world_size: int = 1, save_id: str = "", **kept: Any) -> KeptCopy:
    """A copy of one rank's rows of a tensor of 1,000 rows and one column per rank."""
    held = Holding("x", "x", "F32", (ROWS, world_size), (0, rank), (ROWS, 1))
    contents = ShardContents.of((held,))
    image = ShardImage()
    image.resize(contents.layout.size_bytes)
    image.data[contents.layout.extents["x"].begin] = step % 256
    order = SaveOrder(
        directory=CheckpointDirectory(Path("/nowhere")),
        step=step,
        save_id=save_id or f"{step:04x}",
        rank=rank,
        world_size=world_size,
        metrics={"loss": 0.5},
        values={"model": {}, "optimizer": None, "extra": {}},
        rank_values=None,
        contents=contents,
        on_disk=False,
    )
    record = CopyRecord(
        step=step,
        save_id=order.save_id,
        rank=rank,
        world_size=world_size,
        created_at=1000.0 + step,
        metrics=order.metrics,
        values=order.values,
        part=complete_part(order, image.data),
    )
    descriptor = os.dup(image.descriptor)
    image.close()
    return KeptCopy.of(record, descriptor, **kept)


@pytest.fixture
def copy_of() -> Callable[..., KeptCopy]:
    """A copy of a step, by rank, world size and save."""
    return make_copy


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MeetingPlace:
    """A meeting place in a runtime directory of the test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return MeetingPlace.of(str(tmp_path / "checkpoints"))
