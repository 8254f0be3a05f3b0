"""One version of a model, loaded and warm behind its queue."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.core.errors import ProductionMLError, ServingError
from production_ml.core.plugins import PluginFamily
from production_ml.core.structured_logging import log_event
from production_ml.mlops.model_package import ModelPackage, TensorSpec
from production_ml.serving.batching import Batcher, BatchingConfig, Inputs, Outputs
from production_ml.serving.metrics import ServingMetrics, VersionMetrics
from production_ml.serving.references import ModelVersion
from production_ml.serving.runtimes import Runtime
from production_ml.serving.tensors import DATATYPES, datatype_of

# docs/decisions/one-queue-before-the-model.md has the measurements.
IN_LOOP_BELOW_SECONDS: Final = 0.001
_WARM_UP_RUNS: Final = 3
_LOGGER = logging.getLogger(__name__)


class LoadedVersion:
    """Answers requests to one version; made by `load_version`, closed when it is swapped out.

    Args:
        source: What was loaded.
        runtime: Open and warm.
        config: Of the batcher.
        in_loop: See `Batcher`.
        metrics: Counts its batches and requests.
    """

    def __init__(
        self,
        source: ModelVersion,
        runtime: Runtime,
        config: BatchingConfig,
        *,
        in_loop: bool,
        metrics: VersionMetrics,
    ) -> None:
        self.source = source
        self.metrics = metrics
        self.model = source.package.name
        self.version = source.version
        self.inputs = source.package.inputs
        self.outputs = source.package.outputs
        self.output_names = [spec.name for spec in self.outputs]
        self.platform = runtime.platform
        self.in_loop = in_loop
        self._runtime = runtime
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"{self.model}-{self.version}")
        self._batcher = Batcher(
            runtime.run,
            config,
            executor=self._executor,
            in_loop=in_loop,
            observe_batch=metrics.observe_batch,
            name=f"{self.model} version {self.version}",
        )

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._batcher.depth

    def submit(self, inputs: Inputs, rows: int) -> asyncio.Future[Outputs]:
        """See `Batcher.submit`."""
        return self._batcher.submit(inputs, rows)

    async def close(self) -> None:
        """Answer what is queued, then give the model back."""
        await self._batcher.drain()
        self._executor.shutdown()
        # Large weights take a while to give back, and others are being answered.
        await asyncio.to_thread(self._runtime.close)


def load_version(
    source: ModelVersion,
    config: BatchingConfig,
    runtimes: PluginFamily[Runtime],
    *,
    metrics: ServingMetrics,
    clock: Clock = SYSTEM_CLOCK,
) -> LoadedVersion:
    """Open a package in its runtime and run it on zeros, so that the first request meets a model that works.

    Takes as long as the model takes to load: an event loop calls it in a thread.

    Raises:
        UnknownPluginError: There is no runtime of that name.
        ServingError: It cannot be loaded, does not run, or does not answer as its package says.
    """
    package = source.package
    _check_interface(package)
    runtime = runtimes.load(package.runtime)()
    try:
        runtime.open(package)
        in_loop = _warm_up(runtime, package, config.max_batch_size, clock) <= IN_LOOP_BELOW_SECONDS
    except Exception as problem:
        runtime.close()
        if isinstance(problem, ProductionMLError):
            raise
        raise ServingError(f"{package.directory}: the model does not run: {problem}") from problem
    counters = metrics.of_version(package.name, source.version)
    return LoadedVersion(source, runtime, config, in_loop=in_loop, metrics=counters)


def _check_interface(package: ModelPackage) -> None:
    for spec in (*package.inputs, *package.outputs):
        if spec.datatype not in DATATYPES:
            known = ", ".join(DATATYPES)
            raise ServingError(f"{package.directory}: {spec.name} is {spec.datatype}; what can be served is {known}")
        if spec.shape[:1] != (-1,):
            raise ServingError(
                f"{package.directory}: {spec.name} has the shape {list(spec.shape)}, whose first dimension is fixed.",
                meaning="It cannot be served: a batch has as many rows as there are requests.",
                cure="Export the model with a dynamic first dimension.",
            )


def _warm_up(runtime: Runtime, package: ModelPackage, max_rows: int, clock: Clock) -> float:
    """The seconds that a full batch takes; infinite where the size of a row is the client's choice."""
    free_sizes = any(size == -1 for spec in package.inputs for size in spec.shape[1:])
    try:
        seconds = [_timed_run(runtime, package, rows, clock) for rows in (1, max_rows) for _ in range(_WARM_UP_RUNS)]
    except ServingError:
        raise
    except Exception as problem:
        if not free_sizes:
            raise
        # Some models have a smallest size, and the package does not tell it.
        message = f"{package.name}: could not be warmed up with sizes of 1 ({problem}); the first request may be slow"
        log_event(_LOGGER, "warm_up_failed", message, level=logging.WARNING, model=package.name)
        return math.inf
    return math.inf if free_sizes else min(seconds[_WARM_UP_RUNS:])


def _timed_run(runtime: Runtime, package: ModelPackage, rows: int, clock: Clock) -> float:
    inputs = {spec.name: _zeros(spec, rows) for spec in package.inputs}
    began = clock.monotonic_seconds()
    outputs = runtime.run(inputs)
    took = clock.monotonic_seconds() - began
    _check_outputs(package, outputs, rows)
    return took


def _zeros(spec: TensorSpec, rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    return np.zeros((rows, *(1 if size == -1 else size for size in spec.shape[1:])), DATATYPES[spec.datatype])


def _check_outputs(package: ModelPackage, outputs: Outputs, rows: int) -> None:
    specs: Sequence[TensorSpec] = package.outputs
    found = [(datatype_of(output), output.shape) for output in outputs]
    fits = len(found) == len(specs) and all(
        datatype == spec.datatype and _shape_fits(spec.shape, shape, rows)
        for spec, (datatype, shape) in zip(specs, found, strict=True)
    )
    if not fits:
        described = [f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs]
        answered = [f"{datatype} {list(shape)}" for datatype, shape in found]
        raise ServingError(
            f"{package.directory}: for {rows} row(s) the model answers {answered}, but the package says {described}.",
            meaning="It is not served.",
            cure="Export it again; every output has one row for each row of the input.",
        )


def _shape_fits(wanted: Sequence[int], got: Sequence[int], rows: int) -> bool:
    return (
        len(wanted) == len(got)
        and got[0] == rows
        and all(size in (-1, found) for size, found in zip(wanted[1:], got[1:], strict=True))
    )
