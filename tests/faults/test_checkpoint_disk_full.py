"""A really full disk: saving pauses with one alert, makes the room that policy allows, and loses no checkpoint."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from production_ml.core.structured_logging import Event, subscribe, unsubscribe
from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.manifest import FileEntry, Manifest
from production_ml.fault_tolerance.retention import KeepLast, Pruning
from production_ml.fault_tolerance.saving.disk_pause import DiskPause, Verdict
from production_ml.testing.clock import FakeClock

MIB = 1 << 20
SHARD = "rank-00000.safetensors"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system of 4 MiB, which takes root."""
    mounted: list[Path] = []

    def mount(options: str = "") -> Path:
        path = tmp_path / "disk"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size=4m{options}", "tmpfs", str(path)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("a small file system cannot be mounted here: that takes root")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def events() -> Iterator[list[Event]]:
    seen: list[Event] = []
    receive = seen.append
    subscribe(receive)
    yield seen
    unsubscribe(receive)


class Training:
    """Saves a mebibyte at each step, as the engine does: write, commit, prune; on failure remove first, then ask."""

    def __init__(self, disk: Path, *, keep_last_n: int, told_bytes: int = MIB) -> None:
        self.directory = CheckpointDirectory(disk / "checkpoints")
        self.directory.path.mkdir()
        self.pruning = Pruning(self.directory, [KeepLast(n=keep_last_n)])
        self.clock = FakeClock()
        self.pause = DiskPause(
            self.directory.path, make_room=lambda step: self.pruning.make_room(coming=step), clock=self.clock
        )
        self.told_bytes = told_bytes
        self.saved: list[int] = []

    def step(self, step: int) -> None:
        if not self.pause.admits(step, self.told_bytes):
            return
        while (problem := self._write(step)) is not None:
            verdict = self.pause.failed(problem, step=step, needed_bytes=self.told_bytes)
            if verdict is Verdict.NOT_FULL:
                raise problem
            if verdict is Verdict.PAUSED:
                return
        self.saved.append(step)
        self.pruning.prune(just_committed=step)
        self.pause.succeeded(step)

    def _write(self, step: int) -> OSError | None:
        written = self.directory.incomplete(step, "00ff")
        try:
            lock = self.directory.begin(step, "00ff")
        except OSError as problem:
            return problem
        try:
            (written.path / SHARD).write_bytes(content_of(step))
            self.directory.commit(written, manifest_of(step))
        except OSError as problem:
            self.directory.abandon(written)
            return problem
        finally:
            lock.release()
        return None

    def check_that_nothing_is_torn(self) -> None:
        names = [path.name for path in self.directory.path.iterdir()]
        assert all(name.startswith("step-") for name in names)
        for step in self.directory.steps():
            assert (self.directory.committed(step) / SHARD).read_bytes() == content_of(step)
            assert self.directory.is_whole(step)


def content_of(step: int) -> bytes:
    return step.to_bytes(4, "little") * (MIB // 4)


def manifest_of(step: int) -> Manifest:
    return Manifest(
        step=step,
        save_id="00ff",
        created_at=float(step),
        world_size=1,
        metrics={},
        values={"model": {}, "optimizer": None, "extra": {}},
        files={SHARD: FileEntry(size_bytes=MIB, header_hash="")},
        tensors={},
    )


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return filler


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


def test_a_disk_with_room_for_three_checkpoints_holds_three_for_ever(small_disk, events):
    training = Training(small_disk(), keep_last_n=3)

    for step in range(1, 21):
        training.step(step)

    assert training.saved == list(range(1, 21))
    assert training.directory.steps() == [18, 19, 20]
    assert events == []
    training.check_that_nothing_is_torn()


@pytest.mark.parametrize("told_bytes", [MIB, 1], ids=["seen before the save", "met by the save"])
def test_training_goes_on_beside_a_full_disk_and_saving_goes_on_when_there_is_room(small_disk, events, told_bytes):
    disk = small_disk()
    training = Training(disk, keep_last_n=2, told_bytes=told_bytes)
    for step in range(1, 11):
        training.step(step)
    filler = fill(disk)

    for step in range(11, 101):
        training.step(step)
    kept_meanwhile = training.directory.steps()
    training.check_that_nothing_is_torn()
    filler.unlink()
    training.clock.advance(3600)  # more than the longest wait
    for step in range(101, 111):
        training.step(step)

    assert kept_meanwhile[-1] == training.saved[training.saved.index(101) - 1]
    assert training.directory.steps() == [109, 110]
    assert names(events) == ["checkpoint_paused", "checkpoint_resumed"]
    assert events[0].fields["needed_bytes"] == told_bytes
    assert events[1].fields["skipped_saves"] > 80
    training.check_that_nothing_is_torn()


def test_a_disk_that_takes_no_further_file_pauses_saving_too(small_disk, events):
    disk = small_disk(",nr_inodes=40")
    training = Training(disk, keep_last_n=1)
    training.step(1)
    for number in range(40):
        try:
            (disk / f"file-{number}").touch()
        except OSError:
            break

    training.step(2)

    assert names(events) == ["checkpoint_paused"]
    assert "no inodes are left" in events[0].message
    assert training.directory.steps() == [1]
    training.check_that_nothing_is_torn()


@pytest.fixture
def training_on(small_disk):
    """A real training of a model of 192 KiB, and AdamW's two moments, on a disk of 4 MiB."""
    torch.manual_seed(0)
    model = nn.Linear(256, 192)
    optimizer = torch.optim.AdamW(model.parameters())
    disk = small_disk()

    def train(manager: CheckpointManager, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model(torch.randn(2, 256)).square().mean().backward()
            optimizer.step()
            manager.save(model=model, optimizer=optimizer, step=step)
            manager.wait()

    return disk, model, train


def test_a_manager_survives_a_full_disk_and_saves_again_by_itself(training_on, events):
    disk, model, train = training_on
    with CheckpointManager(disk / "checkpoints", keep_last_n=2, save_best=False) as manager:
        train(manager, range(1, 5))
        filler = fill(disk)
        before = CheckpointDirectory(disk / "checkpoints").steps()

        train(manager, range(5, 15))

        meanwhile = CheckpointDirectory(disk / "checkpoints").steps()
        filler.unlink()
        train(manager, range(15, 18))

    resumed = nn.Linear(256, 192)
    state = CheckpointManager(disk / "checkpoints").load_latest(resumed)
    assert before == [3, 4]
    assert meanwhile[-1] in range(4, 15)
    assert state["step"] == 17
    assert torch.equal(resumed.weight, model.weight)
    assert state.damaged == []
    told = [name for name in names(events) if name in ("checkpoint_paused", "checkpoint_resumed")]
    assert told == ["checkpoint_paused", "checkpoint_resumed"]
