"""`checkpoint import` makes a checkpoint, and says what became of each part."""

from __future__ import annotations

import json

import pytest
import torch

from production_ml.core.errors import ConfigError, ExitCode


@pytest.mark.parametrize("to", ["safetensors", "torch", "dcp"])
def test_what_was_exported_is_imported_as_it_was(run, root, tmp_path, to):
    everything = ["--with-optimizer"] if to == "safetensors" else []
    run("export", root, 200, tmp_path / f"out.{to}", "--to", to, *everything)

    facts = json.loads(run("import", tmp_path / f"out.{to}", tmp_path / "imported", "--json").stdout)

    assert (facts["step"], facts["optimizer"], facts["extra"]) == (200, "SGD", ["epoch", "note"])
    assert run("verify", tmp_path / "imported").exit_code == ExitCode.OK
    found = json.loads(run("diff", f"{root}@200", tmp_path / "imported", "--json").stdout)
    differing = [item["name"] for item in found["tensors"]] + found["values"]
    assert all(name.startswith(("rank-0.", "rank 0")) for name in differing), differing  # random generators stay behind


def test_a_file_that_does_not_name_its_step_needs_one(run, tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")

    with pytest.raises(ConfigError, match="--step N"):
        run("import", tmp_path / "w.pt", tmp_path / "imported")
    assert not (tmp_path / "imported").exists()

    assert "Committed step 5" in run("import", tmp_path / "w.pt", tmp_path / "imported", "--step", 5).stdout


def test_an_optimizer_that_is_kept_as_an_extra_is_told_of(run, tmp_path):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "s.pt")

    result = run("import", tmp_path / "s.pt", tmp_path / "imported", "--step", 1)

    assert "optimizer: none" in result.stdout
    assert "kept as the extra 'optimizer_state'" in result.stderr
