"""What differs between two checkpoints: names, types and shapes, then values, by hashes first and numbers after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import torch

from production_ml.fault_tolerance.checkpoint_format.manifest import Manifest, TensorEntry
from production_ml.fault_tolerance.interchange.source import CheckpointSource
from production_ml.fault_tolerance.interchange.tensor_source import read_tensor

Kind: TypeAlias = Literal["only in A", "only in B", "shape", "dtype", "values"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorDifference:
    """One tensor that is not the same in both."""

    name: str
    kind: Kind
    a: str
    """How A describes it; empty where A has none."""
    b: str
    elements: int | None = None
    """How many elements differ, for values; bits count, so that 0.0 and -0.0 differ, and equal NaNs do not."""
    of: int | None = None
    greatest: float | None = None
    """The greatest |A - B| where both are numbers; None where NaN or infinity stands on one side alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """All that differs between two checkpoints."""

    tensors: tuple[TensorDifference, ...]
    values: tuple[str, ...]
    """Paths in the state that is not tensors, such as `extra.epoch`."""
    same_tensors: int

    @property
    def is_empty(self) -> bool:
        """Whether the two hold the same state; step, time and metrics do not count."""
        return not self.tensors and not self.values

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON."""
        return {**asdict(self), "same": self.is_empty}


def compare(a: CheckpointSource, b: CheckpointSource) -> Difference:
    """Compare two checkpoints, of whatever world sizes.

    Tensors that were cut into the same boxes and have the same hashes are not read.

    Args:
        a: The one.
        b: The other.

    Raises:
        DamagedCheckpointError: A tensor that has to be read is not what was written.
    """
    found: list[TensorDifference] = []
    names = list(dict.fromkeys([*a.manifest.tensors, *b.manifest.tensors]))
    for name in names:
        difference = _compare_tensor(a, b, name)
        if difference is not None:
            found.append(difference)
    values = tuple(_unequal(_values(a.manifest), _values(b.manifest)))
    return Difference(tensors=tuple(found), values=values, same_tensors=len(names) - len(found))


def _compare_tensor(a: CheckpointSource, b: CheckpointSource, name: str) -> TensorDifference | None:
    in_a, in_b = a.manifest.tensors.get(name), b.manifest.tensors.get(name)
    if in_a is None or in_b is None:
        kind: Kind = "only in B" if in_a is None else "only in A"
        return TensorDifference(name=name, kind=kind, a=_described(in_a), b=_described(in_b))
    if (in_a.shape, in_a.dtype) != (in_b.shape, in_b.dtype):
        kind = "shape" if in_a.shape != in_b.shape else "dtype"
        return TensorDifference(name=name, kind=kind, a=_described(in_a), b=_described(in_b))
    if _hashes(in_a) == _hashes(in_b):
        return None
    return _compare_elements(name, in_a, read_tensor(a, name), read_tensor(b, name))


def _compare_elements(name: str, entry: TensorEntry, a: torch.Tensor, b: torch.Tensor) -> TensorDifference | None:
    elements = int(_bits_differ(a, b).sum())
    if not elements:
        return None
    described = _described(entry)
    return TensorDifference(
        name=name, kind="values", a=described, b=described, elements=elements, of=a.numel(), greatest=_greatest(a, b)
    )


def _bits_differ(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """For each element whether its bytes differ."""
    size = a.element_size()
    differ = (a.reshape(-1).view(torch.uint8) != b.reshape(-1).view(torch.uint8)).view(-1, size)
    return differ.any(dim=1)


def _greatest(a: torch.Tensor, b: torch.Tensor) -> float | None:
    wide = torch.complex128 if a.is_complex() else torch.float64
    gap = (a.to(wide) - b.to(wide)).abs()
    # The same infinity or NaN on both sides is no gap.
    gap = gap[_bits_differ(a, b).view(gap.shape)]
    greatest = float(gap.max())
    return greatest if greatest < float("inf") else None


def _hashes(entry: TensorEntry) -> list[Any]:
    """Equal for tensors with equal bytes that were cut alike."""
    return sorted((chunk.offsets, chunk.shape, chunk.hashes) for chunk in entry.chunks)


def _described(entry: TensorEntry | None) -> str:
    return "" if entry is None else f"{entry.dtype} {list(entry.shape)}"


def _values(manifest: Manifest) -> Any:
    by_rank = {f"rank {rank}": value for rank, value in enumerate(manifest.rank_values)}
    return {**manifest.values, **by_rank}


def _unequal(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """The paths at which two JSON trees differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            inner = f"{path}.{key}" if path else str(key)
            if key in a and key in b:
                yield from _unequal(a[key], b[key], inner)
            else:
                yield f"{inner} (only in {'A' if key in a else 'B'})"
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and any(isinstance(item, dict) for item in a):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _unequal(one, other, f"{path}.{index}")
    elif a != b:
        yield f"{path}: {_short(a)} / {_short(b)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
