"""The writer finishes what a dead trainer began, and does not outlive it for longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.verification import verify_checkpoint
from production_ml.fault_tolerance.saving.commit import carry_out
from production_ml.fault_tolerance.saving.order import SaveOrder, ShardContents
from production_ml.fault_tolerance.saving.patience import Patience

# A trainer that is killed when its writer has the order: it waits for rank 1 then. No torch, so that it starts at once.
TRAINER = """
import os, signal, sys, threading
from pathlib import Path
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.saving.image import ShardImage
from production_ml.fault_tolerance.saving.order import Holding, SaveOrder, ShardContents
from production_ml.fault_tolerance.saving.writer.client import Writer

contents = ShardContents.of((Holding("x", "x", "F32", (4,), (0,), (4,)),))
image, writer = ShardImage(), Writer()
image.resize(contents.layout.size_bytes)
order = SaveOrder(directory=CheckpointDirectory(Path(sys.argv[1])), step=1, save_id="00ff", rank=0, world_size=2,
                  metrics={}, values={"model": {}, "optimizer": None, "extra": {}}, rank_values=None, contents=contents)
if "idle" in sys.argv:
    writer.prepare(image)
else:
    lock = order.directory.begin(1, "00ff")
    threading.Thread(target=writer.write, args=(order, image, lock)).start()
    while lock.descriptor is not None:
        pass
fork = os.fork() if "forks" in sys.argv else 0
if "forks" in sys.argv and not fork:
    signal.pause()
print(writer._process.pid, fork, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def directory(tmp_path: Path) -> CheckpointDirectory:
    return CheckpointDirectory(tmp_path / "checkpoints")


def write_share_of_rank_1(directory: CheckpointDirectory) -> None:
    """It has no tensors, and returns when rank 0 has committed."""
    order = SaveOrder(
        directory=directory,
        step=1,
        save_id="00ff",
        rank=1,
        world_size=2,
        metrics={},
        values=None,
        rank_values=None,
        contents=ShardContents.of(()),
    )
    carry_out(order, memoryview(b""), Patience())


@pytest.fixture
def killed_trainer(directory) -> Iterator[Callable[..., psutil.Process]]:
    """Start a trainer that is killed; gives its writer."""
    forks: list[int] = []

    def run(*options: str) -> psutil.Process:
        command = [sys.executable, "-c", TRAINER, str(directory.path), *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as trainer:
            writer, fork = map(int, trainer.stdout.readline().split())
            assert trainer.wait() == -signal.SIGKILL
        forks.extend([fork] if fork else [])
        return psutil.Process(writer)

    yield run
    for fork in forks:
        os.kill(fork, signal.SIGKILL)


@pytest.mark.parametrize("options", [(), ("forks",)], ids=["alone", "a fork holds the channel"])
def test_a_save_whose_trainer_is_killed_is_committed_and_then_the_writer_ends(directory, killed_trainer, options):
    writer = killed_trainer(*options)
    assert directory.steps() == []

    write_share_of_rank_1(directory)

    assert directory.steps() == [1]
    assert list(verify_checkpoint(directory, 1)) == []
    writer.wait(timeout=20)
    assert [path.name for path in directory.path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("options", [("idle",), ("idle", "forks")], ids=["alone", "a fork holds the channel"])
def test_a_writer_with_nothing_to_do_ends_with_its_trainer(killed_trainer, options):
    try:
        killed_trainer(*options).wait(timeout=20)
    except psutil.NoSuchProcess:
        return  # it has ended already


def test_a_script_that_ends_without_close_has_its_checkpoint_and_is_warned_of_nothing(directory):
    script = """
import sys
from torch import nn
from production_ml.fault_tolerance import CheckpointManager

manager = CheckpointManager(sys.argv[1], save_best=False)
manager.save(model=nn.Linear(3, 3), step=1)
"""
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", script, str(directory.path)]

    ran = subprocess.run(command, capture_output=True, text=True, check=True)

    assert directory.steps() == [1]
    assert ran.stderr == ""


def test_a_trainer_with_thousands_of_open_files_saves_like_any_other(directory):
    script = """
import os, resource, sys
from torch import nn
from production_ml.fault_tolerance import CheckpointManager

_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (2000, most))
opened = [open("/dev/null") for _ in range(1500)]
with CheckpointManager(sys.argv[1], save_best=False) as manager:
    manager.save(model=nn.Linear(3, 3), step=1)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(directory.path)], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert directory.steps() == [1]
