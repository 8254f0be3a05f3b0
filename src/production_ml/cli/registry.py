"""`production-ml registry`: look at registered models, and move their aliases through the gate."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from production_ml.mlops.evaluation_gate import CHAMPION, Verdict
from production_ml.mlops.mlflow_connection import TRACKING_URI_VARIABLE
from production_ml.mlops.model_registry import ModelRegistry
from production_ml.mlops.registry_records import ModelInfo, VersionInfo

Name = Annotated[str, typer.Argument(help="The registered model's name.")]
Alias = Annotated[str, typer.Option(help="The alias to move: champion, challenger or one of your own.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        envvar=TRACKING_URI_VARIABLE, help="The MLflow server or database.", show_default="sqlite:///mlflow.db"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

app = typer.Typer(no_args_is_help=True, help="Models: list, show, promote and roll back.")


def register(cli: typer.Typer) -> None:
    """Add the group to the command line."""
    cli.add_typer(app, name="registry")


@app.command("list")
def list_models(tracking_uri: TrackingUri = None, as_json: AsJson = False) -> None:
    """Show all models and who holds their aliases."""
    models = ModelRegistry(tracking_uri).list()
    if as_json:
        typer.echo(json.dumps([model.to_dict() for model in models], indent=2))
        return
    table = Table("Model", "Versions", "Newest", "Aliases")
    for model in models:
        aliases = ", ".join(f"{alias} → {version}" for alias, version in sorted(model.aliases.items()))
        newest = str(model.versions[-1].version) if model.versions else ""
        table.add_row(model.name, str(len(model.versions)), newest, aliases)
    Console().print(table)


@app.command()
def show(name: Name, tracking_uri: TrackingUri = None, as_json: AsJson = False) -> None:
    """Show one model: its versions, what the gates said about each, for which alias, and who held which."""
    model = ModelRegistry(tracking_uri).show(name)
    if as_json:
        typer.echo(json.dumps(model.to_dict(), indent=2))
    else:
        _print_model(model)


@app.command()
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(help="The version that gets the alias.")],
    alias: Alias = CHAMPION,
    tracking_uri: TrackingUri = None,
) -> None:
    """Give an alias to a version, if a passing verdict for this alias about exactly this version is on record.

    Servers that follow the alias pick the version up. Without such a verdict nothing moves and the exit code is 4.

    A verdict that was decided for challenger does not make a champion.

    Example: production-ml registry promote digits 3
    """
    promoted = ModelRegistry(tracking_uri).promote(name, version, alias)
    typer.echo(f"{name}@{alias} is now version {promoted.version} ({promoted.content_hash[:12]}).")


@app.command()
def rollback(name: Name, alias: Alias = CHAMPION, tracking_uri: TrackingUri = None) -> None:
    """Give an alias back to the version that held it before, if its verdict for this alias still passes.

    Example: production-ml registry rollback digits
    """
    restored = ModelRegistry(tracking_uri).rollback(name, alias)
    typer.echo(f"{name}@{alias} is version {restored.version} again ({restored.content_hash[:12]}).")


def _print_model(model: ModelInfo) -> None:
    table = Table("Version", "Aliases", title=model.name)
    table.add_column("Verdicts", no_wrap=True)
    for column in ("Content", "Run", "Registered"):
        table.add_column(column)
    for version in model.versions:
        verdicts = "\n".join(f"{alias}: {_outcome(verdict)}" for alias, verdict in sorted(version.verdicts.items()))
        row = (str(version.version), ", ".join(version.aliases), verdicts or "none", version.content_hash[:12])
        table.add_row(*row, version.run_id[:12], version.registered_at)
    console = Console()
    console.print(table)
    for version in model.versions:
        _print_reasons(console, version)
    for alias, holders in sorted(model.history.items()):
        console.print(f"{alias}: " + " → ".join(str(holder) for holder in holders))


def _print_reasons(console: Console, version: VersionInfo) -> None:
    """Below the table, whose cells are too narrow for sentences."""
    for alias, verdict in sorted(version.verdicts.items()):
        console.print(f"Version {version.version} {_outcome(verdict)} for {alias}:")
        for reason in verdict.reasons:
            # A metric's name may have brackets, which rich would take for markup.
            console.print(f"  {reason}", markup=False)


def _outcome(verdict: Verdict) -> str:
    return "passed" if verdict.passed else "refused"
