"""The model server: what it serves, how it starts, swaps and stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware

from production_ml.core.errors import ExitCode, InputFileError, ServingError
from production_ml.core.plugins import PluginFamily
from production_ml.core.structured_logging import log_event
from production_ml.serving.access import Door
from production_ml.serving.config import ServerConfig
from production_ml.serving.endpoints import EXCEPTION_HANDLERS, routes
from production_ml.serving.http_server import HttpServer, listen, url_of
from production_ml.serving.inference import InferEndpoint
from production_ml.serving.loaded_version import LoadedVersion, load_version
from production_ml.serving.metrics import ServingMetrics
from production_ml.serving.references import ModelVersion, WeightedReference, parse_references, resolve
from production_ml.serving.runtimes import RUNTIMES, Runtime
from production_ml.serving.served_models import ServedModels, Slot, put_behind
from production_ml.storage.durable import replace_durably

_ABANDONED: Final = "the server ends at once, and requests that were accepted are not answered"
_LOGGER = logging.getLogger(__name__)


class ModelServer:
    """Serves model versions over HTTP (Open Inference Protocol v2), several of one name by a traffic split.

        ModelServer(["digits@champion=80", "digits@challenger=20"], ServerConfig(port=8080)).run()

    Each version has one queue; whatever waits when its runtime is free becomes the next batch. `swap` and `reload` put
    another version behind a slot without failing a request; SIGHUP calls `reload`. SIGTERM and SIGINT stop accepting,
    answer what was accepted, and return from `run`.

    Args:
        models: What to serve, each `NAME@ALIAS`, `NAME:VERSION`, `NAME` (its champion) or the path of a package,
            optionally followed by `=WEIGHT`. What stands before the weight names the slot.
        config: Where to listen, who may ask, how much is taken.
        runtimes: The runtime family, for tests.

    Raises:
        ConfigError: A reference has another form, is there twice, or only some have weights.
    """

    def __init__(
        self,
        models: Sequence[str | Path],
        config: ServerConfig | None = None,
        *,
        runtimes: PluginFamily[Runtime] = RUNTIMES,
    ) -> None:
        self.config = config or ServerConfig()
        self._references = parse_references([str(model) for model in models])
        self._runtimes = runtimes
        self._models = ServedModels()
        self.metrics = ServingMetrics(self._models.queue_depths)
        self._changing = asyncio.Lock()
        self._stopping = False
        self._reloads: set[asyncio.Task[Any]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self.app = self._make_app()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What is served; empty before `load`."""
        return tuple(self._models)

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered by a model."""
        return bool(self.slots) and not self._stopping

    def share(self, slot: Slot) -> float:
        """The part of its model's traffic that `slot` gets, 0 to 1."""
        model = self._models.model(slot.version.model)
        return model.shares[model.slots.index(slot)]

    def load(self) -> None:
        """Fetch, verify, load and warm all versions; `run` and the app's start do it if it was not done.

        Raises:
            RegistryError: The registry has no such model, version or alias.
            InputFileError: A package cannot be read.
            DamagedFileError: A package is not what it was.
            ServingError: A model cannot be loaded, does not run, or does not fit the others of its name.
            ConfigError: The weights of a model leave no version to answer.
        """
        if not self.slots:
            self._models.replace([self._load_slot(reference) for reference in self._references])

    def run(self, on_ready: Callable[[str], None] | None = None) -> None:
        """Serve until SIGTERM or SIGINT; returns when what was accepted has been answered.

        Where that takes longer than 25 s, or a second signal comes, the process ends at once with exit code 1: the
        thread of a batch that hangs cannot be ended, and Python would wait for it.

        Args:
            on_ready: Called with the URL once requests are accepted.

        Raises:
            ServingError: The address cannot be listened on; further see `load`.
        """
        with contextlib.ExitStack() as at_exit:
            listener = at_exit.enter_context(listen(self.config.host, self.config.port))
            ready_file = self.config.ready_file
            if ready_file is not None:
                _remove_ready_file(ready_file)
                at_exit.callback(_remove_ready_file, ready_file)
            self.load()
            url = url_of(listener)
            port = listener.getsockname()[1]

            def announce() -> None:
                if ready_file is not None:
                    _write_ready_file(ready_file, url, port)
                self._log_start(url)
                if on_ready is not None:
                    on_ready(url)

            def give_up() -> None:
                log_event(_LOGGER, "stop_abandoned", _ABANDONED, level=logging.ERROR)
                try:
                    at_exit.close()
                finally:
                    os._exit(ExitCode.FAILED)

            HttpServer(
                self.app,
                listener,
                on_ready=announce,
                on_stopping=self._stop_soon,
                on_hangup=self._reload_soon,
                on_stuck=give_up,
            ).serve_forever()

    async def swap(self, reference: str, new: str | Path | None = None) -> bool:
        """Put another version behind the slot `reference`: load and warm it, switch, drain and close the old one.

        Nothing that was accepted fails. Where the new version cannot be loaded, the old one goes on.

        Args:
            reference: Names the slot: what it was asked for by, without the weight.
            new: A reference or a path; None looks `reference` up again, since an alias may have moved.

        Returns:
            Whether it was done: False where exactly this version is already there, or the server is stopping.

        Raises:
            ServingError: There is no such slot, or the new version does not take the same requests.
            ProductionMLError: Further see `load`.
        """
        old = await self._exchange(reference, new)
        if old is None:
            return False
        await self._retire(old)
        return True

    async def reload(self) -> list[str]:
        """Look all references up again and swap those whose version has changed.

        One that cannot be swapped is logged and goes on with the version it has.

        Returns:
            The slots that were swapped.
        """
        swapped, retiring = [], []
        for slot in self.slots:
            try:
                old = await self._exchange(slot.reference)
            except Exception as problem:  # noqa: BLE001 - logged: nobody awaits the task of a SIGHUP
                message = f"{slot.reference} stays at version {slot.version.version}: {problem}"
                log_event(_LOGGER, "swap_failed", message, level=logging.ERROR, reference=slot.reference)
                continue
            if old is not None:
                swapped.append(slot.reference)
                retiring.append(self._retire(old))
        await asyncio.gather(*retiring)
        return swapped

    async def _exchange(self, reference: str, new: str | Path | None = None) -> LoadedVersion | None:
        """Let another version answer; returns the one that did, still open, or None where nothing changed."""
        async with self._changing:
            slot = self._models.slot(reference)
            if self._stopping:
                return None
            source = await asyncio.to_thread(resolve, str(new or reference), self.config.tracking_uri)
            if _is_same(slot.version.source, source):
                return None
            version = await asyncio.to_thread(self._load_version, source)
            old = slot.version
            try:
                put_behind(slot, version)
            except ServingError:
                await self._retire(version)
                raise
            return old

    def _load_slot(self, reference: WeightedReference) -> Slot:
        source = resolve(reference.reference, self.config.tracking_uri)
        return Slot(reference.reference, reference.weight, self._load_version(source))

    def _load_version(self, source: ModelVersion) -> LoadedVersion:
        return load_version(source, self.config.batching, self._runtimes, metrics=self.metrics)

    def _retire(self, version: LoadedVersion) -> asyncio.Task[None]:
        """Let a version that gets no more requests answer those it has; then forget it.

        Nothing else waits for that, so that a batch that hangs keeps no other version from being swapped.
        """
        task = asyncio.ensure_future(self._close(version))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    async def _close(self, version: LoadedVersion) -> None:
        try:
            await version.close()
        except Exception as problem:  # noqa: BLE001 - the plug-in boundary: a runtime may raise anything
            message = f"{version.model} version {version.version} did not close well: {problem}"
            log_event(_LOGGER, "close_failed", message, level=logging.ERROR, model=version.model)
        still_served = {(slot.version.model, slot.version.version) for slot in self._models}
        if (version.model, version.version) not in still_served:
            self.metrics.retire(version.model, version.version)

    def _make_app(self) -> Starlette:
        infer = InferEndpoint(self._models, self.metrics, max_body_bytes=self.config.max_body_bytes)
        door = Middleware(
            Door,
            token=self.config.token,
            is_draining=lambda: self._stopping,
            on_refusal=self.metrics.count_refusal,
        )
        return Starlette(
            routes=routes(self._models, self.metrics, infer, lambda: self.is_ready),
            middleware=[door],
            exception_handlers=EXCEPTION_HANDLERS,
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(self.load)
        try:
            yield
        finally:
            self._stopping = True
            async with self._changing:
                for slot in self.slots:
                    self._retire(slot.version)
            await asyncio.gather(*self._retiring)
            log_event(_LOGGER, "server_stopped", "all accepted requests are answered")

    def _log_start(self, url: str) -> None:
        served = [
            {
                "reference": slot.reference,
                "model": slot.version.model,
                "version": slot.version.version,
                "share": self.share(slot),
                "in_loop": slot.version.in_loop,
            }
            for slot in self.slots
        ]
        log_event(_LOGGER, "server_started", f"serving at {url}", url=url, pid=os.getpid(), served=served)

    def _stop_soon(self) -> None:
        self._stopping = True

    def _reload_soon(self) -> None:
        task = asyncio.ensure_future(self.reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)


def _is_same(one: ModelVersion, other: ModelVersion) -> bool:
    return (one.version, one.alias, one.package.content_hash) == (
        other.version,
        other.alias,
        other.package.content_hash,
    )


def _write_ready_file(path: Path, url: str, port: int) -> None:
    try:
        replace_durably(path, json.dumps({"url": url, "pid": os.getpid(), "port": port}).encode())
    except OSError as problem:
        raise InputFileError(path, f"the ready file cannot be written ({problem.strerror})") from problem


def _remove_ready_file(path: Path) -> None:
    """One that an earlier server left behind would tell a lie."""
    if not path.parent.is_dir():
        raise InputFileError(path, "the ready file cannot be written: its directory does not exist")
    try:
        path.unlink(missing_ok=True)
    except OSError as problem:
        raise InputFileError(path, f"the ready file cannot be replaced ({problem.strerror})") from problem
