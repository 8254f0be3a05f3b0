"""What goes wrong on one rank is told to all of them, and to whoever reads the log."""

from __future__ import annotations

from pathlib import Path

SCRIPT = Path(__file__).with_name("loading_ranks_script.py")


def test_a_fault_of_any_kind_on_rank_0_is_raised_on_every_rank(ranks):
    ranks(SCRIPT, (2, "fault"))


def test_that_copies_do_not_reach_other_nodes_is_said_once(ranks):
    ranks(SCRIPT, (2, "nodes"))
