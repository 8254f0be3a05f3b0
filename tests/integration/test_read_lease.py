"""Processes that read checkpoints beside a training that prunes: none loses a file that it reads, and none blocks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from production_ml.fault_tolerance import CheckpointManager
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.retention import KeepLast, Pruning

_READER = """
    import json, sys
    from pathlib import Path
    from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
    from production_ml.fault_tolerance.checkpoint_format.read_lease import read_lease
    from production_ml.fault_tolerance.checkpoint_format.verification import verify_checkpoint

    directory = CheckpointDirectory(Path(sys.argv[1]))
"""
_ONE_STEP = """
    with read_lease(directory.committed(int(sys.argv[2]))) as is_held:
        print(is_held, flush=True)
        sys.stdin.readline()
"""
_OLDEST_UNTIL_TOLD = """
    import select
    print("ready", flush=True)
    seen = {"leased": 0, "lost": 0, "gone": 0}
    while not select.select([sys.stdin], [], [], 0)[0]:
        for step in directory.steps()[:1]:
            with read_lease(directory.committed(step)) as is_held:
                damage = list(verify_checkpoint(directory, step)) if is_held else []
            seen["leased" if is_held else "gone"] += 1
            seen["lost"] += bool(damage)
    print(json.dumps(seen), flush=True)
"""
Reader = subprocess.Popen[str]


@pytest.fixture
def start_reader(tmp_path: Path) -> Iterator[Callable[..., Reader]]:
    readers: list[Reader] = []

    def start(script: str, *arguments: str) -> Reader:
        code = textwrap.dedent(_READER) + textwrap.dedent(script)
        command = [sys.executable, "-c", code, str(tmp_path), *arguments]
        readers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return readers[-1]

    yield start
    for reader in readers:
        reader.kill()
        reader.communicate()


def save(manager: CheckpointManager, model: nn.Module, steps: range) -> None:
    for step in steps:
        manager.save(model=model, step=step)
    manager.wait()


def test_what_another_process_reads_stays_until_it_has_read_it_or_is_killed(tmp_path, start_reader):
    with CheckpointManager(tmp_path, keep_last_n=5, save_best=False) as manager:
        save(manager, nn.Linear(2, 2), range(1, 5))
    first, second = start_reader(_ONE_STEP, "1"), start_reader(_ONE_STEP, "2")
    assert [first.stdout.readline(), second.stdout.readline()] == ["True\n", "True\n"]
    directory = CheckpointDirectory(tmp_path)
    pruning = Pruning(directory, [KeepLast(n=1)])

    assert pruning.explain()[1] == ["being read"]
    assert pruning.prune(just_committed=4) == [3]
    first.communicate("done\n")
    assert pruning.prune(just_committed=4) == [1]
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert pruning.prune(just_committed=4) == [2]
    assert directory.steps() == [4]


def test_no_reader_beside_a_pruning_training_loses_a_file_that_it_leased(tmp_path, start_reader):
    model = nn.Linear(64, 64)
    manager = CheckpointManager(tmp_path, keep_last_n=2, save_best=False)
    save(manager, model, range(1, 3))
    readers = [start_reader(_OLDEST_UNTIL_TOLD) for _ in range(2)]
    assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * 2

    with torch.no_grad(), manager:
        save(manager, model, range(3, 153))

    seen = [json.loads(reader.communicate("stop\n")[0]) for reader in readers]
    print(f"what the readers saw: {seen}")
    assert [each["lost"] for each in seen] == [0, 0]
    assert all(each["leased"] > 10 for each in seen)
    assert max(CheckpointDirectory(tmp_path).steps()) == 152
