"""What a serving runtime must do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from production_ml.mlops.model_package import ModelPackage
from production_ml.serving.tensors import Array


class Runtime(Protocol):
    """A runtime computes batches and nothing else: queues, batching, splitting and errors are the server's.

    It is asked for one batch at a time, so it needs no lock. One object holds one version of one model; a swap opens
    the new one beside the old one and closes the old one when its last batch is answered.
    """

    platform: str
    """How the protocol's metadata names it, such as `onnxruntime_onnx`."""

    def open(self, package: ModelPackage) -> None:
        """Load a package whose files are verified; asked once, before the first batch.

        Raises:
            ServingError: The package is not for this runtime, or cannot be loaded.
        """
        ...

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Compute one batch: all inputs by name, [rows, ...] each, to the outputs in the package's order.

        May raise anything: the batch is then tried again request by request, so a call must leave no trace in the next.
        """
        ...

    def close(self) -> None:
        """Give back memory and threads; no batch is running and none will come."""
        ...
