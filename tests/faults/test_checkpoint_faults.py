"""A sample of the checkpoint faults: none is silent, none costs a good checkpoint. All: `make checkpoint-faults`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

SAMPLE = 60
GOOD = {"survived", "detected"}


def outcomes_of(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    """The harness forks for each fault, so it gets a process that has no threads yet."""
    report = tmp_path / "faults.json"
    command = [sys.executable, "-m", "checkpoint_harness", "--work", str(tmp_path), "--json", str(report), *options]
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    print(done.stdout, done.stderr[-3000:])
    assert report.exists()
    results: list[dict[str, Any]] = json.loads(report.read_text())["results"]
    return results


def test_no_fault_of_a_sample_is_silent_or_costs_a_good_checkpoint(tmp_path: Path, rng: random.Random):
    options = ["--faults", str(SAMPLE), "--seed", str(rng.randrange(10**9))]

    results = outcomes_of(tmp_path, *options)

    assert len(results) >= SAMPLE - 5
    assert [result for result in results if result["outcome"] not in GOOD] == []


def test_a_checkpoint_whose_name_was_changed_is_reported(tmp_path: Path):
    results = outcomes_of(tmp_path, "--faults", "600", "--seed", "1", "--kinds", "checkpoint renamed")

    assert [result for result in results if result["outcome"] not in GOOD] == []


def test_the_judge_sees_a_wrong_load_where_nothing_is_verified(tmp_path: Path):
    options = ["--systems", "torch.save", "--faults", "60", "--seed", "1", "--kinds", "bit flipped"]

    results = outcomes_of(tmp_path, *options)

    assert "silent wrong" in {result["outcome"] for result in results}


def test_the_judge_sees_a_good_checkpoint_lost_where_it_is_written_over_in_place(tmp_path: Path):
    options = ["--systems", "torch.save", "--faults", "60", "--seed", "1", "--kinds", "SIGKILL while replacing"]

    results = outcomes_of(tmp_path, *options)

    assert "lost good" in {result["outcome"] for result in results}
