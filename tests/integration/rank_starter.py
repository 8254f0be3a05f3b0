"""Starts ranks as forks of one process that has imported everything once: `rank_starter.py SCRIPT DIRECTORY ROUND …`.

A round is a JSON list: the number of ranks, then the arguments of the script's `main(directory, *arguments)`. They
come one after the other. Where a rank fails, the others of its round are ended, and what all of them printed is shown.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import ModuleType

PR_SET_PDEATHSIG = 1


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_rank(script: ModuleType, directory: Path, output: Path, rank: int, arguments: list[str]) -> None:
    """All of a rank's life, in a fork."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it does not outlive the process that started it
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    status = 1
    try:
        script.main(directory, *arguments)
        status = 0
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # DeepSpeed's threads may abort a process that ends in the usual way


def run_round(script: ModuleType, directory: Path, number: int, world_size: int, arguments: list[str]) -> None:
    meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    os.environ.update(meeting_point, LOCAL_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size))
    outputs = [directory / f"output-{number}-{rank}.txt" for rank in range(world_size)]
    ranks: dict[int, int] = {}
    for rank, output in enumerate(outputs):
        pid = os.fork()
        if pid == 0:
            run_rank(script, directory, output, rank, arguments)
        ranks[pid] = rank
    failed = []
    while ranks:
        pid, status = os.wait()
        rank = ranks.pop(pid)
        if status != 0 and not failed:
            failed.append(rank)
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    if failed:
        printed = "\n".join(f"--- rank {rank}\n{path.read_text()}" for rank, path in enumerate(outputs))
        sys.exit(f"round {number} of {world_size} ranks: rank {failed[0]} failed first\n{printed}")


def main() -> None:
    script, directory = load(Path(sys.argv[1])), Path(sys.argv[2])
    script.preload()
    gc.freeze()  # or each collection in each rank looks through all that was imported, and copies its pages
    for number, told in enumerate(sys.argv[3:]):
        world_size, *arguments = json.loads(told)
        run_round(script, directory, number, world_size, arguments)


if __name__ == "__main__":
    main()
