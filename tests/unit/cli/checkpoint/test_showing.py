"""`checkpoint show` says what one checkpoint holds, without reading a tensor."""

from __future__ import annotations

import json

import pytest

from production_ml.core.errors import DamagedCheckpointError


def test_the_newest_is_shown_with_its_values_and_tensors(run, root):
    text = run("show", root).stdout

    assert "step 300" in text
    assert "epoch: 3" in text
    assert 'note: "[red]x"' in text
    assert "model: 2 tensors" in text
    assert 'class: "SGD"' in text
    assert text.index("model.weight") < text.index("model.bias")


def test_a_pattern_chooses_tensors(run, root):
    shown = json.loads(run("show", root, 100, "--tensors", "model.*", "--json").stdout)

    assert [(item["name"], item["dtype"], item["shape"], item["size_bytes"]) for item in shown["tensors"]] == [
        ("model.weight", "F32", [2, 2], 16),
        ("model.bias", "F32", [2], 8),
    ]
    assert shown["step"] == 100
    assert shown["values"]["extra"]["epoch"]["value"] == 1


def test_a_damaged_shard_does_not_hide_what_the_manifest_says(run, root, shard):
    shard(root, 300).unlink()

    assert "model.weight" in run("show", root).stdout


def test_a_damaged_manifest_leads_to_the_next_command(run, root):
    (root / "step-00000100" / "manifest.json").write_text("{}")

    with pytest.raises(DamagedCheckpointError, match=f"sets it aside.*\n.*checkpoint verify {root} 100$"):
        run("show", root, 100)
