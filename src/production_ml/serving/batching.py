"""The queue and the batcher: whatever waits when the runtime is free becomes the next batch; nobody waits for more."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.core.errors import ConfigError
from production_ml.core.structured_logging import log_event
from production_ml.serving.problems import ModelFailedError, QueueFullError
from production_ml.serving.tensors import Array

Inputs: TypeAlias = Mapping[str, Array]
Outputs: TypeAlias = Sequence[Array]
Compute: TypeAlias = Callable[[Inputs], Outputs]

_LOG_EVERY_SECONDS: Final = 10.0
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchingConfig:
    """How much is computed at once, and how much may wait."""

    max_batch_size: int = 32
    """Rows in one call of the runtime. A request with more is computed in pieces."""
    max_queue: int = 1024
    """Requests that may wait for one version; what comes on top is turned away with status 503."""

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ConfigError("max_batch_size", self.max_batch_size, "must be at least 1 row")
        if self.max_queue < 1:
            raise ConfigError("max_queue", self.max_queue, "must be at least 1 request")


@dataclass(slots=True, eq=False)
class _Waiting:
    inputs: Inputs
    rows: int
    row_shapes: tuple[tuple[int, ...], ...]
    """Only requests whose rows have the same shapes can share a batch."""
    answer: asyncio.Future[Outputs]


class Batcher:
    """One queue before one version of a model. All methods belong to the event loop's thread.

    Args:
        compute: Runs one batch; called for one batch at a time.
        config: The limits.
        executor: Where batches run, so that the loop stays free.
        in_loop: Run batches in the event loop itself, which is for models that take less time than a hop to another
            thread and back. A request of more rows than fit a batch still goes to the executor.
        observe_batch: Told the rows of each batch.
        name: Who it is, in log events.
        clock: For the pause between two log events.
    """

    def __init__(
        self,
        compute: Compute,
        config: BatchingConfig,
        *,
        executor: Executor,
        in_loop: bool = False,
        observe_batch: Callable[[int], None] | None = None,
        name: str = "",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._compute = compute
        self._config = config
        self._executor = executor
        self._in_loop = in_loop
        self._observe_batch = observe_batch or _no_observer
        self._name = name
        self._waiting: deque[_Waiting] = deque()
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._failures = _FailureLog(name, clock)

    @property
    def depth(self) -> int:
        """Requests that wait; those in the running batch no longer do."""
        return len(self._waiting)

    def submit(self, inputs: Inputs, rows: int) -> asyncio.Future[Outputs]:
        """Queue a request; to take it back, cancel the future or give it an exception.

        Args:
            inputs: All inputs of the model by name, [rows, ...] each.
            rows: At least 1.

        Returns:
            The outputs, [rows, ...] each; or a ModelFailedError.

        Raises:
            QueueFullError: Too many are waiting.
        """
        if len(self._waiting) >= self._config.max_queue:
            self._drop_withdrawn()
        if len(self._waiting) >= self._config.max_queue:
            raise QueueFullError(len(self._waiting))
        loop = asyncio.get_running_loop()
        shapes = tuple(array.shape[1:] for array in inputs.values())
        request = _Waiting(inputs, rows, shapes, loop.create_future())
        self._waiting.append(request)
        if not self._busy:
            self._busy = True
            self._idle.clear()
            # Not at once: what else arrived in this turn of the loop comes along.
            loop.call_soon(self._start_batch)
        return request.answer

    async def drain(self) -> None:
        """Wait until nothing waits and nothing runs."""
        await self._idle.wait()

    def _drop_withdrawn(self) -> None:
        self._waiting = deque(request for request in self._waiting if not request.answer.done())

    def _start_batch(self) -> None:
        batch = self._next_batch()
        if not batch:
            self._busy = False
            self._idle.set()
            return
        rows = sum(request.rows for request in batch)
        self._observe_batch(rows)
        requests = [(request.inputs, request.rows) for request in batch]
        if self._in_loop and rows <= self._config.max_batch_size:
            self._finish_batch(batch, compute_batch(self._compute, requests, self._config.max_batch_size))
            return
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(
            self._executor, compute_batch, self._compute, requests, self._config.max_batch_size
        )
        running.add_done_callback(lambda done: self._finish_batch(batch, done.result()))

    def _next_batch(self) -> list[_Waiting]:
        """From the front, as long as it fits: nobody is overtaken."""
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting:
            request = self._waiting[0]
            if request.answer.done():
                self._waiting.popleft()
                continue
            rows += request.rows
            if batch and (rows > self._config.max_batch_size or request.row_shapes != batch[0].row_shapes):
                break
            batch.append(self._waiting.popleft())
        return batch

    def _finish_batch(self, batch: Sequence[_Waiting], answers: Sequence[Outputs | BaseException]) -> None:
        try:
            for request, answer in zip(batch, answers, strict=True):
                self._hand_out(request, answer)
        finally:
            # A turn of the loop between two batches: the answers go out and the next requests come in.
            asyncio.get_running_loop().call_soon(self._start_batch)

    def _hand_out(self, request: _Waiting, answer: Outputs | BaseException) -> None:
        if isinstance(answer, BaseException):
            self._failures.add(answer)
        if request.answer.done():
            return
        if isinstance(answer, BaseException):
            request.answer.set_exception(ModelFailedError(answer))
        else:
            request.answer.set_result(answer)


def compute_batch(
    compute: Compute, requests: Sequence[tuple[Inputs, int]], max_rows: int
) -> list[Outputs | BaseException]:
    """Compute requests together, and where that fails each alone, so that one bad request fails only itself.

    Args:
        compute: The runtime.
        requests: Inputs and rows of each; their rows have the same shapes.
        max_rows: For one call.

    Returns:
        For each request its outputs, or what the runtime raised on it alone.
    """
    sizes = [rows for _, rows in requests]
    try:
        outputs = _in_pieces(compute, _together([inputs for inputs, _ in requests]), sum(sizes), max_rows)
    except BaseException as problem:  # noqa: BLE001 - the plug-in boundary, logged by the batcher; a panic in Rust is none
        if len(requests) == 1:
            return [problem]
        return [answer for request in requests for answer in compute_batch(compute, [request], max_rows)]
    return _apart(outputs, sizes)


def _together(inputs: Sequence[Inputs]) -> Inputs:
    if len(inputs) == 1:
        return inputs[0]
    return {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}


def _in_pieces(compute: Compute, inputs: Inputs, rows: int, max_rows: int) -> Outputs:
    if rows <= max_rows:
        return _checked(compute(inputs), rows)
    pieces = [
        _checked(compute({name: array[start : start + max_rows] for name, array in inputs.items()}), size)
        for start in range(0, rows, max_rows)
        for size in [min(max_rows, rows - start)]
    ]
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


def _checked(outputs: Outputs, rows: int) -> Outputs:
    """Rows that went astray would be handed to the wrong client."""
    for output in outputs:
        if output.shape[:1] != (rows,):
            raise ValueError(f"an output of shape {list(output.shape)} came back for {rows} rows")
    return outputs


def _apart(outputs: Outputs, sizes: Sequence[int]) -> list[Outputs | BaseException]:
    if len(sizes) == 1:
        return [outputs]
    ends = np.cumsum(sizes)
    return [[output[end - size : end] for output in outputs] for size, end in zip(sizes, ends.tolist(), strict=True)]


def _no_observer(_rows: int) -> None:
    """Nobody counts."""


class _FailureLog:
    """Logs the first failure and then sums up: a client that repeats a bad request must not fill the disk."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._unlogged = 0
        self._next_seconds = 0.0

    def add(self, problem: BaseException) -> None:
        self._unlogged += 1
        now = self._clock.monotonic_seconds()
        if now < self._next_seconds:
            return
        message = f"{self._name}: the model failed on {self._unlogged} request(s): {problem}"
        failures, self._unlogged, self._next_seconds = self._unlogged, 0, now + _LOG_EVERY_SECONDS
        log_event(_LOGGER, "model_failed", message, level=logging.WARNING, served=self._name, failures=failures)
