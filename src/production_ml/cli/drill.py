"""`production-ml drill`: a training script under real faults, one after the other."""

from __future__ import annotations

import json
import secrets
import signal
from pathlib import Path
from typing import Annotated

import typer

from production_ml.core.errors import ConfigError, ExitCode

_HELP = """Run a training script under real faults, and say how it comes through each.

It runs once without faults, then once for each fault, in directories of its own; the script needs no change. Per fault:
when it was detected, when training went on, how many steps were redone or lost, and whether the weights at the end are,
bit for bit, those of the run without faults.

\b
Faults:
  kill        SIGKILL to a worker
  oom         the forward pass of a worker does not fit into memory
  nan         the forward pass of a worker gives NaN
  hang        a worker stands still
  slow-rank   a worker gets a tenth of its time, for three seconds
  preempt     SIGTERM to the launcher, and a new start by the scheduler
  disk-full   the disk has no room for half a second
  bit-flip    a bit of the newest checkpoint turns over, then a kill

\b
Examples:
  production-ml drill train.py --steps 300
  production-ml drill --faults kill,bit-flip --repeat 10 --seed 7 train.py
  production-ml drill --nproc-per-node 4 --html drill.html train.py --data {cwd}/data.csv

Each run has a working directory of its own; write {cwd} in the script's arguments for the one you are in. What stands
after the script is the script's.

Exit status: 0 every fault was survived, 1 one was not, 2 bad input, 130 interrupted.
"""


def register(cli: typer.Typer) -> None:
    """Add the command to the command line."""
    cli.command(help=_HELP, context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})(drill)


def drill(
    script: Annotated[Path, typer.Argument(help="The training script.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its arguments.")] = None,
    faults: Annotated[str, typer.Option(help="Which, separated by commas; all by default.")] = "all",
    workers: Annotated[int, typer.Option("--nproc-per-node", help="Workers, as for launch.")] = 2,
    hang_timeout: Annotated[
        str, typer.Option("--hang-timeout", help="As for launch: how long a worker may be silent.")
    ] = "auto:5",
    seed: Annotated[
        int | None, typer.Option(help="Decides where each fault strikes.", show_default="random, and shown")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="How often each fault is caused.")] = 1,
    directory: Annotated[Path, typer.Option("--dir", help="Where the runs are kept; must be new or empty.")] = Path(
        "drill"
    ),
    html: Annotated[Path | None, typer.Option(help="Also write the verdicts as one HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> None:
    """Run a training script under real faults."""
    from production_ml.drill.faults import FAULTS
    from production_ml.drill.presentation import DrillDisplay, html_page
    from production_ml.drill.runner import hold
    from production_ml.drill.target import Target

    names = FAULTS.names() if faults == "all" else [name.strip() for name in faults.split(",")]
    for name in names:
        FAULTS.check(name)
    target = Target(
        script=script,
        arguments=tuple(arguments or ()),
        workers=workers,
        hang_timeout=hang_timeout,
        started_in=Path.cwd(),
    )
    root = _new_directory(directory)
    chosen = secrets.randbelow(10**6) if seed is None else seed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with DrillDisplay(is_quiet=as_json, seed=chosen) as display:
        outcome = hold(target, names, root, seed=chosen, repeat=repeat, observer=display)
    if html is not None:
        html.write_text(html_page(outcome.to_dict()))
    if as_json:
        typer.echo(json.dumps(outcome.to_dict(), indent=2))
    else:
        display.end(outcome, root)
    if not outcome.is_survived:
        raise typer.Exit(ExitCode.FAILED)


def _new_directory(directory: Path) -> Path:
    directory = directory.absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(
            "--dir", str(directory), "is there already", cure=f"Remove it (rm -r {directory}), or give another."
        )
    directory.mkdir(parents=True, exist_ok=True)
    return directory
