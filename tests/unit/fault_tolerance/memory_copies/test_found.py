"""A step counts that is there of all ranks, of one save; the newest comes first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from production_ml.core.errors import DamagedCheckpointError
from production_ml.fault_tolerance.memory_copies.found import CopiedStep, complete_saves


def copy(step, save_id, rank, world_size=2, created_at=0.0):
    return {"step": step, "save_id": save_id, "rank": rank, "world_size": world_size, "created_at": created_at}


def test_a_step_of_which_a_rank_is_missing_does_not_count():
    copies = [copy(1, "aa", 0), copy(1, "aa", 1), copy(2, "bb", 0)]

    assert complete_saves(copies) == [(1, "aa", 2)]


def test_ranks_of_different_saves_of_a_step_make_none():
    assert complete_saves([copy(1, "aa", 0), copy(1, "bb", 1)]) == []


def test_a_copy_that_two_keepers_hold_counts_once():
    assert complete_saves([copy(1, "aa", 0), copy(1, "aa", 0)]) == []


def test_the_newest_step_comes_first_and_of_a_step_the_newest_save():
    copies = [copy(1, "aa", 0, 1, 9.0), copy(2, "bb", 0, 1, 1.0), copy(2, "cc", 0, 1, 2.0)]

    assert [save_id for _, save_id, _ in complete_saves(copies)] == ["cc", "bb", "aa"]


def damaged(kept):
    return replace(kept, record=kept.record.replace("0.5", "0.7"))


def test_where_the_copy_on_this_host_is_damaged_the_peers_good_one_is_taken(
    keeper, socket_of, peer, peers_copies, copy_of, caplog
):
    keeper.copies.add(damaged(copy_of(3, save_id="aa")))
    peers_copies.add(copy_of(3, save_id="aa", is_replica=True))
    step = CopiedStep(3, "aa", [[socket_of(keeper), peer.door]])

    manifest = step.manifest()

    assert manifest.metrics == {"loss": 0.5}
    assert "does not match its hash" in caplog.text
    step.close()


def test_where_no_good_copy_is_left_the_damage_is_told(keeper, socket_of, copy_of):
    keeper.copies.add(damaged(copy_of(3, save_id="aa")))

    with pytest.raises(DamagedCheckpointError, match="does not match its hash"):
        CopiedStep(3, "aa", [[socket_of(keeper)]]).manifest()
