"""The composition root: puts the command groups together, and turns errors into messages and exit codes."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Final, NoReturn

import typer

from production_ml import __version__
from production_ml.core.errors import ExitCode, MissingDependencyError, ProductionMLError

_GROUPS: Final = ("demo", "launch", "report", "drill", "checkpoint", "monitor", "data", "registry", "serve")
_EPILOG: Final = (
    "Exit codes: 0 done, 1 failed, 2 bad input, 3 damaged data, 4 refused by a check or the gate, "
    "5 an optional package is missing, 130 interrupted."
)


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="production-ml",
        help="From a PyTorch training script to a production system. Begin with: production-ml demo",
        epilog=_EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_options)
    for group in _GROUPS:
        import_module(f"production_ml.cli.{group}").register(app)
    return app


def main() -> None:
    """The entry point `production-ml`."""
    try:
        build()()
    except ProductionMLError as problem:
        _end_with(problem)
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        # Many rooms need it, and some commands of theirs do not: so it is missed where it is used.
        _end_with(MissingDependencyError("torch", extra="torch", purpose="This command"))
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # `production-ml … | head` has seen enough; Python would complain again while it closes stdout.
        sys.stderr.close()
        sys.exit(ExitCode.OK)
    except OSError as problem:
        _end_with(refusal(problem))


def refusal(problem: OSError) -> ProductionMLError:
    """What the system refused, as an error with a message for people."""
    named = f"{problem.filename}: " if problem.filename is not None else ""
    cure = ""
    if isinstance(problem, PermissionError):
        cure = "Give this user the right to it (a store: credentials), or name another place."
    elif isinstance(problem, ConnectionError | TimeoutError):
        cure = "See that the server runs and that its address is right, then try again."
    return ProductionMLError(f"{named}{problem.strerror or problem}", cure=cure)


def _end_with(problem: ProductionMLError) -> NoReturn:
    typer.echo(f"Error: {problem}", err=True)
    sys.exit(problem.exit_code)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"production-ml {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What holds for every command."""


if __name__ == "__main__":
    main()
