"""`production-ml report`: one HTML file that tells what a run did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(cli: typer.Typer) -> None:
    """Add the command to the command line."""
    cli.command("report")(report)


def report(
    run_dir: Annotated[
        Path, typer.Argument(help="The run's directory, such as runs/shop/exp-001/20260101-120000-abc123.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write instead of report.html in the run directory."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's figures as JSON and write no file.")] = False,
) -> None:
    """Write a run's report: metrics, throughput, failures and recoveries, checkpoints and events in one HTML file.

    The file works offline, and for a run that is still going on. Its path is printed.

    Example: production-ml report runs/digits/demo/20260101-120000-abc123
    """
    from production_ml.report.run_report import summarize_run, write_report

    if as_json:
        typer.echo(json.dumps(summarize_run(run_dir).to_dict(), indent=2))
    else:
        typer.echo(str(write_report(run_dir, output)))
