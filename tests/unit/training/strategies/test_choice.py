"""A model's strategy is what it is already."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from production_ml.core.errors import ConfigError
from production_ml.training.strategies import choose_strategy


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_process_alone_trains_the_model_as_it_is():
    assert choose_strategy(nn.Linear(2, 2)) == "plain"


def test_what_is_wrapped_or_sharded_is_taken_as_it_is(group):
    assert choose_strategy(DistributedDataParallel(nn.Linear(2, 2))) == "ddp"
    assert choose_strategy(fully_shard(nn.Linear(2, 2), mesh=init_device_mesh("cpu", (1,)))) == "fsdp"


def test_a_model_that_is_only_tensor_parallel_is_refused(group):
    model = parallelize_module(nn.Sequential(nn.Linear(2, 2)), init_device_mesh("cpu", (1,)), {"0": ColwiseParallel()})

    with pytest.raises(ConfigError, match="tensor-parallel"):
        choose_strategy(model)
