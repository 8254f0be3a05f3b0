"""Real ranks, each with its own clock, follow one schedule; what fails on rank 0 is told to all."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

_SCRIPT = """
    import json, sys, time
    from datetime import timedelta
    import torch.distributed as dist
    from production_ml.core.errors import CheckpointError
    from production_ml.fault_tolerance.save_schedule import AutoInterval, SaveSchedule

    rank, store = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    seen = {"saved": [], "agreed": 0}

    from production_ml.fault_tolerance.save_schedule.schedule import leader_decides

    def counted(propose):
        seen["agreed"] += 1
        return leader_decides(propose)

    quick = timedelta(seconds=0.05)
    schedule = SaveSchedule(AutoInterval(first_after=quick, shortest=quick, longest=quick), agree=counted)
    for step in range(1, 2001):
        time.sleep(0.0002 * (1 + rank))
        if schedule.is_due(step):
            seen["saved"].append(step)
            schedule.saved(step, stall_seconds=0.0)
            schedule.written()

    def fail():
        raise RuntimeError("no clock")
    try:
        leader_decides(fail)
    except (RuntimeError, CheckpointError) as error:
        seen["error"] = [type(error).__name__, str(error)]
    print(json.dumps(seen), flush=True)
    dist.barrier()
    dist.destroy_process_group()
"""


def run_ranks(store: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", textwrap.dedent(_SCRIPT)]
    ranks = [subprocess.Popen([*command, str(rank), str(store)], stdout=subprocess.PIPE) for rank in range(2)]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [json.loads(output) for output in outputs]


def test_ranks_save_at_the_same_steps_by_rank_0s_clock_and_hear_of_its_problems(tmp_path):
    first, second = run_ranks(tmp_path / "store")

    assert first["saved"] == second["saved"]
    assert len(first["saved"]) >= 3
    assert first["agreed"] == second["agreed"]
    assert first["error"] == ["RuntimeError", "no clock"]
    assert second["error"][0] == "CheckpointError"
    assert "Rank 0 cannot tell when to save: RuntimeError('no clock')" in second["error"][1]
