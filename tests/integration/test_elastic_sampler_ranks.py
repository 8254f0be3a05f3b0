"""Real ranks and loading workers hand out one global order, whatever the world size at each part of the epoch."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

_SCRIPT = """
    import json, sys
    import torch.distributed as dist
    from torch.utils.data import DataLoader
    from production_ml.training.elastic_sampler import ElasticSampler

    rank, world_size, workers, steps, store, state = json.loads(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    data = range(205)
    sampler = ElasticSampler(data, 12, seed=7)
    if state:
        sampler.load_state_dict(state)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    seen = []
    for batch in sampler.epoch(loader):
        assert not sampler.current_ids or batch.tolist() == sampler.current_ids
        shares = [None] * world_size
        dist.all_gather_object(shares, sampler.current_ids)
        assert sum(shares, []) == sampler.current_global_ids
        seen += sum(shares, [])
        steps -= 1
        if steps == 0:
            break
    dist.barrier()
    print(json.dumps([seen, sampler.state_dict()]), flush=True)
    dist.destroy_process_group()
"""


def train(store, world_size, workers, steps, state):
    arguments = [json.dumps([rank, world_size, workers, steps, str(store), state]) for rank in range(world_size)]
    command = [sys.executable, "-c", textwrap.dedent(_SCRIPT)]
    ranks = [subprocess.Popen([*command, argument], stdout=subprocess.PIPE) for argument in arguments]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world_size
    answers = [json.loads(output) for output in outputs]
    assert answers == [answers[0]] * world_size
    return answers[0]


def test_every_sample_is_handed_out_once_when_four_ranks_become_three_two_and_four(tmp_path):
    whole, _ = train(tmp_path / "whole", 1, 0, 0, None)
    seen, state = [], None

    for part, (world_size, workers, steps) in enumerate([(4, 0, 3), (3, 2, 5), (2, 1, 4), (4, 0, 0)]):
        ids, state = train(tmp_path / str(part), world_size, workers, steps, state)
        seen += ids

    assert seen == whole
    assert sorted(seen) == list(range(205))
