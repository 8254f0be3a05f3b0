"""`production-ml data`: keep datasets by content, and check tables before a model learns from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from production_ml.core.errors import ExitCode, InputFileError
from production_ml.storage.datasets import DatasetStore, DatasetVersion, parse_reference

_TABLE_SUFFIXES = (".csv", ".parquet")
# \b keeps the lines of the example as they are.
_VALIDATE_HELP = """Check a table against rules; the exit code is 4 where a check fails.

\b
A rules file:
  - column: label
    in_set: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
  - columns: "pixel_*"
    between: [0, 16]
  - not_null: "*"
  - rows: {at_least: 1000}

Further checks: unique, matches (a regular expression), column_count.
"""

Store = Annotated[
    Path, typer.Option("--store", envvar="PRODUCTION_ML_DATASETS", help="The directory of the dataset store.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

app = typer.Typer(no_args_is_help=True, help="Datasets: add, list, get and validate.")


def register(cli: typer.Typer) -> None:
    """Add the group to the command line."""
    cli.add_typer(app, name="data")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The dataset's name, such as digits.")],
    path: Annotated[Path, typer.Argument(help="A file or a directory; it is copied, the original stays as it is.")],
    description: Annotated[str, typer.Option(help="A line for people: where the data comes from.")] = "",
    store: Store = Path("datasets"),
    as_json: AsJson = False,
) -> None:
    """Copy data into the store under its content hash.

    The same content again gives the same version; changed content gives the next number.

    Example: production-ml data add digits digits.csv --description "UCI optical digits"
    """
    _print_version(DatasetStore(store).register(name, path, description), as_json=as_json)


@app.command("list")
def list_datasets(store: Store = Path("datasets"), as_json: AsJson = False) -> None:
    """Show all datasets and their versions."""
    versions = DatasetStore(store).list()
    if as_json:
        typer.echo(json.dumps([version.to_dict() for version in versions], indent=2))
        return
    table = Table("Name", "Version", "Content", "Files", "Bytes", "Registered", "Description")
    for version in versions:
        files, size_bytes = str(len(version.files)), f"{version.size_bytes:,}"
        row = (version.name, str(version.version), version.content_hash[:12])
        if version.problem is None:
            table.add_row(*row, files, size_bytes, version.registered_at, version.description)
        else:
            table.add_row(*row, "", "", version.registered_at, f"DAMAGED: {version.problem}")
    Console().print(table)


@app.command()
def get(
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="digits, digits:2 or digits:9f3c41d2")],
    store: Store = Path("datasets"),
    as_json: AsJson = False,
) -> None:
    """Verify a dataset's bytes and print where they are.

    VERSION is a number, `latest`, or the beginning of a content hash.

    Example: head -3 "$(production-ml data get digits:2)"
    """
    dataset = DatasetStore(store).get(*parse_reference(reference))
    typer.echo(json.dumps(dataset.to_dict(), indent=2) if as_json else str(dataset.path))


@app.command(help=_VALIDATE_HELP)
def validate(
    data: Annotated[str, typer.Argument(metavar="PATH|NAME[:VERSION]", help="A .csv or .parquet file, or a dataset.")],
    rules: Annotated[Path, typer.Option(help="A YAML list of rules.")],
    store: Store = Path("datasets"),
    as_json: AsJson = False,
) -> None:
    """Check a table against rules."""
    from production_ml.mlops.data_validation import DataValidator, load_rules, read_table

    validator = DataValidator(load_rules(rules))
    report = validator.validate(read_table(_find_table(data, store)))
    typer.echo(report.to_json() if as_json else str(report))
    if not report.passed:
        raise typer.Exit(ExitCode.REFUSED)


def _print_version(dataset: DatasetVersion, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dataset.to_dict(), indent=2))
    else:
        typer.echo(f"{dataset.name}:{dataset.version}  {dataset.content_hash}  {dataset.path}")


def _find_table(data: str, store: Path) -> Path:
    """A file of that name wins over a dataset; a dataset has to hold exactly one table."""
    if Path(data).suffix in _TABLE_SUFFIXES or Path(data).exists():
        return Path(data)
    dataset = DatasetStore(store).get(*parse_reference(data))
    tables = [name for name in dataset.files if Path(name).suffix in _TABLE_SUFFIXES]
    if len(tables) != 1:
        found = ", ".join(tables) or "none"
        cure = "Name the file itself: production-ml data validate PATH --rules RULES"
        raise InputFileError(dataset.directory, f"must hold one table to validate (found {found})", cure=cure)
    return dataset.directory / tables[0]
