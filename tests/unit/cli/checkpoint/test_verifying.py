"""`checkpoint verify` names damage by file and tensor, and its exit code can be trusted."""

from __future__ import annotations

import json

import pytest

from production_ml.cli.checkpoint.verifying import damage_of
from production_ml.core.errors import ExitCode, InputFileError
from production_ml.fault_tolerance.checkpoint_format.directory import CheckpointDirectory
from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest
from production_ml.storage.hashing import hash_bytes


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


def test_what_a_training_removes_meanwhile_is_left_out_and_damage_is_not(root):
    class BesideATraining(CheckpointDirectory):
        """Step 200 is pruned between the listing and the look at it."""

        def manifest(self, step: int) -> Manifest:
            if step == 200:
                self.path.joinpath("step-00000200").rename(self.path / ".removed-step-00000200")
            return super().manifest(step)

    directory = BesideATraining(root)
    (root / "step-00000300" / "manifest.json").unlink()

    found = {step: damage_of(directory, step) for step in directory.steps()}

    assert (found[100], found[200]) == ([], None)
    assert [damage.problem for damage in found[300]] == ["the file is missing"]


def test_a_checkpoint_under_a_damaged_name_is_damaged(run, root):
    (root / "step-00000200").rename(root / "stup-00000200")

    result = run("verify", root)

    assert result.exit_code == ExitCode.DAMAGED
    assert "stup-00000200: holds the checkpoint of step 200 under another name" in result.stdout


def test_a_manifest_that_matches_its_hash_and_makes_no_sense_is_damage_and_no_traceback(run, root):
    data = b'{"hash": "", "step": 200}\n'
    data = data.replace(b'""', b'"%s"' % hash_bytes(data).encode(), 1)
    (root / "step-00000200" / "manifest.json").write_bytes(data)

    result = run("verify", root)

    assert result.exit_code == ExitCode.DAMAGED
    assert "step 200: DAMAGED" in result.stdout
    assert "makes no sense" in result.stdout


def test_after_damage_it_is_said_where_a_training_would_go_on(run, root, damage):
    damage(root, 300)

    assert "1 of 3 checkpoints damaged." in run("verify", root).stdout
    assert "goes on from step 200." in run("verify", root).stdout

    damage(root, 100)
    damage(root, 200)

    assert "would begin at step 0" in run("verify", root).stdout
