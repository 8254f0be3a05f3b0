"""When to save: small policies that compose, and the schedule that makes all ranks follow one."""

from production_ml.fault_tolerance.save_schedule.policies import (
    AnyOf,
    AutoInterval,
    EveryEpochs,
    EveryInterval,
    EverySteps,
    Progress,
    SavePolicy,
    parse_save_every,
)
from production_ml.fault_tolerance.save_schedule.schedule import SaveSchedule

__all__ = [
    "AnyOf",
    "AutoInterval",
    "EveryEpochs",
    "EveryInterval",
    "EverySteps",
    "Progress",
    "SavePolicy",
    "SaveSchedule",
    "parse_save_every",
]
