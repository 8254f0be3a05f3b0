"""The benchmarks run from end to end at a tiny size, and name everything that they promise to compare."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FLOORS = {
    "save": {"raw write+fsync, buffered", "raw write+fsync, O_DIRECT"},
    "load-warm": {"memcpy, 1 thread", "memcpy, all threads"},
    "load-fresh": {"memcpy, 1 thread", "memcpy to fresh memory"},
    "load-cold": {"raw read, buffered", "raw read, O_DIRECT"},
    "stall": {"memcpy, 1 thread"},
    "overhead-cpu-1": {"no saves"},
    "memory": set(),
    "planning-100": {"DCP's planner"},
    "growth-save": {"2 ranks, FSDP2, 12 tensors: raw write+fsync", "2 ranks, DDP, 12 tensors: DCP"},
    "growth-load": {"2 ranks, FSDP2, 12 tensors: memcpy"},
    "growth-plan": {"2 ranks, DDP, 12 tensors"},
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "checkpoint.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(600)
def test_the_checkpoint_benchmark_compares_us_with_floors_and_peers_in_every_table(tmp_path):
    results, document = tmp_path / "results.json", tmp_path / "document.md"
    document.write_text("What stays.\n<!-- What stands below is written by `make bench-checkpoint`. -->\nold tables\n")

    done = run("--quick", "--json", str(results), "--markdown", str(document))

    assert done.returncode == 0, done.stderr
    sections = {section["name"]: section for section in json.loads(results.read_text())["sections"]}
    assert sections.keys() >= FLOORS.keys()
    for name, floors in FLOORS.items():
        rows = {row["name"]: row for row in sections[name]["rows"]}
        assert rows.keys() >= floors, name
        # The table of save() by ranks is ours alone.
        assert name == "growth-plan" or any("production_ml" in row for row in rows), name
        assert all(row["min"] <= row["median"] <= row["max"] for row in rows.values()), name
    written = document.read_text()
    assert written.startswith("What stays.\n")
    assert "old tables" not in written
    assert set(re.findall(r"^### (.+?):", written, flags=re.MULTILINE)) >= {"Durable save", "Cold load"}
    # Not a word about how fast: a tiny state on a busy machine says nothing.
    assert "at least 95%" in written


def test_a_part_that_does_not_exist_is_refused_by_name():
    done = run("--quick", "speed")

    assert done.returncode == 2
    assert "'speed'" in done.stderr
    assert "disk" in done.stderr
