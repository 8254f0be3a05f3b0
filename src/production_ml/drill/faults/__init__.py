"""Faults that a drill causes, one file each."""

from production_ml.core.plugins import PluginFamily, PluginLocation
from production_ml.drill.faults.base import Fault, Strike

FAULTS: PluginFamily[Fault] = PluginFamily(
    "fault",
    entry_points="production_ml.faults",
    table={
        "kill": PluginLocation("production_ml.drill.faults.kill:Kill"),
        "oom": PluginLocation("production_ml.drill.faults.oom:OutOfMemory"),
        "nan": PluginLocation("production_ml.drill.faults.nan:NotANumber"),
        "hang": PluginLocation("production_ml.drill.faults.hang:Hang"),
        "slow-rank": PluginLocation("production_ml.drill.faults.slow_rank:SlowRank"),
        "preempt": PluginLocation("production_ml.drill.faults.preempt:Preempt"),
        "disk-full": PluginLocation("production_ml.drill.faults.disk_full:DiskFull"),
        "bit-flip": PluginLocation("production_ml.drill.faults.bit_flip:BitFlip"),
    },
)

__all__ = ["FAULTS", "Fault", "Strike"]
