"""The server's routes: the Open Inference Protocol v2 over HTTP, and the metrics."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from production_ml import __version__
from production_ml.mlops.model_package import TensorSpec
from production_ml.serving.inference import InferEndpoint
from production_ml.serving.metrics import ServingMetrics
from production_ml.serving.open_inference import BINARY_EXTENSION
from production_ml.serving.problems import RequestError
from production_ml.serving.responses import error_response, http_error, internal_error, json_response
from production_ml.serving.served_models import ServedModels

EXCEPTION_HANDLERS: dict[Any, Any] = {HTTPException: http_error, Exception: internal_error}


def routes(
    models: ServedModels, metrics: ServingMetrics, infer: InferEndpoint, is_ready: Callable[[], bool]
) -> list[Route]:
    """All routes; the router tries them in order, so the one that matters comes first."""
    about = AboutEndpoints(models, metrics, is_ready)
    return [
        Route("/v2/models/{model}/infer", infer, methods=["POST"]),
        Route("/v2/models/{model}/versions/{version}/infer", infer, methods=["POST"]),
        Route("/v2", about.server),
        Route("/v2/health/live", about.live),
        Route("/v2/health/ready", about.ready),
        Route("/v2/models/{model}", about.model),
        Route("/v2/models/{model}/ready", about.model_ready),
        Route("/v2/models/{model}/versions/{version}", about.model),
        Route("/v2/models/{model}/versions/{version}/ready", about.model_ready),
        Route("/metrics", about.scrape),
    ]


class AboutEndpoints:
    """What the server says about itself."""

    def __init__(self, models: ServedModels, metrics: ServingMetrics, is_ready: Callable[[], bool]) -> None:
        self._models = models
        self._metrics = metrics
        self._is_ready = is_ready

    async def server(self, _request: Request) -> Response:
        """Name, version, extensions."""
        return json_response({"name": "production_ml", "version": __version__, "extensions": [BINARY_EXTENSION]})

    async def live(self, _request: Request) -> Response:
        """The event loop turns."""
        return json_response({"live": True})

    async def ready(self, _request: Request) -> Response:
        """All models are loaded, and the server is not about to stop."""
        ready = self._is_ready()
        return json_response({"ready": ready}, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    async def model(self, request: Request) -> Response:
        """The interface of a model, and who answers for it."""
        path = request.path_params
        try:
            model = self._models.model(path["model"])
            pinned = path.get("version")
            version = model.slots[0].version if pinned is None else model.pinned(pinned).version
        except RequestError as problem:
            return error_response(problem)
        return json_response(
            {
                "name": model.name,
                "versions": model.versions if pinned is None else [pinned],
                "platform": version.platform,
                "inputs": [_tensor(spec) for spec in version.inputs],
                "outputs": [_tensor(spec) for spec in version.outputs],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """A model that is listed is ready: it was loaded and warm before it got there."""
        path = request.path_params
        try:
            self._models.choose(path["model"], path.get("version"), b"")
        except RequestError as problem:
            return error_response(problem)
        return json_response({"name": path["model"], "ready": True})

    async def scrape(self, _request: Request) -> Response:
        """For Prometheus."""
        return Response(self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
