"""A keeper holds what may still be needed, and nothing else."""

from __future__ import annotations

import os

from production_ml.fault_tolerance.memory_copies.kept import KeptCopies, KeptCopy


def held(copies: KeptCopies) -> list[int]:
    return [copy.step for copy in copies.all()]


def test_an_image_that_is_written_into_is_held_no_more(copy_of):
    copies = KeptCopies(1)
    copies.add(copy_of(1, slot=10))
    copies.add(copy_of(2, slot=11))

    copies.reuse(10, agreed=1, replicated=False)

    assert held(copies) == [2]


def test_a_predecessors_copies_make_way_for_as_many_newer_ones(copy_of):
    copies = KeptCopies(2)
    for step in (1, 2):
        copies.add(copy_of(step, is_adopted=True))

    copies.reuse(10, agreed=0, replicated=False)
    assert held(copies) == [1, 2]

    copies.reuse(11, agreed=1, replicated=False)
    assert held(copies) == [2]

    copies.reuse(10, agreed=2, replicated=False)
    assert held(copies) == []


def test_a_predecessors_replicas_stay_until_there_are_newer_replicas(copy_of):
    copies = KeptCopies(1)
    copies.add(copy_of(1, is_adopted=True, is_replica=True))

    copies.reuse(10, agreed=1, replicated=False)
    assert held(copies) == [1]

    copies.reuse(11, agreed=1, replicated=True)
    assert held(copies) == []


def send(copies: KeptCopies, copy: KeptCopy, *, held: str | None) -> None:
    copies.expect_replica(copy.rank, held=held)
    copies.add(copy)


def test_a_replica_stays_until_a_newer_one_has_arrived_everywhere(copy_of):
    copies = KeptCopies(1)
    send(copies, copy_of(1, save_id="aa", is_replica=True), held=None)
    send(copies, copy_of(2, save_id="bb", is_replica=True), held="aa")
    send(copies, copy_of(3, save_id="cc", is_replica=True), held="bb")

    assert held(copies) == [2, 3]


def test_a_transfer_that_failed_at_another_peer_costs_no_replica_that_has_arrived_everywhere(copy_of):
    copies = KeptCopies(1)
    send(copies, copy_of(1, save_id="aa", is_replica=True), held=None)
    send(copies, copy_of(2, save_id="bb", is_replica=True), held="aa")
    for step in (3, 4):
        send(copies, copy_of(step, is_replica=True), held="aa")

    assert held(copies) == [1, 4]


def test_of_a_predecessor_that_died_amid_sending_both_stay_until_a_successors_has_arrived_everywhere(copy_of):
    copies = KeptCopies(1)
    copies.add(copy_of(1, save_id="aa", is_replica=True, is_adopted=True, is_everywhere=True))
    copies.add(copy_of(2, save_id="bb", is_replica=True, is_adopted=True))
    send(copies, copy_of(3, save_id="cc", is_replica=True), held=None)
    assert held(copies) == [1, 2, 3]

    send(copies, copy_of(4, save_id="dd", is_replica=True), held="cc")

    assert held(copies) == [3, 4]


def test_what_is_forgotten_is_held_no_more(copy_of):
    copies = KeptCopies(1)
    copies.add(copy_of(1, save_id="aa"))
    copies.add(copy_of(2, save_id="bb"))

    copies.forget(["bb"])

    assert held(copies) == [1]


def test_a_borrowed_image_stays_good_when_the_copy_is_dropped(copy_of):
    copies = KeptCopies(1)
    copies.add(copy_of(1, save_id="aa"))

    with copies.borrow("aa", 0) as borrowed:
        copies.forget(["aa"])
        size = os.fstat(borrowed.descriptor).st_size

    assert size >= borrowed.size_bytes
    with copies.borrow("aa", 0) as borrowed:
        assert borrowed is None
