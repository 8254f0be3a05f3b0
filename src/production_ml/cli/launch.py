"""`production-ml launch`: torchrun's flags, with workers that come back."""

from __future__ import annotations

from typing import Annotated

import typer

# \b keeps the lines of a block as they are.
_HELP = """Run a training script in several workers, and start them again when one fails.

All of torchrun's flags and PET_* variables are taken, in both spellings; what stands after the script is the script's.

\b
Examples:
  production-ml launch --nproc-per-node 2 train.py --epochs 10
  production-ml launch --nproc-per-node gpu --max-restarts 10 -m shop.train
  production-ml launch --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d \\
    --rdzv-endpoint node1:29400 --rdzv-id job7 --run-dir /shared/job7 train.py

\b
Our own flags:
  --run-dir DIR         where the run log and the workers' output are kept;
                        the same DIR again continues that run
                        (default: runs/SCRIPT/NEW-ID)
  --hang-timeout T      auto, SECONDS without a step, or off: a rank that hangs
                        is named and ended; auto learns the step time, and
                        auto:SECONDS sets its floor, 30 s (default: off)
  --quiet               no lines of the launcher's own on stderr

\b
Of torchrun's flags, those that matter most (all: production-ml launch -h):
  --nproc-per-node N    workers on this node; also cpu, gpu, auto (default: 1)
  --nnodes N, MIN:MAX   nodes; one needs no rendezvous flags (default: 1)
  --max-restarts N      starts after a failure (default: 3; torchrun's is 0)
  --shutdown-timeout S  seconds from SIGTERM to SIGKILL (default: 30)
  -m, --no-python       the script is a module, or any program
  --redirects 1|2|3     keeps stdout, stderr or both off the terminal; the
                        files in DIR/logs/attempt-NNN have all output anyway

Workers find their place in RANK, LOCAL_RANK, WORLD_SIZE and so on; PRODUCTION_ML_ATTEMPT counts their starts from 0.

Exit status: 0 done, 1 the restarts are used up, 2 bad input, 130 after SIGINT, 143 after SIGTERM; these two end all
workers first.
"""


def register(cli: typer.Typer) -> None:
    """Add the command to the command line."""
    # Parsing stops at the first word that is no flag of Typer's, and that is every one but --help: the flags are
    # torchrun's to parse, and those after the script are the script's.
    settings = {"ignore_unknown_options": True, "allow_interspersed_args": False}
    cli.command(help=_HELP, context_settings=settings)(launch)


def launch(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[TORCHRUN FLAGS] SCRIPT [ITS ARGUMENTS]")] = None,
) -> None:
    """Run a training script in several workers."""
    from production_ml.fault_tolerance.launcher import launch as run_workers

    raise typer.Exit(run_workers(arguments or []))
