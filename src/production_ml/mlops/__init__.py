"""From a trained model to a deployed one: data checks, tracking, the gate, the registry."""

from production_ml.mlops.data_validation import DataValidator, ValidationReport, load_rules, parse_rules, read_table
from production_ml.mlops.evaluation_gate import AtLeast, AtMost, EvaluationGate, NotWorseThanChampion, Verdict
from production_ml.mlops.experiment_tracking import ExperimentTracker, TrackedRun
from production_ml.mlops.model_package import ModelPackage, open_package
from production_ml.mlops.model_registry import ModelRegistry
from production_ml.mlops.registry_records import RegisteredVersion

__all__ = [
    "AtLeast",
    "AtMost",
    "DataValidator",
    "EvaluationGate",
    "ExperimentTracker",
    "ModelPackage",
    "ModelRegistry",
    "NotWorseThanChampion",
    "RegisteredVersion",
    "TrackedRun",
    "ValidationReport",
    "Verdict",
    "load_rules",
    "open_package",
    "parse_rules",
    "read_table",
]
