"""Without a process group a process is alone, unless a launcher says otherwise."""

from __future__ import annotations

import pytest

from production_ml.core.errors import ConfigError
from production_ml.training.ranks import rank_and_world_size


def test_a_script_without_a_launcher_is_rank_0_of_1(monkeypatch):
    for variable in ("WORLD_SIZE", "RANK", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(variable, raising=False)

    assert rank_and_world_size() == (0, 1)


def test_several_ranks_without_a_process_group_are_told_to_make_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(ConfigError, match="init_process_group"):
        rank_and_world_size()
