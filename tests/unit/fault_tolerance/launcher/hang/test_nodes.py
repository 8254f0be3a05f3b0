"""Launchers that tell each other what they know of a hang."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from torch.distributed import TCPStore

from production_ml.fault_tolerance.launcher.hang.culprit import RankReport
from production_ml.fault_tolerance.launcher.hang.nodes import NodesInStore, NoOtherNodes
from production_ml.fault_tolerance.recovery.hang.stacks import Activity


def report(rank: int) -> RankReport:
    return RankReport(rank=rank, steps=3, silent_seconds=2.0, activity=Activity.WORK, place="a.py:1 in f")


def wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def test_every_node_learns_what_all_know_in_every_round():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    nodes = [NodesInStore(store, node=node, node_count=2, wait=wait) for node in range(2)]

    for _ in range(2):
        assert not nodes[1].is_asked()
        with ThreadPoolExecutor() as threads:
            first = threads.submit(nodes[0].exchange, [report(0)])
            while not nodes[1].is_asked():
                time.sleep(0.001)
            second = nodes[1].exchange([report(1)])

        assert first.result() == second == [report(0), report(1)]


def test_a_watch_that_is_to_end_waits_for_no_other_node():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ended = threading.Event()
    ended.set()

    assert NodesInStore(store, node=1, node_count=2, wait=ended.wait).exchange([report(1)]) == [report(1)]


def test_a_node_alone_asks_nobody():
    assert not NoOtherNodes().is_asked()
    assert NoOtherNodes().exchange([report(0)]) == [report(0)]
