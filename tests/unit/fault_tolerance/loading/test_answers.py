"""A rank raises its own problem as it is, and the others' in their words."""

from __future__ import annotations

import pytest

from production_ml.core.errors import CheckpointError, CheckpointMismatchError, DamagedCheckpointError
from production_ml.fault_tolerance.loading.answers import answer, found_damage, raise_problems


def test_where_all_is_well_nothing_is_raised():
    raise_problems(None, [answer(None), answer(None)])


def test_another_ranks_problem_is_told_with_its_rank_and_its_type():
    with pytest.raises(CheckpointError, match=r"rank 1: KeyError\('gone'\)"):
        raise_problems(None, [answer(None), answer(KeyError("gone"))])


def test_another_ranks_mismatch_is_a_mismatch_here():
    with pytest.raises(CheckpointMismatchError, match="rank 1: another model"):
        raise_problems(None, [answer(None), answer(CheckpointMismatchError("another model"))])


def test_a_rank_raises_its_own_problem_first():
    own = KeyError("gone")

    with pytest.raises(KeyError) as raised:
        raise_problems(own, [answer(MemoryError()), answer(own)])

    assert raised.value is own


def test_damage_that_all_ranks_found_is_told_once():
    damage = answer(DamagedCheckpointError("manifest.json", "the file is missing", step=3))

    [found] = found_damage([damage, damage, answer(None)])

    assert (found.step, found.file) == (3, "manifest.json")
