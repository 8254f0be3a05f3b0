"""A step counts that is there of all ranks, of one save; the newest comes first."""

from __future__ import annotations

from production_ml.fault_tolerance.memory_copies.found import complete_saves


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
