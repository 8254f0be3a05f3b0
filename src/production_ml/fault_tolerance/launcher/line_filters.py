"""torchrun's `--duplicate-stdout-filters`: the lines of all ranks that match, in one file per attempt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch.distributed.elastic.multiprocessing.tail_log import TailLog


class LineFilter:
    """Follows one stream of all local ranks while their attempt runs.

    Args:
        sources: What the workers print, by local rank.
        target: Where matching lines are copied to.
        needles: A line matches that holds any of them; without any, nothing is done.
    """

    def __init__(self, sources: Mapping[int, Path], target: Path, needles: Sequence[str]) -> None:
        self._open = ExitStack()
        if not needles:
            return
        copy = self._open.enter_context(target.open("a", buffering=1, errors="replace"))
        tail = TailLog(
            "",
            {local_rank: str(path) for local_rank, path in sources.items()},
            copy,
            {local_rank: f"[{local_rank}]:" for local_rank in sources},
            log_line_filter=lambda line: any(needle in line for needle in needles),
        )
        self._open.callback(tail.start().stop)

    def close(self) -> None:
        """Copy what is left, once the workers have ended."""
        self._open.close()
