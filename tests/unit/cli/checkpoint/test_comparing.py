"""`checkpoint diff` tells whether two checkpoints hold the same, and its exit code says so."""

from __future__ import annotations

import json

import pytest

from production_ml.core.errors import DamagedCheckpointError, ExitCode, InputFileError


def test_a_checkpoint_is_the_same_as_itself_by_each_of_its_names(run, root):
    result = run("diff", root, root / "step-00000300")

    assert result.exit_code == ExitCode.OK
    assert "The same: 7 tensors" in result.stdout  # the random generators' among them


def test_what_differs_is_listed_and_the_exit_code_is_1(run, root):
    result, as_json = run("diff", f"{root}@100", f"{root}@300"), run("diff", f"{root}@100", f"{root}@300", "--json")

    assert result.exit_code == as_json.exit_code == ExitCode.FAILED
    assert "value extra.epoch.value: 1 / 3" in result.stdout
    found = json.loads(as_json.stdout)
    assert found["same"] is False
    [weight] = [item for item in found["tensors"] if item["name"] == "model.weight"]
    assert (weight["kind"], weight["elements"], weight["of"]) == ("values", 4, 4)
    assert weight["greatest"] > 0


def test_a_step_that_is_not_there_is_bad_input(run, root):
    with pytest.raises(InputFileError, match="holds no step 7"):
        run("diff", f"{root}@7", root)


def test_the_one_of_two_that_is_damaged_leads_to_the_next_command(run, root):
    (root / "step-00000300" / "manifest.json").write_text("{}")

    with pytest.raises(DamagedCheckpointError, match=f"checkpoint verify {root} 300\n.*the next one is 200"):
        run("diff", f"{root}@100", root)
