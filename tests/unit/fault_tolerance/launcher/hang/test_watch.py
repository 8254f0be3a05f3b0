"""The words in which a person is told of a hang."""

from __future__ import annotations

from production_ml.fault_tolerance.launcher.hang.culprit import RankReport, Verdict
from production_ml.fault_tolerance.launcher.hang.watch import blame
from production_ml.fault_tolerance.recovery.hang.stacks import Activity


def test_all_culprits_are_named_with_what_they_do():
    culprits = tuple(
        RankReport(rank=rank, steps=1, silent_seconds=2.0, activity=Activity.WORK, place=f"a.py:{rank} in f")
        for rank in (1, 5)
    )

    said = blame(Verdict(culprits, is_alive=False, is_pause=False))

    assert said == "rank 1 is at a.py:1 in f, rank 5 is at a.py:5 in f"


def test_without_a_culprit_the_network_is_named():
    assert "the network" in blame(Verdict((), is_alive=False, is_pause=False))
