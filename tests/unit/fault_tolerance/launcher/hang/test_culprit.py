"""Who did not arrive, from what all ranks say."""

from __future__ import annotations

import json

import pytest

from production_ml.fault_tolerance.launcher.hang.culprit import RankReport, describe, find_culprits
from production_ml.fault_tolerance.recovery.hang.stacks import Activity


def report(rank: int, activity: Activity = Activity.COLLECTIVE, **facts) -> RankReport:
    return RankReport(**{"rank": rank, "steps": 7, "silent_seconds": 10.0, "activity": activity, **facts})


def blamed(*reports: RankReport) -> list[int]:
    return [culprit.rank for culprit in find_culprits(reports).culprits]


@pytest.mark.parametrize("activity", [Activity.WORK, Activity.DATA, Activity.UNKNOWN, Activity.PAUSE])
def test_the_rank_that_does_not_wait_for_its_peers_is_the_culprit(activity):
    assert blamed(report(0), report(1, Activity.BACKWARD), report(2, activity), report(3)) == [2]


def test_a_stopped_rank_is_the_culprit_wherever_it_was_stopped():
    assert blamed(report(0, Activity.WORK), report(1, state="stopped"), report(2)) == [1]


def test_a_rank_that_ended_is_the_culprit_only_while_others_wait_for_it():
    ended = report(1, Activity.UNKNOWN, state="ended")

    assert blamed(report(0), ended) == [1]
    assert blamed(report(0, Activity.PAUSE), ended) == [0]


def test_a_rank_that_goes_on_is_no_culprit():
    verdict = find_culprits([report(0, Activity.WORK), report(1, Activity.WORK, has_stepped=True, silent_seconds=0.1)])

    assert [culprit.rank for culprit in verdict.culprits] == [0]
    assert verdict.is_alive


def test_on_a_gpu_the_flight_recorder_tells_who_has_entered_fewer_collectives():
    reports = [report(rank, Activity.WORK, is_busy=True, collective=40 - (rank == 2)) for rank in range(4)]

    verdict = find_culprits(reports)

    assert [culprit.rank for culprit in verdict.culprits] == [2]
    assert not verdict.is_pause


def test_of_ranks_that_all_wait_the_one_in_another_collective_is_the_culprit():
    reports = [
        report(rank, collective=9, operation="gloo:recv" if rank == 1 else "gloo:all_reduce") for rank in (0, 1, 2)
    ]

    assert blamed(*reports) == [1]


def test_of_two_ranks_in_different_places_the_one_that_is_ahead_has_skipped_something():
    assert blamed(report(0, place="a.py:1"), report(1, place="a.py:2", steps=8)) == [1]


def test_nobody_is_to_blame_where_all_wait_in_the_same_collective():
    verdict = find_culprits([report(rank, place="a.py:1", collective=9, operation="all_reduce") for rank in range(3)])

    assert verdict.culprits == ()
    assert not verdict.is_alive


@pytest.mark.parametrize("sign", ["is_busy", "is_moving"])
def test_a_culprit_that_moves_is_slow_and_not_dead(sign):
    assert find_culprits([report(0), report(1, Activity.WORK, **{sign: True})]).is_alive
    assert not find_culprits([report(0, **{sign: True}), report(1, Activity.WORK)]).is_alive


def test_work_that_nobody_waits_for_may_take_long():
    assert find_culprits([report(rank, Activity.WORK, is_busy=True) for rank in range(2)]).is_pause
    assert not find_culprits([report(rank, Activity.WORK) for rank in range(2)]).is_pause


def test_a_save_may_take_long_but_not_a_stopped_one():
    assert find_culprits([report(0), report(1, Activity.PAUSE)]).is_pause
    assert not find_culprits([report(0), report(1, Activity.PAUSE, state="stopped")]).is_pause


def test_a_report_reaches_another_node_whole():
    sent = report(3, Activity.DATA, place="a.py:1", data_workers=("worker 7 is stopped",), collective=4)

    assert RankReport.of_json(json.loads(json.dumps(sent.as_json()))) == sent


def test_a_report_is_told_in_words():
    assert describe(report(0, Activity.WORK, place="a.py:1 in f")) == "is at a.py:1 in f"
    assert describe(
        report(0, Activity.DATA, place="a.py:1 in f", data_workers=("its DataLoader worker 7 is stopped",))
    ) == ("waits for its DataLoader at a.py:1 in f; its DataLoader worker 7 is stopped")
