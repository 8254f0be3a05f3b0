"""One save is sent at a time, by all ranks, and it counts when all peers hold it."""

from __future__ import annotations

from production_ml.fault_tolerance.memory_copies.replication import Replication, peer_of


def told(done=None, failed=None):
    return {"done": done, "failed": failed}


def test_a_save_is_replicated_when_all_peers_hold_it():
    sending = Replication("a", "b")

    assert sending.advance([told("b"), told("a")], ["a", "b"]) == Replication("a", "b")
    assert sending.advance([told("b"), told("b")], ["a", "b"]) == Replication("b", None)


def test_a_save_that_one_rank_cannot_send_is_given_up_and_the_one_before_stays():
    assert Replication("a", "b").advance([told("b"), told("a", "b")], ["a", "b"]) == Replication("a", None)


def test_a_save_that_failed_on_a_rank_is_not_waited_for():
    assert Replication("a", "b").advance([told("b"), told("b")], ["a"]) == Replication("a", None)


def test_replicas_whose_own_copies_are_lost_count_no_more():
    assert Replication("a", None).advance([told(), told()], ["b"]) == Replication(None, None)


def test_both_ends_of_a_transfer_are_protected():
    assert Replication("a", "b").protected == {"a", "b"}
    assert Replication().protected == set()


def test_each_ranks_peer_is_on_the_next_node():
    nodes = ["n0", "n0", "n1", "n1", "n2"]

    assert [peer_of(rank, nodes) for rank in range(5)] == [2, 3, 4, 4, 0]


def test_there_is_no_peer_on_a_single_node():
    assert peer_of(0, ["n0", "n0"]) is None
