"""`production-ml checkpoint`: see, check, compare, convert and prune checkpoints; one file per command."""

from __future__ import annotations

import typer

from production_ml.cli.checkpoint.comparing import diff
from production_ml.cli.checkpoint.exporting import export
from production_ml.cli.checkpoint.importing import import_checkpoint
from production_ml.cli.checkpoint.listing import list_checkpoints
from production_ml.cli.checkpoint.pruning import prune
from production_ml.cli.checkpoint.showing import show
from production_ml.cli.checkpoint.verifying import verify

app = typer.Typer(
    no_args_is_help=True,
    help="Checkpoints: list, show, verify, export, import, diff and prune.",
    rich_markup_mode="rich",
)
app.command("list")(list_checkpoints)
app.command()(show)
app.command()(verify)
app.command()(export)
app.command("import")(import_checkpoint)
app.command()(diff)
app.command()(prune)


def register(cli: typer.Typer) -> None:
    """Add the group to the command line."""
    cli.add_typer(app, name="checkpoint")
