"""`production-ml demo`: the whole path on handwritten digits, with a real kill in the middle."""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from production_ml.core.errors import ExitCode

if TYPE_CHECKING:
    from production_ml.demo.story import Story


def register(cli: typer.Typer) -> None:
    """Add the command to the command line."""
    cli.command()(demo)


def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where everything goes; may be an earlier demo's.")] = Path(
        "demo"
    ),
    seed: Annotated[
        int | None,
        typer.Option(help="Decides which worker is killed, and when.", show_default="random, and shown"),
    ] = None,
    keep_serving: Annotated[bool, typer.Option("--keep-serving", help="Serve until Ctrl-C instead of ending.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The server's port; 0 takes a free one.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measured figures as JSON.")] = False,
) -> None:
    """Data, training that survives a SIGKILL, evaluation, gate, registry, serving and report, in about a minute.

    Everything is real: scikit-learn's scans of handwritten digits, two DDP workers of which one is killed, MLflow's
    registry, an HTTP server under load. The exit status is 0 only if every station did what it claims.

    Example: production-ml demo --keep-serving --port 8080
    """
    from production_ml.demo import require_packages

    require_packages()
    from production_ml.demo.children import Children
    from production_ml.demo.display import open_display
    from production_ml.demo.story import Story
    from production_ml.demo.workspace import Workspace
    from production_ml.monitoring.run_directory import new_run_id

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=as_json)
    workspace = Workspace(directory.absolute(), new_run_id())
    began = time.monotonic()
    workspace.create()
    with Children(workspace.path) as children:
        try:
            with open_display(console) as display:
                chosen = secrets.randbelow(10**6) if seed is None else seed
                story = Story(workspace, display, children, seed=chosen, port=port)
                report = story.tell()
            _print_end(console, story, report, time.monotonic() - began)
            if as_json:
                typer.echo(json.dumps(asdict(story.outcome), indent=2))
            if keep_serving:
                console.print(f"Serving at [bold]{story.url}[/] until Ctrl-C.")
                _serve_until_interrupted(console, story)
        except KeyboardInterrupt:
            console.print(f"Interrupted; every process of the demo is being ended. What there is lies in {directory}.")
            raise typer.Exit(ExitCode.INTERRUPTED) from None


def _serve_until_interrupted(console: Console, story: Story) -> None:
    try:
        story.server.process.wait()
    except KeyboardInterrupt:
        console.print("Stopped; the server is being ended.")
    else:
        story.server.require_success()


def _print_end(console: Console, story: Story, report: Path, seconds: float) -> None:
    """Where everything is, and what to look at next."""
    figures = story.outcome.figures
    run_dir = Path(figures["run_dir"]).relative_to(story.outcome.workspace)
    console.print(f"\nThe demo took [bold]{seconds:.0f} s[/]. Everything is in [bold]{story.outcome.workspace}[/]:")
    for what, where in (
        ("the report, for a browser", report.relative_to(story.outcome.workspace)),
        ("the run: log, checkpoints, package", run_dir),
        ("datasets", "datasets"),
        ("experiments and models", "mlflow.db"),
    ):
        console.print(f"  {where!s:52} {what}", highlight=False, soft_wrap=True)
    console.print("\nTo look further:")
    for command in next_commands(Path(story.outcome.workspace), run_dir):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)


def next_commands(workspace: Path, run_dir: Path) -> list[str]:
    """Commands that work as they stand after a demo, in a shell that has not activated its environment too."""
    bin_directory = Path(sys.executable).parent
    is_found = shutil.which("production-ml") == str(bin_directory / "production-ml")
    return [
        *([] if is_found else [f"export PATH={shlex.quote(str(bin_directory))}:$PATH"]),
        f"cd {shlex.quote(str(workspace))}",
        f"production-ml report {run_dir}",
        f"production-ml checkpoint list {run_dir / 'checkpoints'}",
        "production-ml registry show digits",
        "production-ml data list",
        "mlflow ui --backend-store-uri sqlite:///mlflow.db",
        "production-ml serve digits@champion=80 digits@challenger=20",
    ]
