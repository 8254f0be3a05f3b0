"""Our format under DCP's own API: a storage writer for `dcp.save` and `dcp.async_save`, a reader for `dcp.load`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch.distributed.checkpoint.api import CheckpointException

from production_ml.core.errors import CheckpointError, ProductionMLError
from production_ml.fault_tolerance.interchange.dcp_reader import VerifiedStorageReader
from production_ml.fault_tolerance.interchange.dcp_writer import VerifiedStorageWriter

__all__ = ["VerifiedStorageReader", "VerifiedStorageWriter", "own_errors"]


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Within it, our errors come out of `dcp.save` and `dcp.load` as they are, such as `DamagedCheckpointError`.

    DCP puts a rank's exception into a `CheckpointException`, which is no `Exception` and ends a script that has not
    thought of it.

    Raises:
        ProductionMLError: The first rank's own error.
        CheckpointError: DCP failed on a rank in another way.
    """
    try:
        yield
    except CheckpointException as failed:
        rank, problem = _first_failure(failed)
        if isinstance(problem, ProductionMLError):
            raise problem from failed
        raise CheckpointError(f"DCP failed on rank {rank}: {type(problem).__name__}: {problem}") from failed


def _first_failure(failed: CheckpointException) -> tuple[int, BaseException]:
    """The first rank that failed, and its exception; one that was wrapped twice is unwrapped twice."""
    rank = min(failed.failures)
    problem = failed.failures[rank][0]
    return (rank, _first_failure(problem)[1]) if isinstance(problem, CheckpointException) else (rank, problem)
