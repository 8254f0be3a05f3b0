"""A serving runtime without a model, for tests of what stands before it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from production_ml.core.plugins import PluginFamily
from production_ml.mlops.model_package import ModelPackage, TensorSpec, create_package
from production_ml.serving.runtimes import Runtime
from production_ml.serving.tensors import Array

POISON = 666.0
"""A batch with this number in it fails."""


class FakeRuntime:
    """Answers `y = scale · x`, remembers its batches, and fails and waits when it is told to.

    Args:
        scale: Tells versions apart by their answers.
    """

    platform = "fake"

    def __init__(self, scale: float = 2.0) -> None:
        self.scale = scale
        self.batches: list[int] = []
        """The rows of each batch, failed ones too."""
        self.threads: set[str] = set()
        """The names of the threads that it ran in."""
        self.is_open = False
        self.free = threading.Event()
        """Cleared, it lets `run` wait."""
        self.free.set()

    def open(self, package: ModelPackage) -> None:
        self.scale = float(package.metadata.get("scale", self.scale))
        self.is_open = True

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        (x,) = inputs.values()
        self.batches.append(len(x))
        self.threads.add(threading.current_thread().name)
        if not self.free.wait(timeout=30):
            raise TimeoutError("nobody set the fake runtime free")
        if (x == POISON).any():
            raise ValueError("poison")
        return [x * np.asarray(self.scale, x.dtype)]

    def close(self) -> None:
        self.is_open = False


class FakeRuntimes(PluginFamily[Runtime]):
    """A runtime family whose only kind, `fake`, remembers what it made."""

    def __init__(self) -> None:
        super().__init__("serving runtime", entry_points="production_ml.testing.none", table={})
        self.made: list[FakeRuntime] = []

    def load(self, name: str) -> type[Runtime]:  # noqa: ARG002 - the family's signature
        """Whatever the name is, something that makes a fake."""
        return cast("type[Runtime]", self._make)

    def _make(self) -> FakeRuntime:
        self.made.append(FakeRuntime())
        return self.made[-1]


def fake_package(
    directory: Path, *, name: str = "doubler", scale: float = 2.0, width: int = 3, datatype: str = "FP32"
) -> ModelPackage:
    """A package for `FakeRuntime`: input `x` and output `y`, both [rows, width]."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "scale.txt").write_text(str(scale))
    x, y = (TensorSpec(name=tensor, datatype=datatype, shape=(-1, width)) for tensor in ("x", "y"))
    return create_package(
        directory,
        name=name,
        runtime="fake",
        inputs=[x],
        outputs=[y],
        files={"scale.txt": directory / "scale.txt"},
        metadata={"scale": scale},
    )
