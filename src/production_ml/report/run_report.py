"""Writing the report: read the run, decide what to show, write one file."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path

from production_ml.core.clock import SYSTEM_CLOCK
from production_ml.core.errors import MissingDependencyError, RunDirectoryError
from production_ml.monitoring.run_directory import process_start
from production_ml.monitoring.run_log import RunLog, Source
from production_ml.report.outcome import ending
from production_ml.report.page import render
from production_ml.report.story import RunStory, read_story
from production_ml.report.summary import Summary, summarize
from production_ml.report.throughput import Throughput, throughput
from production_ml.storage.durable import replace_durably


def write_report(run_dir: Path | str, output: Path | str | None = None) -> Path:
    """Write the report of a run, running or over, as one HTML file that works offline.

    Args:
        run_dir: The run's directory.
        output: The file to write, `report.html` in the run directory by default. It is replaced as a whole.

    Returns:
        The file that was written.

    Raises:
        MissingDependencyError: plotly is not installed.
        InputFileError: The directory holds no run.
        RunDirectoryError: The file cannot be written.
    """
    plotly_js = _plotly_js()
    story = read_story(RunLog.open(run_dir))
    target = Path(output) if output is not None else story.log.run.report
    rate = throughput(story)
    page = render(story, _summarize(story, rate), rate, plotly_js=plotly_js, made_at=SYSTEM_CLOCK.wall_seconds())
    _write(target, page)
    return target


def summarize_run(run_dir: Path | str) -> Summary:
    """The figures of a run, without the file; plotly is not needed.

    Raises:
        InputFileError: The directory holds no run.
    """
    story = read_story(RunLog.open(run_dir))
    return _summarize(story, throughput(story))


def owners_are_gone(sources: Iterable[Source]) -> bool:
    """Whether every process that the run lived in has ended; one on another node counts as alive."""
    owners = {(source.node, source.owner_pid, source.owner_start) for source in sources}
    here = socket.gethostname()
    return bool(owners) and all(node == here and process_start(pid) != start for node, pid, start in owners)


def _summarize(story: RunStory, rate: Throughput | None) -> Summary:
    return summarize(story, ending(story.log, owners_are_gone=owners_are_gone(story.sources)), rate)


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as missing:
        raise MissingDependencyError("plotly", extra="report", purpose="The run report") from missing
    return str(get_plotlyjs())


def _write(target: Path, page: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(target, page.encode())
    except OSError as problem:
        raise RunDirectoryError(
            target,
            f"the report cannot be written ({problem.strerror})",
            meaning="The run itself is untouched.",
            cure="Choose another place: production-ml report RUN_DIR --output FILE",
        ) from problem
