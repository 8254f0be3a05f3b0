"""The demo's kill is random but fair, and its check of the recovery can fail."""

from __future__ import annotations

import random
from dataclasses import replace

from production_ml.demo.story import CHAMPION_PLAN
from production_ml.demo.training import WORKERS, Kill
from production_ml.demo.workspace import Workspace


def test_a_kill_comes_after_checkpoints_and_before_the_end():
    plan = CHAMPION_PLAN
    kills = [Kill.choose(plan, random.Random(seed)) for seed in range(500)]

    assert {kill.rank for kill in kills} == set(range(WORKERS))
    assert min(kill.step for kill in kills) >= 3 * plan.checkpoint_every
    assert max(kill.step for kill in kills) < plan.steps - plan.checkpoint_every
    assert len({kill.step for kill in kills}) > 100


def test_the_same_seed_is_the_same_kill():
    assert Kill.choose(CHAMPION_PLAN, random.Random(7)) == Kill.choose(CHAMPION_PLAN, random.Random(7))


def test_a_plan_becomes_a_launch_of_the_example(tmp_path):
    workspace = Workspace(tmp_path, "now")

    command = replace(CHAMPION_PLAN, steps=5).command(workspace)

    assert command[command.index("--steps") + 1] == "5"
    assert f"--nproc-per-node={WORKERS}" in command
    assert command[command.index("--run-dir") + 1] == str(tmp_path / "runs" / "now" / "champion")
