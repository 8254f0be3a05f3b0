"""A save begins on all ranks or on none; what is no error leaves it out, and raises nowhere."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from production_ml.core.errors import CheckpointWriteError, ConfigError
from production_ml.fault_tolerance.saving.commit import GivenUpError
from production_ml.fault_tolerance.saving.draft import SaveDraft
from production_ml.fault_tolerance.saving.save_agreement import Standing, _agreed, _answer, agree

GIVEN_UP = GivenUpError("given up by rank 0")
FAILED = Standing(problem=CheckpointWriteError("Input/output error"))


@pytest.fixture
def draft(share_of) -> SaveDraft:
    return SaveDraft(share_of(1).order, SimpleNamespace(), None, "fingerprint")


def hear(*standings: Standing) -> list[object]:
    """What each rank makes of what all of them tell."""
    answers = [_answer(standing) for standing in standings]
    return [_agreed(standing, answers) for standing in standings]


def test_a_rank_alone_raises_its_own_problem():
    problem = ConfigError("step", -1, "must not be negative")

    with pytest.raises(ConfigError) as raised:
        agree(Standing(problem=problem))

    assert raised.value is problem


def test_all_ranks_take_the_save_id_of_rank_0(draft):
    assert [agreed.order.save_id for agreed in hear(Standing(draft=draft), Standing(draft=draft))] == ["00ff", "00ff"]


def test_no_rank_saves_while_rank_0_has_no_room(draft):
    assert hear(Standing(is_paused=True), Standing(draft=draft)) == [None, None]


def test_what_was_given_up_for_a_reason_that_is_no_error_hinders_no_further_save(draft):
    excused, follower = Standing(draft=draft, is_excused=True), Standing(draft=draft, given_up=GIVEN_UP)

    assert all(agreed is not None for agreed in hear(excused, follower))


def test_what_was_given_up_and_nobody_knows_why_is_raised_on_all_ranks(draft):
    ranks = (Standing(draft=draft), Standing(draft=draft, given_up=GIVEN_UP))
    answers = [_answer(standing) for standing in ranks]

    for standing in ranks:
        with pytest.raises(CheckpointWriteError, match="given up by rank 0"):
            _agreed(standing, answers)


@pytest.mark.parametrize("excused", [True, False])
def test_every_other_failure_is_raised_on_all_ranks(draft, excused):
    ranks = (Standing(draft=draft, is_excused=excused), FAILED, Standing(draft=draft, given_up=GIVEN_UP))
    answers = [_answer(standing) for standing in ranks]

    for standing in ranks:
        with pytest.raises(CheckpointWriteError, match="Input/output error"):
            _agreed(standing, answers)
