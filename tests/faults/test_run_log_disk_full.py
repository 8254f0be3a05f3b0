"""A full disk costs training nothing: one warning, and every record once there is room again."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from production_ml.core.structured_logging import log_event
from production_ml.monitoring import RunLog, TrainingMonitor

STEPS = 3000


class Disk(Protocol):
    """A place that a test can fill and free."""

    path: Path

    def fill(self) -> None: ...

    def free(self) -> None: ...


class SmallFilesystem:
    """A tmpfs of 256 KiB; to mount one takes root."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        with (self.path / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(512)):
                    pass
            except OSError:
                pass

    def free(self) -> None:
        (self.path / "filler").unlink()


class LimitedFiles:
    """No file of this process may grow, which is as near to a full disk as an ordinary user gets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        yield SmallFilesystem(path)
        subprocess.run(["umount", "--lazy", str(path)], check=True)
    else:
        limited = LimitedFiles(path)
        yield limited
        limited.free()


def steps(run_dir: Path) -> list[int]:
    log = RunLog.open(run_dir)
    assert list(log.damages) == []
    return [record.step for _, record in log.metrics()]


def test_training_goes_on_with_one_warning_and_nothing_is_lost_when_room_comes_back(disk, caplog):
    run_dir = disk.path / "run"
    with TrainingMonitor("shop", "exp-001", None, run_dir=run_dir) as monitor:
        for step in range(10):
            monitor.log({"train/loss": 1.0}, step=step)
        disk.fill()
        for step in range(10, STEPS):
            monitor.log({"train/loss": 1.0}, step=step)
            if step % 100 == 0:
                log_event(logging.getLogger("production_ml.checkpoints"), "checkpoint_save_failed", "disk full")
        in_log_meanwhile = steps(run_dir)
        disk.free()
        monitor.log({"train/loss": 1.0}, step=STEPS)

    assert len(in_log_meanwhile) < STEPS
    assert steps(run_dir) == list(range(STEPS + 1))
    assert len(list(RunLog.open(run_dir).events("checkpoint_save_failed"))) == (STEPS - 10) // 100
    warnings = [message for message in caplog.messages if message != "disk full"]
    assert len(warnings) == 3
    assert "cannot be written" in warnings[0]
    assert "none is lost" in warnings[1]
    assert re.search(
        r"rank-00000\.jsonl: \d+ lines found no room", warnings[2]
    )  # the structured log keeps nothing in memory


def test_a_disk_that_stays_full_does_not_fail_the_end_of_training(disk, caplog):
    monitor = TrainingMonitor("shop", "exp-001", None, run_dir=disk.path / "run")
    disk.fill()
    for step in range(STEPS):
        monitor.log({"train/loss": 1.0}, step=step)
    monitor.close()

    kept = steps(disk.path / "run")
    assert kept == list(range(len(kept)))
    assert any("never found room on the disk" in message for message in caplog.messages)


def test_a_worker_that_is_restarted_while_the_disk_is_full_trains_too(disk, monkeypatch):
    run_dir = disk.path / "run"
    TrainingMonitor("shop", "exp-001", None, run_dir=run_dir).close()
    monkeypatch.setenv("PRODUCTION_ML_ATTEMPT", "1")
    disk.fill()
    monitor = TrainingMonitor("shop", "exp-001", 0, run_dir=run_dir)
    monitor.log({"train/loss": 1.0}, step=7)
    disk.free()
    monitor.close()

    assert steps(run_dir) == [7]
    assert [source.attempt for source, _ in RunLog.open(run_dir).events("run_restarted")] == [1]


def test_the_structured_log_has_no_half_line_in_the_way_of_the_next(disk):
    monitor = TrainingMonitor("shop", "exp-001", None, run_dir=disk.path / "run")
    disk.fill()
    for number in range(200):
        log_event(logging.getLogger("production_ml.checkpoints"), "checkpoint_saved", number=number)
    disk.free()
    log_event(logging.getLogger("production_ml.checkpoints"), "checkpoint_saved", number=200)
    monitor.close()

    lines = (disk.path / "run" / "logs" / "rank-00000.jsonl").read_text().splitlines()
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    assert len(whole) >= len(lines) - 1
    assert [line["event"] for line in whole[-2:]] == ["checkpoint_saved", "monitor_closed"]
    assert whole[-2]["number"] == 200
