"""Metric sinks: views of the run log that the exporter process keeps up to date."""

from production_ml.core.plugins import PluginFamily, PluginLocation
from production_ml.monitoring.sinks.base import Sink

SINKS: PluginFamily[Sink] = PluginFamily(
    "metric sink",
    entry_points="production_ml.sinks",
    table={
        "prometheus": PluginLocation("production_ml.monitoring.sinks.prometheus:PrometheusSink"),
        "jsonl": PluginLocation("production_ml.monitoring.sinks.jsonl:JsonLinesSink"),
    },
)

ON_EVERY_NODE = ("prometheus",)
"""Kinds that serve what is on their node; the others see the whole run, and one node feeds them."""

__all__ = ["ON_EVERY_NODE", "SINKS", "Sink"]
