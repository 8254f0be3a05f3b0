"""A save holds the moment it was called at, however the training goes on. All: `make checkpoint-tearing`.

The number of saves, over all ways to train, is PRODUCTION_ML_CHECKPOINT_SAVES.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SAVES = int(os.environ.get("PRODUCTION_ML_CHECKPOINT_SAVES", "60"))


def saves_of(tmp_path: Path, *options: str) -> dict[str, dict[str, Any]]:
    """What came of each way to train; in a process of its own, whose ranks are forks of it."""
    report = tmp_path / "tearing.json"
    command = [sys.executable, "-m", "checkpoint_tearing", "--json", str(report), *options]
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    print(done.stdout, done.stderr[-3000:])
    assert report.exists()
    found: dict[str, dict[str, Any]] = json.loads(report.read_text())
    return found


def torn(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: way["torn"] for name, way in found.items() if way["torn"]}


def test_no_save_is_torn_by_a_training_that_goes_on(tmp_path: Path):
    found = saves_of(tmp_path, "--saves", str(SAVES))

    assert torn(found) == {}
    assert sum(way["saves"] for way in found.values()) >= SAVES
    assert sum(way["overlapped"] for way in found.values()) > 0  # else nothing was put to the test


def test_no_save_of_two_ranks_is_torn_by_a_training_that_goes_on(tmp_path: Path):
    found = saves_of(tmp_path, "--saves", str(SAVES // 2), "--ranks", "2")

    assert torn(found) == {}
    assert sum(way["overlapped"] for way in found.values()) > 0


def test_a_save_that_copies_too_late_is_found_torn_in_every_way_to_train(tmp_path: Path):
    found = saves_of(tmp_path, "--saves", "14", "--late")

    assert {name for name, way in found.items() if len(way["torn"]) == way["saves"]} == set(found)
