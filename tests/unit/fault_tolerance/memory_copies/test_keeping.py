"""By which address peers reach this node."""

from __future__ import annotations

from production_ml.fault_tolerance.memory_copies.keeping import peer_host


def test_on_a_single_node_there_is_none():
    assert peer_host({"MASTER_ADDR": "127.0.0.1", "GROUP_WORLD_SIZE": "1"}) is None
    assert peer_host({}) is None


def test_on_loopback_peers_are_on_loopback_too():
    assert peer_host({"MASTER_ADDR": "127.0.0.1", "GROUP_WORLD_SIZE": "2"}) == "127.0.0.1"


def test_without_a_launcher_srun_tells_how_many_nodes_there_are():
    assert peer_host({"MASTER_ADDR": "127.0.0.1", "SLURM_STEP_NUM_NODES": "2"}) == "127.0.0.1"
    assert peer_host({"MASTER_ADDR": "127.0.0.1", "SLURM_STEP_NUM_NODES": "1"}) is None
    assert peer_host({"MASTER_ADDR": "127.0.0.1", "GROUP_WORLD_SIZE": "1", "SLURM_STEP_NUM_NODES": "2"}) is None


def test_a_first_rank_whose_name_is_unknown_leaves_none():
    assert peer_host({"MASTER_ADDR": "no-such-host.invalid", "GROUP_WORLD_SIZE": "2"}) is None
