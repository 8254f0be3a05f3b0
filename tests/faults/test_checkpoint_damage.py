"""Damage done for real (flipped bits, truncation, loss, SIGKILL, full disks) never reaches a model."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from production_ml.core.errors import CheckpointWriteError
from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format import CheckpointDirectory, verify_checkpoint


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


FLIPS = 150
KILLS = 12


def build(value: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """All parameters, and after a step all moments, come from one number."""
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def is_filled_with(model: nn.Module, value: float) -> bool:
    return all(bool((parameter == value).all()) for parameter in model.parameters())


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 and 2, whose parameters are all 1 and 2."""
    root = tmp_path_factory.mktemp("sound")
    with CheckpointManager(root) as manager:
        for step in (1, 2):
            model, optimizer = build(step)
            manager.save(model=model, optimizer=optimizer, step=step, metrics={"loss": 1e-05}, epoch=3)
    return root


@pytest.fixture
def copy_of(sound: Path, tmp_path: Path):
    """A fresh copy of the sound checkpoints for each fault."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(sound, tmp_path / name))

    return copy


def files_of(root: Path, step: int) -> list[Path]:
    return sorted((root / f"step-{step:08d}").iterdir())


def assert_falls_back_to_1(root: Path, damaged_file: Path) -> None:
    model, optimizer = build(9)
    state = CheckpointManager(root).load_latest(model, optimizer)

    assert state["step"] == 1, damaged_file
    assert is_filled_with(model, 1), damaged_file
    assert state["epoch"] == 3
    assert [(damage.step, damage.file) for damage in state.damaged] == [(2, str(damaged_file))]


def test_a_bit_flipped_anywhere_in_any_file_is_noticed_and_the_older_checkpoint_loaded(copy_of, rng: random.Random):
    for number in range(FLIPS):
        root = copy_of(f"flip-{number}")
        path = rng.choice(files_of(root, 2))
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)

        assert [damage.file for damage in verify_checkpoint(CheckpointDirectory(root), 2)] == [str(path)]
        assert_falls_back_to_1(root, path)
        shutil.rmtree(root)


def test_a_file_cut_short_anywhere_is_noticed(copy_of, rng: random.Random):
    for number in range(30):
        root = copy_of(f"cut-{number}")
        path = rng.choice(files_of(root, 2))
        os.truncate(path, rng.randrange(path.stat().st_size))

        assert_falls_back_to_1(root, path)
        shutil.rmtree(root)


def test_a_block_of_zeros_is_noticed(copy_of, rng: random.Random):
    for number in range(30):
        root = copy_of(f"zeros-{number}")
        path = rng.choice(files_of(root, 2))
        data = bytearray(path.read_bytes())
        begin = rng.randrange(len(data) - 64)
        if not any(data[begin : begin + 64]):
            data[begin] = 1
        else:
            data[begin : begin + 64] = bytes(64)
        path.write_bytes(data)

        assert_falls_back_to_1(root, path)
        shutil.rmtree(root)


@pytest.mark.parametrize("name", ["manifest.json", "rank-00000.safetensors"])
def test_a_lost_file_is_noticed(copy_of, name):
    root = copy_of("lost")
    path = root / "step-00000002" / name
    path.unlink()

    assert_falls_back_to_1(root, path)


def test_files_of_another_checkpoint_in_the_place_of_its_own_are_noticed(copy_of):
    for name in ("manifest.json", "rank-00000.safetensors"):
        root = copy_of(f"mixed-{name}")
        path = root / "step-00000002" / name
        shutil.copyfile(root / "step-00000001" / name, path)

        assert_falls_back_to_1(root, path)


# One import of torch serves all rounds: each child is a fork that saves as fast as it can until it is killed.
KILL_SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import psutil
import torch
from torch import nn
from production_ml.fault_tolerance import CheckpointManager

root, rounds, rng = sys.argv[1], int(sys.argv[2]), random.Random(int(sys.argv[3]))

def build(value):
    model = nn.Linear(300, 200)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model

def save_for_ever(told):
    model = build(0)
    manager = CheckpointManager(root, keep_last_n=2)
    step = manager.load_latest(model)["step"]
    while True:
        step += 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
        manager.save(model=model, step=step, metrics={"loss": -step})
        if step % 3 == 0:
            manager.wait()
            os.write(told, b"%d\\n" % step)

for number in range(rounds):
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        save_for_ever(told)
    os.close(told)
    first = os.read(heard, 100)  # it is up and has committed
    time.sleep(rng.uniform(0.0, 0.1))
    [writer] = psutil.Process(child).children()
    node_is_lost = rng.random() < 0.5
    for pid in rng.sample([child, writer.pid], 2) if node_is_lost else [child]:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(child, 0)
    # A writer that outlives its trainer finishes the save under way, and ends.
    writer.wait(timeout=60)
    assert node_is_lost or not list(Path(root).glob(".incomplete-*/rank-*"))
    rest = first
    while piece := os.read(heard, 65536):
        rest += piece
    os.close(heard)
    promised = int(rest.split()[-1])
    model = build(0)
    manager = CheckpointManager(root, keep_last_n=2)
    state = manager.load_latest(model)
    assert state.damaged == [], state.damaged
    assert state["step"] >= promised, (state["step"], promised)
    assert all(bool((p == state["step"]).all()) for p in model.parameters()), state["step"]
    with manager:  # who saves next clears away what the killed one left
        model = build(state["step"] + 1)
        manager.save(model=model, step=state["step"] + 1)
    # A kill before the lock names its holder leaves an empty directory, which only time can tell to be dead.
    strangers = [path for path in Path(root).iterdir() if not path.name.startswith("step-")]
    left = [(str(file), file.stat().st_size) for path in strangers for file in path.iterdir() if file.stat().st_size]
    assert left == [], left
    lost = "node" if node_is_lost else "trainer"
    print(number, lost, "killed after", state["step"], "steps, promised", promised, flush=True)
"""


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint_and_no_litter(tmp_path, rng: random.Random):
    arguments = [str(tmp_path / "checkpoints"), str(KILLS), str(rng.randrange(10**9))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, "-c", KILL_SCRIPT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("killed after") == KILLS


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 1 MiB; None where this user may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        yield None
        return
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@contextlib.contextmanager
def no_room_on(disk: Path) -> Iterator[None]:
    """Within it, the file system is all but full."""
    other = disk / "other"
    other.write_bytes(bytes(700_000))
    try:
        yield
    finally:
        other.unlink()


@contextlib.contextmanager
def no_large_files() -> Iterator[None]:
    """Within it, the kernel takes no large file of this process's writer; to cause that needs no rights."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The session's servers may be children too.
    [writer] = [child for child in psutil.Process().children() if "saving.writer.process" in " ".join(child.cmdline())]
    resource.prlimit(writer.pid, resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(writer.pid, resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_pauses_saving_keeps_the_one_before_and_goes_on_when_there_is_room(small_disk, caplog):
    if small_disk is None:
        pytest.skip("a small file system cannot be mounted here: that takes root")
    root = small_disk / "checkpoints"
    model = nn.Linear(300, 200)
    with CheckpointManager(root, keep_last_n=1, save_best=False) as manager:
        manager.save(model=model, step=1)
        manager.wait()

        with no_room_on(small_disk):
            for step in (2, 3):
                manager.save(model=model, step=step)
                manager.wait()
                assert names_in(root) == ["step-00000001"]
            assert CheckpointManager(root).load_latest(nn.Linear(300, 200))["step"] == 1

        manager.save(model=model, step=4)

    assert names_in(root) == ["step-00000004"]
    assert CheckpointManager(root).load_latest(nn.Linear(300, 200))["step"] == 4
    told = [record for record in caplog.records if getattr(record, "event", "").startswith("checkpoint_pause")]
    assert [record.fields["step"] for record in told] == [2]
    assert "Free disk space" in told[0].getMessage()


def test_a_file_that_the_kernel_takes_no_more_of_fails_the_save_and_keeps_the_one_before(tmp_path):
    root = tmp_path / "checkpoints"
    model = nn.Linear(300, 200)
    manager = CheckpointManager(root, keep_last_n=1, save_best=False)
    manager.save(model=model, step=1)
    manager.wait()

    with no_large_files():
        for step in (2, 3):
            manager.save(model=model, step=step)
            with pytest.raises(CheckpointWriteError, match="File too large") as raised:
                manager.wait()
            assert "Raise the limit" in str(raised.value)
            assert names_in(root) == ["step-00000001"]
        assert CheckpointManager(root).load_latest(nn.Linear(300, 200))["step"] == 1

    manager.save(model=model, step=4)
    manager.close()
    assert names_in(root) == ["step-00000004"]
    assert CheckpointManager(root).load_latest(nn.Linear(300, 200))["step"] == 4


def test_a_file_system_that_became_read_only_fails_the_save_and_still_loads(small_disk, tmp_path):
    root = (small_disk or tmp_path) / "checkpoints"
    model = nn.Linear(3, 2)
    manager = CheckpointManager(root)
    manager.save(model=model, step=1)
    manager.wait()
    if small_disk:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    elif os.geteuid() != 0:
        root.chmod(0o500)
    else:
        pytest.skip("root without the right to mount can write everywhere")

    with pytest.raises(CheckpointWriteError, match=r"Read-only file system|Permission denied"):
        manager.save(model=model, step=2)

    assert CheckpointManager(root).load_latest(model)["step"] == 1
    manager.close()


def test_a_node_lost_while_it_saves_leaves_the_checkpoint_before_it_the_newest(tmp_path, free_port):
    script = Path(__file__).parents[1] / "integration" / "checkpoint_rank_script.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, str(script), "lose-node-mid-save", str(tmp_path)]
    ranks = [
        subprocess.Popen(
            command,
            env={**environment, "MASTER_PORT": str(free_port), "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    with ranks[0], ranks[1]:
        try:
            assert ranks[1].wait(timeout=60) == -signal.SIGKILL
            writers = [int(rank.stdout.readline().removeprefix(b"waiting ")) for rank in ranks if rank.stdout]
            os.kill(writers[1], signal.SIGKILL)
            assert ranks[0].poll() is None  # it waits for a part that never comes, until the launcher ends it
            ranks[0].kill()
            writer = psutil.Process(writers[0])  # would wait half a minute longer; here its node is lost too
            writer.kill()
            writer.wait()
        finally:
            for rank in ranks:
                rank.kill()
    root = tmp_path / "fsdp"
    assert [name for name in names_in(root) if name.startswith(".incomplete-step-00000002")]

    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    state = CheckpointManager(root).load_latest(model, torch.optim.AdamW(model.parameters(), lr=0.1))

    assert state["step"] == 1
    assert state.damaged == []
    with CheckpointManager(root) as manager:
        manager.save(model=model, step=2)
    assert names_in(root) == ["step-00000001", "step-00000002"]
    assert json.loads((root / "step-00000001" / "manifest.json").read_text())["world_size"] == 2


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
