"""Which elements of which parameter a rank of DeepSpeed's ZeRO holds, read from the engine's own tensors.

DeepSpeed is never imported here: only what belongs to an engine that the user has built is looked at. Written against
DeepSpeed 0.19.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from production_ml.core.errors import CheckpointWriteError

_STAGES_1_AND_2: Final = "DeepSpeedZeroOptimizer"
_STAGE_3: Final = "DeepSpeedZeroOptimizer_Stage3"


@dataclass(frozen=True, slots=True)
class Fragment:
    """The run of a parameter's elements whose master copy this rank holds; of no length where it holds none."""

    parameter: torch.Tensor
    shape: tuple[int, ...]
    """Of the whole parameter."""
    group: int
    """The parameter group's number."""
    start: int
    """The run's first element in the whole parameter, in row-major order."""
    master: torch.Tensor
    """`[run]`, of the type that the optimizer computes in."""
    flat: torch.Tensor
    """What the inner optimizer takes for its parameter: many runs in one."""
    offset: int
    """Where this run begins in `flat`."""

    @property
    def stop(self) -> int:
        """One past the run's last element."""
        return self.start + self.master.numel()

    def of_state(self, value: torch.Tensor) -> torch.Tensor:
        """This run of a state tensor of `flat`."""
        return value.detach().view(-1).narrow(0, self.offset, self.master.numel())


def is_engine(model: nn.Module) -> bool:
    """Whether `model` is a DeepSpeed engine."""
    return any(
        kind.__name__ == "DeepSpeedEngine" and kind.__module__.startswith("deepspeed.") for kind in type(model).__mro__
    )


def is_partitioned(engine: Any) -> bool:
    """Whether the engine's optimizer is one of ZeRO's; stage 0 leaves the user's own one and a plain module.

    Raises:
        CheckpointWriteError: The engine splits a model in ways that a checkpoint does not hold.
    """
    optimizer = engine.optimizer
    if optimizer is None or isinstance(optimizer, torch.optim.Optimizer):
        return False
    name = type(optimizer).__name__
    refused = {
        f"its optimizer is a {name}": name not in (_STAGES_1_AND_2, _STAGE_3),
        "it is a pipeline": bool(getattr(engine, "pipeline_parallelism", False)),
        "it has mixtures of experts": bool(getattr(engine, "has_moe_layers", False)),
        "it splits tensors over ranks": getattr(engine, "mp_world_size", 1) > 1,
        "its optimizer state is swapped to disk": bool(getattr(optimizer, "swap_optimizer", False)),
        "its parameters are swapped to disk": bool(getattr(optimizer, "params_in_nvme_and_cpu", False)),
    }
    for reason, applies in refused.items():
        if applies:
            raise CheckpointWriteError(
                f"The model is a DeepSpeed engine that checkpoints do not support: {reason}.",
                cure="Use ZeRO stage 1, 2 or 3 (fp32 or bf16), with states in memory.",
            )
    return True


def parameter_groups(optimizer: Any) -> list[list[torch.Tensor]]:
    """The model's parameters by group of a ZeRO optimizer."""
    if type(optimizer).__name__ == _STAGES_1_AND_2:
        return [list(group) for group in optimizer.bit16_groups]
    groups: list[list[torch.Tensor]] = [[] for _ in optimizer.optimizer.param_groups]
    for number, members in enumerate(optimizer.fp16_groups):
        groups[optimizer.sub_group_to_group_id[number]].extend(members)
    return groups


def flat_tensors(optimizer: Any) -> Sequence[torch.Tensor]:
    """What the inner optimizer takes for its parameters."""
    is_stage_3 = type(optimizer).__name__ == _STAGE_3
    flats: Sequence[torch.Tensor] = (
        optimizer.fp32_partitioned_groups_flat if is_stage_3 else optimizer.single_partition_of_fp32_groups
    )
    return flats


def fragments(optimizer: Any) -> Iterator[Fragment]:
    """What this rank holds of each parameter that is trained."""
    is_stage_3 = type(optimizer).__name__ == _STAGE_3
    for group, members in enumerate(parameter_groups(optimizer)):
        for parameter in members:
            yield _stage_3(optimizer, group, parameter) if is_stage_3 else _stage_1(optimizer, group, parameter)


def _stage_1(optimizer: Any, group: int, parameter: Any) -> Fragment:
    flat = optimizer.single_partition_of_fp32_groups[group]
    mapping = parameter._hp_mapping
    start = mapping.lp_fragment_address.start if mapping is not None else 0
    offset = mapping.hp_fragment_address.start if mapping is not None else 0
    length = mapping.lp_fragment_address.numel if mapping is not None else 0
    master = flat.detach().view(-1).narrow(0, offset, length)
    return Fragment(parameter, tuple(parameter.shape), group, start, master, flat, offset)


def _stage_3(optimizer: Any, group: int, parameter: Any) -> Fragment:
    sub_group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    flat = optimizer.fp32_partitioned_groups_flat[sub_group]
    start, length = partition_of(parameter)
    master = flat.detach().view(-1).narrow(0, offset, length)
    return Fragment(parameter, tuple(parameter.ds_shape), group, start, master, flat, offset)


def partition_of(parameter: Any) -> tuple[int, int]:
    """Where this rank's partition of a stage 3 parameter begins, and how many of its elements are no padding."""
    size = parameter.ds_tensor.numel()
    start = min(size * parameter.ds_zero_partition_rank, parameter.ds_numel)
    return start, min(size, parameter.ds_numel - start)


def is_stage_3_parameter(value: Any) -> bool:
    """Whether only `ds_tensor` of it is surely there."""
    return hasattr(value, "ds_tensor")


def is_held_by_engine(value: Any) -> bool:
    """Whether it is a parameter of an engine of any stage of ZeRO.

    Stages 1 and 2 mark it by the place of its master copy, which is None where another rank has that.
    """
    return is_stage_3_parameter(value) or hasattr(value, "_hp_mapping")


def flat_state(optimizer: Any, fragment: Fragment) -> Mapping[str, Any]:
    """The inner optimizer's state for the flat tensor that holds a fragment; empty before the first step."""
    return optimizer.optimizer.state.get(fragment.flat) or {}


def is_elementwise(value: Any, fragment: Fragment) -> bool:
    """Whether a state value has one number for each element, rather than one for all."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.numel() == fragment.flat.numel()
