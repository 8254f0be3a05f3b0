"""The weights at the end of two runs, compared through their last checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from production_ml.drill.scene import SavedCheckpoint
from production_ml.drill.verdict import Weights
from production_ml.fault_tolerance.checkpoint_format.places import open_place
from production_ml.fault_tolerance.interchange.source import CheckpointSource
from production_ml.fault_tolerance.interchange.tensor_source import read_tensor

_OF_MODEL = "model."


def compare_weights(reference: Sequence[SavedCheckpoint], other: Sequence[SavedCheckpoint]) -> Weights | None:
    """Compare the model of the last checkpoints; None where one of the two runs has none.

    Raises:
        DamagedCheckpointError: A checkpoint is not what was written.
    """
    ends = [max(saved, key=lambda checkpoint: checkpoint.step, default=None) for saved in (reference, other)]
    if ends[0] is None or ends[1] is None:
        return None
    with _source(ends[0]) as expected, _source(ends[1]) as found:
        names = {name for name in expected.manifest.tensors if name.startswith(_OF_MODEL)}
        are_equal = names == {name for name in found.manifest.tensors if name.startswith(_OF_MODEL)}
        are_finite = True
        for name in sorted(names & found.manifest.tensors.keys()):
            one, two = read_tensor(expected, name), read_tensor(found, name)
            are_equal = are_equal and one.dtype == two.dtype and torch.equal(_bytes(one), _bytes(two))
            are_finite = are_finite and bool(torch.isfinite(two.to(torch.float32)).all())
    return Weights(are_equal=are_equal, are_finite=are_finite, step=ends[1].step, reference_step=ends[0].step)


def _source(saved: SavedCheckpoint) -> CheckpointSource:
    return CheckpointSource(open_place(saved.path.parent), saved.step)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
