"""The demo's stations in order; each does its work with the real component, checks it, and says what it measured."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from production_ml.demo.children import Children, await_exporter
from production_ml.demo.display import Display
from production_ml.demo.models import (
    MODEL,
    Evaluation,
    Judged,
    champion_metrics,
    evaluate,
    judge,
    promote,
    require_refusal,
    track_and_register,
)
from production_ml.demo.traffic import CONNECTIONS, check_split, figures, send_requests, start_server
from production_ml.demo.training import WORKERS, Kill, Plan, check_recovery, train
from production_ml.demo.workspace import Workspace, example_directory
from production_ml.mlops import (
    AtLeast,
    DataValidator,
    EvaluationGate,
    ModelRegistry,
    NotWorseThanChampion,
    load_rules,
    read_table,
)
from production_ml.monitoring.run_directory import RunDirectory
from production_ml.monitoring.run_log import RunLog
from production_ml.report import write_report
from production_ml.storage.datasets import DatasetStore, DatasetVersion

CHAMPION_PLAN: Final = Plan(model="champion", steps=600, checkpoint_every=30, width=32, learning_rate=1e-3, seed=0)
CHALLENGER_PLAN: Final = Plan(model="challenger", steps=90, checkpoint_every=45, width=8, learning_rate=1e-2, seed=1)
ACCURACY_REQUIRED: Final = 0.95
ACCURACY_REQUIRED_OF_A_CHALLENGER: Final = 0.85
TOLERANCE: Final = 0.01
WEIGHTS: Final = {"champion": 80, "challenger": 20}


@dataclass(slots=True)
class Outcome:
    """All that was measured, for `--json`."""

    seed: int
    workspace: str
    stations: dict[str, float] = field(default_factory=dict)
    """Title to seconds."""
    figures: dict[str, Any] = field(default_factory=dict)


class Story:
    """One demo.

    Args:
        workspace: Where everything goes.
        display: Who is told.
        children: Owns every process that is started.
        seed: Decides which worker is killed at which step.
        port: For the server; 0 takes a free one.
    """

    def __init__(self, workspace: Workspace, display: Display, children: Children, *, seed: int, port: int) -> None:
        self.outcome = Outcome(seed, str(workspace.path))
        self._workspace = workspace
        self._display = display
        self._children = children
        self._kill = Kill.choose(CHAMPION_PLAN, random.Random(seed))  # noqa: S311 - a fault, not a secret
        self._port = port
        self._registry = ModelRegistry(workspace.tracking_uri)

    def tell(self) -> Path:
        """Go through all stations; returns the report.

        Raises:
            ProductionMLError: A station did not do what it claims.
        """
        self._workspace.create()
        with self._station("data", "Register and check the data"):
            dataset = self._data()
        with self._station("train", f"Train in {WORKERS} workers, and kill one"):
            champion_log = self._train_and_kill()
        with self._station("evaluate", "Evaluate on held-out data, and ask the gate"):
            judged = self._evaluate(dataset)
        with self._station("register", "Register in MLflow, and move the alias"):
            self._register(CHAMPION_PLAN, champion_log, judged)
        with self._station("challenge", "Train a challenger with other settings"):
            self._challenge(dataset)
        with self._station("serve", "Serve both, and send real requests"):
            self._serve()
        with self._station("report", "Write the report"):
            return self._report()

    @contextmanager
    def _station(self, name: str, title: str) -> Iterator[None]:
        began = time.monotonic()
        self._display.begin(title)
        try:
            yield
        except BaseException:
            self._display.end(failed=True)
            raise
        self._display.end()
        self.outcome.stations[name] = time.monotonic() - began

    def _data(self) -> DatasetVersion:
        workspace, example = self._workspace, example_directory()
        written = self._children.run(
            [sys.executable, str(example / "data.py"), str(workspace.table)], workspace.output("data")
        )
        self._display.fact(f"scikit-learn's handwritten digits: {written.strip()}")
        dataset = DatasetStore(workspace.datasets).register("digits", workspace.table, "scikit-learn's digits")
        self._display.fact(f"registered as {dataset.name}:{dataset.version}, content hash {dataset.content_hash}")
        report = DataValidator(load_rules(example / "rules.yaml")).validate(read_table(dataset.path))
        self._display.fact(str(report))
        return dataset

    def _train_and_kill(self) -> RunLog:
        kill = self._kill
        self._display.fact(
            f"seed {self.outcome.seed}: rank {kill.rank} will be killed once it has logged step {kill.step}"
        )
        log = train(CHAMPION_PLAN, self._workspace, self._children, self._display, kill)
        healed = check_recovery(log, kill, CHAMPION_PLAN)
        for other in healed.others:
            self._display.fact(
                f"another failure, unasked, was healed too: rank {other.failure.rank}: {other.failure.reason}"
            )
        recovery = healed.killed
        down = "unknown (the clock was set back)" if recovery.down_seconds is None else f"{recovery.down_seconds:.2f} s"
        self._display.fact(
            f"resumed from the checkpoint of step {recovery.resumed_from_step}: {recovery.steps_redone} steps redone, "
            f"{down} from the failure to the next step"
        )
        self._display.fact(f"finished at step {CHAMPION_PLAN.steps} in both workers")
        self.outcome.figures |= {
            "run_dir": str(log.run.path),
            "killed_rank": kill.rank,
            "killed_after_step": kill.step,
            "last_step_before": recovery.last_step_before,
            "resumed_from_step": recovery.resumed_from_step,
            "steps_redone": recovery.steps_redone,
            "down_seconds": recovery.down_seconds,
            "other_failures_healed": len(healed.others),
        }
        return log

    def _evaluate(self, dataset: DatasetVersion) -> Judged:
        evaluation = evaluate(CHAMPION_PLAN, self._workspace, self._children)
        champion = champion_metrics(self._registry, dataset.content_hash)
        gate = EvaluationGate([AtLeast("accuracy", ACCURACY_REQUIRED), NotWorseThanChampion("accuracy", TOLERANCE)])
        return self._judge(CHAMPION_PLAN, evaluation, gate, champion, dataset)

    def _judge(
        self,
        plan: Plan,
        evaluation: Evaluation,
        gate: EvaluationGate,
        champion: dict[str, float] | None,
        dataset: DatasetVersion,
    ) -> Judged:
        record = self._workspace.run(plan.model) / "verdict.json"
        accuracy = evaluation.metrics["accuracy"]
        self._display.fact(f"accuracy {accuracy:.2%} on {evaluation.examples} scans that training never saw")
        judged = judge(evaluation, gate, champion, dataset.content_hash, record)
        for reason in judged.verdict.reasons:
            self._display.fact(f"gate: {reason}")
        self.outcome.figures[f"{plan.model}_accuracy"] = accuracy
        self.outcome.figures[f"{plan.model}_content_hash"] = evaluation.package.content_hash
        return judged

    def _register(self, plan: Plan, log: RunLog, judged: Judged) -> None:
        registry = self._registry
        version = track_and_register(registry, plan, log, judged)
        self._display.fact(f"{MODEL} version {version}: package {judged.evaluation.package.content_hash}")
        refusal = require_refusal(registry, version, plan.model)
        self._display.fact(f"without a verdict on record the registry refuses: {refusal}")
        promote(registry, version, plan.model, judged.verdict)
        self._display.fact(f"with the passing verdict on record, {MODEL}@{plan.model} is version {version}")
        self.outcome.figures[f"{plan.model}_version"] = version

    def _challenge(self, dataset: DatasetVersion) -> None:
        log = train(CHALLENGER_PLAN, self._workspace, self._children, self._display, kill=None)
        evaluation = evaluate(CHALLENGER_PLAN, self._workspace, self._children)
        gate = EvaluationGate([AtLeast("accuracy", ACCURACY_REQUIRED_OF_A_CHALLENGER)], alias="challenger")
        self._register(CHALLENGER_PLAN, log, self._judge(CHALLENGER_PLAN, evaluation, gate, None, dataset))

    def _serve(self) -> None:
        self.server, self.url = start_server(self._workspace, self._children, WEIGHTS, self._port)
        self._display.fact(f"serving at {self.url}, the Open Inference Protocol v2")
        began = time.monotonic()
        answers = send_requests(self.url, self._workspace.table)
        seconds = time.monotonic() - began
        rate = len(answers) / seconds
        self._display.fact(f"{len(answers)} requests over {CONNECTIONS} connections, {rate:,.0f} per second")
        measured = figures(answers)
        names = {str(self.outcome.figures[f"{alias}_version"]): alias for alias in WEIGHTS}
        for found in measured:
            self._display.fact(
                f"version {found.version} ({names.get(found.version, '?')}): {found.requests} requests, "
                f"{found.share:.1%} of the traffic, accuracy {found.accuracy:.2%}, "
                f"latency {found.median_ms:.1f} ms median, {found.p99_ms:.1f} ms p99"
            )
        check_split(measured, {version: WEIGHTS[alias] / 100 for version, alias in names.items()})
        self.outcome.figures |= {"requests_per_second": rate, "serving": [asdict(found) for found in measured]}

    def _report(self) -> Path:
        for plan in (CHAMPION_PLAN, CHALLENGER_PLAN):
            await_exporter(RunDirectory(self._workspace.run(plan.model)))
        path = write_report(self._workspace.run(CHAMPION_PLAN.model))
        self._display.fact(f"{path} ({path.stat().st_size / 2**20:.1f} MiB, no network needed)")
        self.outcome.figures["report"] = str(path)
        return path
