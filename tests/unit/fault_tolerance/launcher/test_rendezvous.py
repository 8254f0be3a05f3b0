"""Every attempt gets a store of its own, and all nodes count attempts alike."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from production_ml.core.errors import ConfigError
from production_ml.fault_tolerance.launcher.rendezvous import FreshStoreRendezvous, Meeting, SingleNodeRendezvous


class StaticMeeting(RendezvousHandler):
    """Nodes that know their ranks, and share one store for good, as torchrun's static rendezvous does."""

    def __init__(self, store: HashStore, rank: int) -> None:
        self.store, self.rank = store, rank

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(self.store, self.rank, 2, RendezvousStoreInfo("127.0.0.1", 1))

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return "static"

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return "job"

    def shutdown(self) -> bool:
        return True


def client(meeting: Meeting) -> TCPStore:
    return TCPStore(meeting.store_host, meeting.store_port, timeout=timedelta(seconds=5), is_master=False)


def test_what_one_attempt_left_in_the_store_is_unknown_to_the_next():
    rendezvous = SingleNodeRendezvous("job")
    rendezvous.next_rendezvous()
    client(rendezvous.meeting).set("gloo/rank-1", "the address of a dead worker")

    rendezvous.next_rendezvous()

    assert not client(rendezvous.meeting).check(["gloo/rank-1"])
    assert rendezvous.meeting.attempt == 1


def test_the_store_listens_on_the_loopback_address_alone():
    rendezvous = SingleNodeRendezvous("job")
    rendezvous.next_rendezvous()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", rendezvous.meeting.store_port), timeout=5)


def test_a_port_that_the_user_has_fixed_serves_every_attempt():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    rendezvous = SingleNodeRendezvous("job", port=port)

    held = [rendezvous.next_rendezvous() for _ in range(3)]

    assert len(held) == 3
    assert rendezvous.meeting.store_port == port


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)):
            SingleNodeRendezvous("job", port=port).next_rendezvous()


def test_nodes_take_the_highest_attempt_and_the_first_nodes_store():
    shared = HashStore()
    nodes = [
        FreshStoreRendezvous(StaticMeeting(shared, 0), first_attempt=0),
        FreshStoreRendezvous(StaticMeeting(shared, 1), first_attempt=4),
    ]
    seen = []
    for _ in range(2):
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.next_rendezvous(), nodes))
        seen.append([(node.meeting.attempt, node.meeting.group_rank, node.meeting.store_port) for node in nodes])

    first, second = seen
    assert [(attempt, rank) for attempt, rank, _ in first] == [(4, 0), (4, 1)]
    assert [(attempt, rank) for attempt, rank, _ in second] == [(5, 0), (5, 1)]
    assert first[0][2] == first[1][2] != second[0][2] == second[1][2]
