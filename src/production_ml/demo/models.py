"""Model stations: evaluate a trained model, let the gate judge it, register it, and move an alias."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from production_ml.core.errors import PromotionRefusedError, UnknownModelError
from production_ml.demo.children import Children, StationError
from production_ml.demo.training import Plan
from production_ml.demo.workspace import Workspace, example_directory
from production_ml.mlops import EvaluationGate, ExperimentTracker, ModelRegistry, Verdict, open_package
from production_ml.mlops.evaluation_gate import CHAMPION
from production_ml.mlops.experiment_tracking import MetricPoint
from production_ml.mlops.model_package import ModelPackage
from production_ml.monitoring.run_log import RunLog

MODEL = "digits"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model as the test split sees it, packed for a server."""

    package: ModelPackage
    step: int
    examples: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Judged:
    """A model that passed the gate, and where the verdict was written."""

    evaluation: Evaluation
    verdict: Verdict
    record: Path


def evaluate(plan: Plan, workspace: Workspace, children: Children) -> Evaluation:
    """Measure the newest checkpoint on the test split and export it, in the example's own script.

    Raises:
        StationError: It failed, or the checkpoint is not the last one of the training.
    """
    script = example_directory() / "evaluate.py"
    options = {
        "data": workspace.table,
        "checkpoints": workspace.checkpoints(plan.model),
        "package": workspace.package(plan.model),
        "name": MODEL,
        "width": plan.width,
    }
    command = [sys.executable, str(script), *(word for name, value in options.items() for word in (f"--{name}", value))]
    printed = children.run([str(word) for word in command], workspace.output(f"evaluate-{plan.model}"))
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    if found["step"] != plan.steps:
        raise StationError(f"Step {found['step']} was evaluated, but training ended at step {plan.steps}.")
    package = open_package(workspace.package(plan.model))
    return Evaluation(package, found["step"], found["examples"], found["metrics"])


def champion_metrics(registry: ModelRegistry, dataset: str) -> dict[str, float] | None:
    """What the present champion reached on `dataset`; None where there is no champion yet.

    A champion that was judged on other data has no comparable metrics: an empty answer, on which a gate refuses.
    """
    try:
        model = registry.show(MODEL)
    except UnknownModelError:
        return None
    if CHAMPION not in model.aliases:
        return None
    version = model.version(model.aliases[CHAMPION])
    verdict = version.verdicts.get(CHAMPION) if version is not None else None
    return dict(verdict.metrics) if verdict is not None and verdict.dataset == dataset else {}


def judge(
    evaluation: Evaluation, gate: EvaluationGate, champion: dict[str, float] | None, dataset: str, record: Path
) -> Judged:
    """The gate's verdict, written to `record`.

    Raises:
        StationError: The gate refused.
    """
    verdict = gate.decide(evaluation.metrics, champion, subject=evaluation.package.content_hash, dataset=dataset)
    record.write_text(verdict.to_json() + "\n")
    if not verdict.passed:
        raise StationError(
            "The gate refused the model, so no alias moves.",
            meaning="\n".join(verdict.reasons),
            cure=f"The whole verdict is in {record}",
        )
    return Judged(evaluation, verdict, record)


def track_and_register(registry: ModelRegistry, plan: Plan, log: RunLog, judged: Judged) -> int:
    """Record the training in MLflow and register its package, as yet without a verdict; returns the version."""
    tracker = ExperimentTracker(MODEL, registry.tracking_uri)
    settings = {"model": plan.model, "steps": plan.steps, "width": plan.width, "lr": plan.learning_rate}
    with tracker.start_run(f"{log.identity.run_id} {plan.model}", settings, {"run_dir": str(log.run.path)}) as run:
        run.log_metrics(final_series(log))
        run.log_artifact(judged.record)
        return registry.register(judged.evaluation.package, run_id=run.run_id).version


def final_series(log: RunLog) -> list[MetricPoint]:
    """Rank 0's metrics, each step once.

    What an attempt logged past the checkpoint that its successor resumed from is superseded.
    """
    points: dict[tuple[str, int], MetricPoint] = {}
    for source, record in log.metrics():
        if source.rank == 0:
            for name, value in record.values.items():
                points[name, record.step] = (name, value, record.step, record.wall_seconds)
    return sorted(points.values(), key=lambda point: (point[2], point[0]))


def require_refusal(registry: ModelRegistry, version: int, alias: str) -> str:
    """Try to promote a version that has no verdict for `alias`; returns why the registry refused.

    Raises:
        StationError: The registry moved the alias.
    """
    try:
        registry.promote(MODEL, version, alias)
    except PromotionRefusedError as refusal:
        return refusal.what
    raise StationError(f"{MODEL} version {version} became {alias} although no verdict was on record.")


def promote(registry: ModelRegistry, version: int, alias: str, verdict: Verdict) -> None:
    """Put the verdict on record, move the alias, and look whether it moved.

    Raises:
        StationError: The alias points elsewhere afterwards.
    """
    registry.record_verdict(MODEL, version, verdict)
    registry.promote(MODEL, version, alias)
    holder = registry.show(MODEL).aliases.get(alias)
    if holder != version:
        raise StationError(f"{MODEL}@{alias} is version {holder}, not {version}.")
