"""`checkpoint verify` names damage by file and tensor, and its exit code can be trusted."""

from __future__ import annotations

import json

import pytest

from production_ml.core.errors import ExitCode, InputFileError


def test_sound_checkpoints_are_told_so(run, root):
    result = run("verify", root)

    assert result.exit_code == ExitCode.OK
    assert result.stdout.splitlines() == ["step 100: sound", "step 200: sound", "step 300: sound"]


def test_damage_is_named_by_file_and_tensor_and_ends_with_its_own_exit_code(run, root, shard, damage):
    damage(root, 200)

    result, as_json = run("verify", root), run("verify", root, "--json")

    assert result.exit_code == as_json.exit_code == ExitCode.DAMAGED
    assert "step 200: DAMAGED" in result.stdout
    [found] = json.loads(as_json.stdout)[1]["damage"]
    assert found["file"] == str(shard(root, 200))
    assert f"{found['file']}: tensor {found['tensor']!r} does not match its hash" in result.stdout


def test_one_step_is_checked_alone(run, root, damage):
    damage(root, 200)

    assert run("verify", root, 300).exit_code == ExitCode.OK
    assert run("verify", root, 200).exit_code == ExitCode.DAMAGED


def test_a_check_of_nothing_does_not_pass(run, root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputFileError, match="holds no checkpoints"):
        run("verify", tmp_path / "empty")
    with pytest.raises(InputFileError, match="holds no step 7\nIt holds 100, 200, 300"):
        run("verify", root, 7)
    with pytest.raises(InputFileError, match="does not exist"):
        run("verify", tmp_path / "absent")
