"""A save begins on all ranks or on none; a full disk leaves it out, and raises nowhere."""

from __future__ import annotations

import pytest

from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.saving.commit import GivenUpError
from production_ml.fault_tolerance.saving.save_agreement import Standing, _agreed, _answer, agree

GIVEN_UP = Standing(problem=GivenUpError("given up by rank 0"))
FAILED = Standing(problem=CheckpointWriteError("Input/output error"))
FULL = Standing(met_full_disk=True, is_paused=True)


def answers_of(*standings: Standing) -> list[dict[str, object]]:
    """What each rank would hear."""
    return [_answer(standing) for standing in standings]


def test_a_rank_alone_raises_its_own_problem():
    problem = ConfigError("step", -1, "must not be negative")

    with pytest.raises(ConfigError) as raised:
        agree(Standing(problem=problem))

    assert raised.value is problem


def test_no_rank_saves_while_rank_0_has_no_room():
    ranks = (Standing(is_paused=True), Standing())

    assert [_agreed(standing, answers_of(*ranks)) for standing in ranks] == [None, None]


def test_a_save_that_was_given_up_for_a_full_disk_raises_nowhere():
    ranks = (FULL, GIVEN_UP)

    assert [_agreed(standing, answers_of(*ranks)) for standing in ranks] == [None, None]


@pytest.mark.parametrize("ranks", [(FAILED, GIVEN_UP), (Standing(), GIVEN_UP), (FULL, FAILED)])
def test_every_other_failure_raises_on_all_ranks(ranks):
    for standing in ranks:
        with pytest.raises(CheckpointWriteError):
            _agreed(standing, answers_of(*ranks))
