"""`checkpoint list` says what is there, which is best, and no more of its health than it has looked at."""

from __future__ import annotations

import json

import pytest

from production_ml.core.errors import InputFileError


def test_each_step_is_shown_with_its_metrics_and_the_best_is_marked(run, root):
    listed = json.loads(run("list", root, "--json").stdout, parse_constant=pytest.fail)

    assert [(row["step"], row["best"]) for row in listed] == [(100, False), (200, True), (300, False)]
    assert listed[0]["metrics"] == {"loss": 0.5, "odd": "NaN"}
    assert listed[0]["world_size"] == 1
    text = run("list", root).stdout
    assert "200 *" in text
    assert "loss=0.1" in text


@pytest.mark.parametrize(("best", "step"), [("loss:max", 100), ("loss:min", 200), ("absent", None)])
def test_the_best_is_of_the_metric_that_was_asked_for(run, root, best, step):
    listed = json.loads(run("list", root, "--best", best, "--json").stdout)

    assert [row["step"] for row in listed if row["best"]] == ([] if step is None else [step])


def test_damage_is_seen_when_every_byte_is_looked_at_and_not_claimed_to_be_absent_before(run, root, damage):
    damage(root, 200)

    quick = json.loads(run("list", root, "--json").stdout)
    whole = json.loads(run("list", root, "--verify", "--json").stdout)

    assert [row["state"] for row in quick] == ["not verified"] * 3
    assert [row["state"] for row in whole] == ["good", "damaged", "good"]
    assert "does not match its hash" in whole[1]["problem"]
    assert "damaged: tensor" in run("list", root, "--verify").stdout


def test_a_bad_manifest_and_a_short_file_are_seen_at_once(run, root, shard):
    (root / "step-00000200" / "manifest.json").write_text("{}")
    shard(root, 300).write_bytes(b"")

    listed = json.loads(run("list", root, "--json").stdout)

    assert [row["state"] for row in listed] == ["not verified", "damaged", "damaged"]
    assert run("list", root).stdout.count("damaged:") == 2


def test_an_empty_directory_is_said_to_be_one(run, tmp_path):
    assert "holds no checkpoints" in run("list", tmp_path).stdout
    assert json.loads(run("list", tmp_path, "--json").stdout) == []


def test_a_directory_that_is_not_there_is_bad_input(run, tmp_path):
    with pytest.raises(InputFileError, match="does not exist"):
        run("list", tmp_path / "absent")


def test_one_that_cannot_be_read_does_not_hide_the_others(run, root):
    manifest = root / "step-00000200" / "manifest.json"
    manifest.unlink()
    manifest.symlink_to(manifest)  # a file that no user may open, root neither

    listed = json.loads(run("list", root, "--json").stdout)

    assert [row["state"] for row in listed] == ["not verified", "unreadable", "not verified"]
    assert "cannot be read" in listed[1]["problem"]


def test_damage_leads_to_the_next_command(run, root):
    assert "checkpoint verify" not in run("list", root).stdout

    (root / "step-00000200" / "manifest.json").write_text("{}")

    assert f"production-ml checkpoint verify {root}\n" in run("list", root).stdout
