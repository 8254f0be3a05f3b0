"""`production-ml monitor`: read a run's log, as it was and as it grows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from production_ml.core.clock import iso_utc
from production_ml.core.errors import ExitCode

if TYPE_CHECKING:
    from production_ml.monitoring.run_log import SourcedRecord

_POLL_SECONDS = 0.2

app = typer.Typer(no_args_is_help=True, help="Runs: read what they log.")


def register(cli: typer.Typer) -> None:
    """Add the group to the command line."""
    cli.add_typer(app, name="monitor")


@app.command()
def tail(
    run_dir: Annotated[Path, typer.Argument(help="The run directory, such as runs/my-project/exp-001/20260131-….")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends on this machine, or Ctrl-C.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many of the newest records to begin with.")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per record.")] = False,
) -> None:
    """Show the newest metrics and events of all ranks, in time order.

    Example: production-ml monitor tail runs/my-project/exp-001/20260131-120000-a1b2c3 --follow
    """
    from production_ml.monitoring.run_directory import RunDirectory
    from production_ml.monitoring.run_log import RunLogFollower
    from production_ml.monitoring.run_watch import RunWatch
    from production_ml.monitoring.sinks.jsonl import line

    run = RunDirectory(run_dir)
    run.identity()  # says so if there is no run here
    follower, watch = RunLogFollower(run), RunWatch(run)
    show = line if as_json else text
    newest = follower.poll()
    for sourced in newest[max(0, len(newest) - lines) :]:
        typer.echo(show(sourced))
    try:
        is_over = not follow
        while not is_over:
            is_over = watch.is_over()  # asked before reading, so that what was written until then is shown
            for sourced in follower.poll():
                typer.echo(show(sourced))
            if not is_over:
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def text(sourced: SourcedRecord) -> str:
    """One record as one line for people; times are UTC."""
    from production_ml.monitoring.run_log import MetricsRecord

    record, source = sourced.record, sourced.source
    who = f"rank {source.rank}" if source.role == "rank" else source.role
    restarts = f" attempt {source.attempt}" if source.attempt else ""
    step = f" step {record.step}" if record.step is not None else ""
    if isinstance(record, MetricsRecord):
        what = "  ".join(f"{name}={value:.6g}" for name, value in record.values.items())
    else:
        level = "" if record.level == "info" else f"{record.level.upper()} "
        facts = "".join(f"  {name}={value}" for name, value in record.fields.items() if name != "traceback")
        what = f"{level}{record.name}{f': {record.message}' if record.message else ''}{facts}"
    return f"{iso_utc(record.wall_seconds)[11:]} {who}{restarts}{step}  {what}"
