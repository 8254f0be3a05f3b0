"""One reduction gives all ranks the same sums."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from production_ml.fault_tolerance.step_consensus import sum_over_ranks


def reduce_on(rank: int, store: str, results: mp.SimpleQueue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results.put((rank, sum_over_ranks({"flag": float(rank), "loss": torch.tensor(0.1 * (rank + 1)), "one": 1.0})))
    dist.destroy_process_group()


def test_alone_every_value_is_its_own_sum():
    assert sum_over_ranks({"b": torch.tensor(2.5), "a": 1.0}) == {"a": 1.0, "b": 2.5}


def test_all_ranks_get_the_same_sums(tmp_path):
    results = mp.get_context("spawn").SimpleQueue()

    mp.spawn(reduce_on, args=(str(tmp_path / "store"), results), nprocs=2)
    sums = dict(results.get() for _ in range(2))

    assert sums[0] == sums[1]
    assert (sums[0]["flag"], sums[0]["one"]) == (1.0, 2.0)
    assert math.isclose(sums[0]["loss"], 0.3, rel_tol=1e-6)
