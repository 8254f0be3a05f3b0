"""Training strategies: how a model is spread over the ranks."""

from production_ml.core.plugins import PluginFamily, PluginLocation
from production_ml.training.strategies.base import TrainingStrategy
from production_ml.training.strategies.choice import choose_strategy

STRATEGIES: PluginFamily[TrainingStrategy] = PluginFamily(
    "training strategy",
    entry_points="production_ml.strategies",
    table={
        "plain": PluginLocation("production_ml.training.strategies.plain:PlainStrategy"),
        "ddp": PluginLocation("production_ml.training.strategies.ddp:DDPStrategy"),
        "fsdp": PluginLocation("production_ml.training.strategies.fsdp:FSDPStrategy"),
        "deepspeed": PluginLocation("production_ml.training.strategies.deepspeed:DeepSpeedStrategy"),
    },
)

__all__ = ["STRATEGIES", "TrainingStrategy", "choose_strategy"]
