"""Whole demos, each with a random worker killed at a random step: every one has to resume and finish.

The number of demos is PRODUCTION_ML_DEMO_RUNS, 3 by default; `make demo-kills` runs 20.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

RUNS = int(os.environ.get("PRODUCTION_ML_DEMO_RUNS", "3"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("run", range(RUNS))
def test_a_demo_survives_a_kill_at_a_random_step(run, rng, tmp_path):
    seed = rng.randrange(10**6)
    command = [sys.executable, "-m", "production_ml.cli.main", "demo", "--seed", str(seed), "--json"]

    done = subprocess.run([*command, "--dir", str(tmp_path / "demo")], capture_output=True, text=True, check=False)

    assert done.returncode == 0, f"seed {seed}:\n{done.stderr}"
    figures = json.loads(done.stdout)["figures"]
    assert figures["resumed_from_step"] > 0
    print(
        f"demo seed {seed}: rank {figures['killed_rank']} killed after step {figures['killed_after_step']}, "
        f"resumed from {figures['resumed_from_step']}, {figures['steps_redone']} steps redone, "
        f"{figures['down_seconds']:.2f} s down"
    )
