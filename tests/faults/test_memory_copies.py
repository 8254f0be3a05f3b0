"""Copies in memory under real faults: killed workers, killed keepers, flipped bits, and launches that are killed."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).with_name("memory_copies_script.py")
KILLS = int(os.environ.get("PRODUCTION_ML_TEST_KILLS", "4"))
LONG = 100.0
LINE = re.compile(r"attempt (\d+) rank (\d+) (.*)")


@dataclass
class Attempt:
    """What one attempt's rank 0 printed."""

    resumed: int = -1
    source: str = "nothing"
    damaged: int = 0
    last_save: int = 0


@dataclass
class Job:
    """A launched training, as its output tells of it."""

    process: subprocess.Popen[str]
    runtime: Path
    pids: dict[int, int] = field(default_factory=dict)
    """By rank, of the newest attempt."""
    attempts: dict[int, Attempt] = field(default_factory=dict)
    weights: str = ""

    def read_until(self, wanted: Callable[[int, int, str], bool]) -> None:
        """Read what it prints up to a line (attempt, rank, text) that is wanted, or all of it."""
        for line in self.process.stdout:
            found = LINE.search(line)
            if found and wanted(*self._note(int(found[1]), int(found[2]), found[3])):
                return

    def read_all(self) -> str:
        """The exit code, and what went to stderr."""
        self.read_until(lambda *_: False)
        return self.process.communicate(timeout=LONG)[1]

    def keepers(self) -> list[int]:
        """The pids of the keepers that can be found."""
        return sorted(int(path.name.split("-")[0]) for path in self.runtime.glob("production-ml/*/*.sock"))

    def _note(self, number: int, rank: int, text: str) -> tuple[int, int, str]:
        attempt = self.attempts.setdefault(number, Attempt())
        kind, _, rest = text.partition(" ")
        if kind == "pid":
            self.pids[rank] = int(rest.split()[0])
            attempt.resumed, attempt.damaged = int(rest.split()[2]), int(rest.split()[4])
        elif kind == "saving":
            attempt.last_save = max(attempt.last_save, int(rest))
        elif kind == "source":
            attempt.source = rest
        elif kind == "weights":
            self.weights = rest
        return number, rank, text


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Start a training under the launcher, in `tmp_path`."""
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    with contextlib.ExitStack() as stack:

        def start(*arguments: object, ranks: int = 2, restarts: int = 1) -> Job:
            flags = [f"--nproc-per-node={ranks}", f"--max-restarts={restarts}", "--run-dir=run"]
            command = [sys.executable, "-m", "production_ml.cli.main", "launch", *flags, str(SCRIPT)]
            environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                [*command, *map(str, arguments)],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return Job(process, runtime)

        yield start


@pytest.fixture
def undisturbed(launch: Callable[..., Job], tmp_path: Path) -> Callable[[int], str]:
    """The weights of a training of that many steps whose workers nobody kills."""

    def train(steps: int) -> str:
        job = launch(steps, 0.0)
        complaints = job.read_all()
        assert job.process.returncode == 0, complaints
        for path in (tmp_path / "checkpoints", tmp_path / "run"):
            path.rename(path.with_name(f"{path.name}-undisturbed"))
        return job.weights

    return train


def wait_until(is_true: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it came true; for what no descriptor tells of."""
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def has_ended(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_killed_workers_lose_one_step_at_most_and_compute_the_same(launch, undisturbed, rng):
    steps = 30 + 12 * KILLS
    expected = undisturbed(steps)
    job = launch(steps, 0.01, ranks=2, restarts=KILLS)
    most_keepers = 0

    for kill in range(KILLS):
        saves_until_kill, victim = rng.randrange(2, 12), rng.randrange(2)
        job.read_until(lambda number, rank, text, n=kill: (number, text[:3]) == (n, "pid") and len(job.pids) == 2)
        last = job.attempts[kill].resumed + saves_until_kill
        job.read_until(lambda number, _, text, n=kill, last=last: (number, text) == (n, f"saving {last}"))
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(job.pids[victim], signal.SIGKILL)
        most_keepers = max(most_keepers, len(job.keepers()))
        job.pids.clear()
    complaints = job.read_all()

    assert job.process.returncode == 0, complaints
    assert job.weights == expected
    for before, after in zip(range(KILLS), range(1, KILLS + 1), strict=True):
        was, resumed = job.attempts[before], job.attempts[after]
        print(f"saving {was.last_save}, resumed {resumed.resumed} from {resumed.source}")
        assert was.last_save - resumed.resumed <= 1
        assert (resumed.source, resumed.damaged) == ("memory", 0)
    assert most_keepers <= 4
    assert wait_until(lambda: not list((job.runtime / "production-ml").iterdir()))


def test_where_a_keeper_is_killed_too_the_disk_is_the_last_resort(launch):
    job = launch(40, 0.01)
    job.read_until(lambda _, rank, text: (rank, text) == (0, "saving 18"))
    keepers = job.keepers()
    victim = job.pids[1]

    os.kill(keepers[-1], signal.SIGKILL)
    os.kill(victim, signal.SIGKILL)
    complaints = job.read_all()

    assert len(keepers) == 2
    assert job.process.returncode == 0, complaints
    assert (job.attempts[1].resumed, job.attempts[1].source) == (10, "disk")
    assert wait_until(lambda: not list((job.runtime / "production-ml").iterdir()))


def test_a_flipped_bit_in_memory_is_never_loaded(launch, undisturbed, rng):
    expected = undisturbed(40)
    job = launch(40, 0.01, 1)
    job.read_until(lambda _, rank, text: (rank, text) == (0, "saving 15"))
    # Both workers at once, before the launcher can start the next.
    os.kill(job.process.pid, signal.SIGSTOP)
    for pid in job.pids.values():
        os.kill(pid, signal.SIGKILL)
    assert all(wait_until(lambda pid=pid: has_ended(pid)) for pid in job.pids.values())

    for image in images_of(rng.choice(job.keepers())):
        flip_random_bit(image, rng)
    os.kill(job.process.pid, signal.SIGCONT)
    complaints = job.read_all()

    assert job.process.returncode == 0, complaints
    assert job.attempts[1].damaged >= 1
    assert (job.attempts[1].resumed, job.attempts[1].source) == (10, "disk")
    assert "is passed over" in complaints
    assert job.weights == expected


def test_a_launch_that_is_killed_leaves_no_process_and_no_file(launch):
    job = launch(10_000, 0.01)
    job.read_until(lambda _, rank, text: (rank, text) == (0, "saving 12"))
    left = [*job.pids.values(), *job.keepers()]

    job.process.kill()

    assert len(left) == 4
    assert wait_until(lambda: all(has_ended(pid) for pid in left))
    assert wait_until(lambda: not list((job.runtime / "production-ml").iterdir()))


def images_of(pid: int) -> list[Path]:
    """The images that a keeper holds."""
    descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    return [path for path in descriptors if "memfd:checkpoint-image" in str(path.readlink())]


def flip_random_bit(image: Path, rng) -> None:
    """In the tensors, which begin after the page of the header and are nearly all of it."""
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        begin = 8 + int.from_bytes(memory[:8], "little")
        end = begin + SHARD_DATA_BYTES
        memory[rng.randrange(begin, end)] ^= 1 << rng.randrange(8)


SHARD_DATA_BYTES = 4 * (64 * 257 + 257 + 257 * 16 + 16) // 2 * 3 // 2
"""Half of the shard of one of two ranks and a bit, for the sizes do not halve evenly."""
