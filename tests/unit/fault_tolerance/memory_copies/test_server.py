"""A keeper tells and lends while its trainer lives, and hands over once it is dead."""

from __future__ import annotations

from production_ml.fault_tolerance.memory_copies.visit import (
    ask,
    dismiss_others,
    take_over,
    what_keepers_hold,
)


def test_it_tells_what_it_holds(keeper, place, copy_of):
    keeper.copies.add(copy_of(3, save_id="aa"))

    [(_, told)] = what_keepers_hold(place)

    assert told["copies"] == [{"step": 3, "save_id": "aa", "rank": 0, "world_size": 1, "created_at": 1003.0}]


def test_after_its_trainers_death_it_tells_of_the_copy_in_the_making_too(keeper, place):
    list(what_keepers_hold(place))
    assert keeper.waits == 0

    keeper.lose_trainer()
    list(what_keepers_hold(place))

    assert keeper.waits == 1


def test_it_hands_nothing_over_while_its_trainer_lives(keeper, place, copy_of):
    keeper.copies.add(copy_of(3))

    assert list(take_over(place, "me.sock", 0)) == []
    assert not keeper.is_dismissed()


def test_it_hands_all_over_to_whoever_has_its_trainers_place_next(keeper, place, copy_of):
    keeper.copies.add(own := copy_of(3))
    keeper.copies.add(replica := copy_of(3, rank=1, world_size=2, is_replica=True))
    keeper.lose_trainer()

    assert list(take_over(place, "me.sock", 1)) == []
    taken = list(take_over(place, "me.sock", 0))
    ask(place.path / keeper.name, {"kind": "list"})

    assert [(record, standing["is_replica"]) for record, _, standing in taken] == [
        (own.record, False),
        (replica.record, True),
    ]
    assert keeper.is_dismissed()


def test_a_successor_that_dies_before_it_has_all_leaves_it_in_office(keeper, place, copy_of):
    keeper.copies.add(copy_of(3))
    keeper.lose_trainer()

    successor = take_over(place, "me.sock", 0)
    next(successor)
    successor.close()

    assert next(what_keepers_hold(place))[1]["copies"] != []
    assert not keeper.is_dismissed()


def test_it_is_dismissed_only_after_its_trainers_death(keeper, place):
    dismiss_others(place, "me.sock")
    assert not keeper.is_dismissed()

    keeper.lose_trainer()
    dismiss_others(place, keeper.name)
    assert not keeper.is_dismissed()

    dismiss_others(place, "me.sock")
    assert keeper.is_dismissed()
