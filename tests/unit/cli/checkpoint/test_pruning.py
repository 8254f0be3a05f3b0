"""`checkpoint prune` removes what no rule wants, says why the rest stays, and does nothing when it is only asked."""

from __future__ import annotations

import json

import pytest

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.checkpoint_format.read_lease import read_lease


def steps(root) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in root.glob("step-*"))


def test_a_dry_run_says_what_would_go_and_why_the_rest_stays(run, root):
    facts = json.loads(run("prune", root, "--keep-last", 1, "--best", "loss", "--dry-run", "--json").stdout)

    assert [(item["step"], item["removed"]) for item in facts["steps"]] == [(100, True), (200, False), (300, False)]
    assert "the lowest loss" in facts["steps"][1]["kept_because"]
    assert "the newest" in facts["steps"][2]["kept_because"]
    assert facts["freed_bytes"] > 0
    assert steps(root) == [100, 200, 300]
    assert "kept: the lowest loss" in run("prune", root, "--best", "loss", "--dry-run").stdout


def test_what_no_rule_wants_is_removed(run, root):
    assert "Removed 1 checkpoint" in run("prune", root, "--keep-every", 200).stdout

    assert steps(root) == [200, 300]


def test_what_is_being_read_stays(run, root):
    with read_lease(root / "step-00000100"):
        text = run("prune", root, "--keep-last", 1).stdout

    assert steps(root) == [100, 300]
    assert "being read" in text


def test_without_a_rule_nothing_is_removed(run, root):
    with pytest.raises(ConfigError, match="needs a rule"):
        run("prune", root)

    assert steps(root) == [100, 200, 300]
