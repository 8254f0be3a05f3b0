"""Each rank's random generators and its own extras survive a restart, with as many ranks as before and with others."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("checkpoint_own_state_script.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(root: Path, scenario: str, world_size: int) -> list[dict]:
    meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in range(world_size):
            output = stack.enter_context(open(root / f"output-{scenario}-{world_size}-{rank}.txt", "w"))
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(root), scenario],
                env={**os.environ, **meeting_point, "OMP_NUM_THREADS": "1", "RANK": str(rank)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        exit_codes = [process.wait(timeout=200) for process in processes]
    outputs = [path.read_text() for path in sorted(root.glob(f"output-{scenario}-{world_size}-*.txt"))]
    assert exit_codes == [0] * world_size, "\n".join(outputs)
    return [json.loads((root / f"found-{scenario}-{world_size}-{rank}.json").read_text()) for rank in range(world_size)]


def test_each_rank_goes_on_with_its_own_and_new_ranks_with_numbers_of_their_own(tmp_path):
    saved = run_ranks(tmp_path, "save", 2)

    two = run_ranks(tmp_path, "load", 2)
    three = run_ranks(tmp_path, "load", 3)

    assert [rank["draws"] for rank in two] == [rank["draws"] for rank in saved]
    assert [rank["loader"] for rank in two] == [[0], [0, 1]]
    assert [rank["place"] for rank in two] == ["rank 0", "rank 1"]
    assert [rank["draws"] for rank in three[:2]] == [rank["draws"] for rank in saved]
    assert len({str(rank["draws"]) for rank in three}) == 3
    assert [rank["loader"] for rank in three] == [[], [], []]
    assert [rank["states"] for rank in three] == [[[0], [0, 1]]] * 3
    assert [rank["place"] for rank in three] == [["rank 0", "rank 1"]] * 3
    assert [rank["epoch"] for rank in two + three] == [0] * 5
