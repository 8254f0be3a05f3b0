"""Serving runtimes: what executes a model package behind the queue."""

from production_ml.core.plugins import PluginFamily, PluginLocation
from production_ml.serving.runtimes.base import Runtime

RUNTIMES: PluginFamily[Runtime] = PluginFamily(
    "serving runtime",
    entry_points="production_ml.runtimes",
    table={
        "onnx": PluginLocation("production_ml.serving.runtimes.onnx:OnnxRuntime", extra="serve"),
    },
)

__all__ = ["RUNTIMES", "Runtime"]
