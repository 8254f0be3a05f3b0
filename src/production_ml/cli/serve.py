"""`production-ml serve`: put model versions behind one HTTP endpoint, with a traffic split between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from production_ml.core.errors import InputFileError
from production_ml.core.structured_logging import JsonLog, subscribe, unsubscribe
from production_ml.mlops.mlflow_connection import TRACKING_URI_VARIABLE

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL[=WEIGHT]",
        help="digits (its champion), digits@challenger, digits:3, or the directory of a model package; "
        "with the weight of its traffic.",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="PRODUCTION_ML_TOKEN",
        help="Clients must send it as 'Authorization: Bearer …'. Other users of this machine can read command lines: "
        "better to set the variable.",
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(envvar=TRACKING_URI_VARIABLE, help="The MLflow server or database.  [default: sqlite:///mlflow.db]"),
]


def register(cli: typer.Typer) -> None:
    """Add the command to the command line."""
    cli.command()(serve)


def serve(
    models: Models,
    host: Annotated[str, typer.Option(help="The address to listen on; others than this machine need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8080,
    token: Token = None,
    max_batch_size: Annotated[int, typer.Option(help="Rows that are computed at once.")] = 32,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait for one version; others get a 503.")] = 1024,
    tracking_uri: TrackingUri = None,
    ready_file: Annotated[
        Path | None, typer.Option(help='Holds {"url", "pid", "port"} as JSON while the server is ready.')
    ] = None,
    log_file: Annotated[
        Path | None, typer.Option(help="Start, stop, swaps and errors, a JSON line each, are appended here.")
    ] = None,
) -> None:
    """Serve models over HTTP (Open Inference Protocol v2) until SIGTERM or Ctrl-C.

    Versions of one model share its traffic by weight.

    A request with the header X-Routing-Key meets the same version each time; /v2/models/MODEL/versions/N asks for one.

    SIGHUP looks the aliases up again and swaps what has moved, without failing a request.

    Example: production-ml serve digits@champion=80 digits@challenger=20 --port 8080
    """
    from production_ml.serving import BatchingConfig, ModelServer, ServerConfig
    from production_ml.serving.announcement import announcement

    config = ServerConfig(
        host=host,
        port=port,
        token=token,
        batching=BatchingConfig(max_batch_size=max_batch_size, max_queue=max_queue),
        tracking_uri=tracking_uri,
        ready_file=ready_file,
    )
    server = ModelServer(models, config)
    with _events_in(log_file):
        server.run(on_ready=lambda url: typer.echo(announcement(server, url)))


@contextmanager
def _events_in(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    try:
        log = JsonLog(path)
    except OSError as problem:
        raise InputFileError(path, f"the log file cannot be written ({problem.strerror})") from problem
    subscribe(log.receive)
    try:
        yield
    finally:
        unsubscribe(log.receive)
        log.close()
