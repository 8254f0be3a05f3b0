"""Watches one attempt's pulses in a thread of the launcher, which waits for nothing that can hang."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from production_ml.core.clock import SYSTEM_CLOCK, Clock
from production_ml.fault_tolerance.launcher.attempt_files import AttemptFiles
from production_ml.fault_tolerance.launcher.hang.culprit import RankReport, Verdict, describe, find_culprits
from production_ml.fault_tolerance.launcher.hang.nodes import OtherNodes
from production_ml.fault_tolerance.launcher.hang.questions import (
    WatchedWorker,
    ask_for_flight_recorders,
    ask_for_stacks,
    data_worker_findings,
    judge,
    kill,
    last_collective,
)
from production_ml.fault_tolerance.pulse import Beat, Pulse
from production_ml.fault_tolerance.recovery.hang.limits import HangLimits, StepTimes, silent_seconds
from production_ml.fault_tolerance.recovery.hang.processes import look_at
from production_ml.fault_tolerance.recovery.hang.stacks import Activity

LOOK_SECONDS: Final = 0.25
_OBSERVE_SECONDS: Final = 0.5
"""Between two looks at a rank that is silent, to see whether it moves."""
_logger = logging.getLogger(__name__)


class Tell(Protocol):
    """The launcher's journal: an event for the run log, a line for the person."""

    def __call__(self, event: str, line: str, *, level: str, **facts: Any) -> None: ...


class AttemptWatch(threading.Thread):
    """Looks at the pulses; asks, judges and ends what hangs.

    Args:
        workers: This node's.
        step_times: By local rank; what earlier attempts have learned, and what this one adds.
        files: Where stacks are kept.
        make_other_nodes: Connects to the other nodes' launchers; given this watch's wait.
    """

    def __init__(
        self,
        workers: Sequence[WatchedWorker],
        *,
        step_times: Mapping[int, StepTimes],
        limits: HangLimits,
        files: AttemptFiles,
        tell: Tell,
        make_other_nodes: Callable[[Callable[[float], bool]], OtherNodes],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(name="hang-watch", daemon=True)
        self._workers = {worker.rank: worker for worker in workers}
        self._pulses = {worker.rank: Pulse(worker.files.pulse) for worker in workers}
        self._times = {worker.rank: step_times[worker.local_rank] for worker in workers}
        self._limits = limits
        self._files = files
        self._tell = tell
        self._make_other_nodes = make_other_nodes
        self._clock = clock
        self._ended = threading.Event()
        self._raised_to: float | None = None

    def stop(self) -> None:
        """The attempt is over."""
        self._ended.set()

    def run(self) -> None:
        """Look until stopped, or until a hang has been ended."""
        try:
            self._other_nodes = self._make_other_nodes(self._ended.wait)
            while not self._ended.wait(LOOK_SECONDS):
                if self._look():
                    return
        except Exception:  # it must not take the launcher along; the job then is as safe as under torchrun
            if not self._ended.is_set():
                _logger.exception("the watch for hangs has failed; a hang of this attempt will not be ended")
        finally:
            for pulse in self._pulses.values():
                pulse.close()

    def _look(self) -> bool:
        beats = {rank: pulse.read() for rank, pulse in self._pulses.items()}
        for rank, beat in beats.items():
            self._times[rank].see(beat)
        if self._is_due(beats) or self._other_nodes.is_asked():
            return self._look_into(beats)
        return False

    def _is_due(self, beats: Mapping[int, Beat]) -> bool:
        """Whether a rank has said nothing for longer than it may; never in a script that has no pulse."""
        beats = {rank: beat for rank, beat in beats.items() if look_at(self._workers[rank].pid).state != "ended"}
        now = self._clock.monotonic_seconds()
        beats_at_all = any(beat.steps for beat in beats.values()) or any(
            times.typical_seconds is not None for times in self._times.values()
        )
        if not beats_at_all:
            return False
        silences = {rank: silent_seconds(beat, now) for rank, beat in beats.items()}
        past = [rank for rank in beats if silences[rank] > self._times[rank].limit_seconds(beats[rank].phase)]
        if not past:
            self._raised_to = None  # what was raised for is over
            return False
        return self._raised_to is None or max(silences[rank] for rank in past) > self._raised_to

    def _look_into(self, before: Mapping[int, Beat]) -> bool:
        reports = self._reports(before)
        all_reports = self._other_nodes.exchange(reports)
        if self._ended.is_set():
            return True
        verdict = find_culprits(all_reports)
        blamed = verdict.culprits or all_reports
        silence = max((report.silent_seconds for report in blamed), default=0.0)
        facts = self._facts(verdict, all_reports, silence)
        if self._raised_to is None:
            line = f"no step for {silence:.1f} s: {blame(verdict)}; stacks of all ranks: {self._files.directory}"
            self._tell("hang_suspected", line, level="warning", **facts)
            if verdict.is_alive or verdict.is_pause:
                self._raise(verdict, before, silence)
                return False
        self._end(verdict, facts, silence)
        return True

    def _raise(self, verdict: Verdict, beats: Mapping[int, Beat], silence: float) -> None:
        limit = max((self._times[rank].limit_seconds(beat.phase) for rank, beat in beats.items()), default=silence)
        self._raised_to = max(
            limit * self._limits.raise_factor, self._limits.paused_seconds if verdict.is_pause else 0.0
        )
        why = "it does what may take long" if verdict.is_pause else "it is slow, but alive"
        line = f"waiting until {self._raised_to:.1f} s have passed: {why}"
        self._tell("timeout_raised", line, level="warning", limit_seconds=self._raised_to, reason=why)

    def _end(self, verdict: Verdict, facts: dict[str, Any], silence: float) -> None:
        line = f"hang after {silence:.1f} s: {blame(verdict)}; ending this attempt"
        self._tell("hang_found", line, level="error", **facts)
        local = [report for report in verdict.culprits if report.rank in self._workers]
        running = [report.rank for report in local if report.state != "ended"]
        if not running and len(local) == len(verdict.culprits):
            # All culprits here have ended, or there is none: a victim's end ends the attempt as well.
            running = [rank for rank, worker in self._workers.items() if look_at(worker.pid).state != "ended"][:1]
        for rank in running:
            with suppress(OSError):  # the reason is told by the event too
                message = f"hung for {silence:.1f} s: {blame(verdict)}"
                self._files.error(rank).write_text(json.dumps({"message": message}))
            kill(self._workers[rank].pid)

    def _reports(self, before: Mapping[int, Beat]) -> list[RankReport]:
        workers = list(self._workers.values())
        first = ask_for_stacks(workers)
        self._ended.wait(_OBSERVE_SECONDS)
        second = ask_for_stacks(workers)
        flights = ask_for_flight_recorders(workers)
        now = self._clock.monotonic_seconds()
        reports = []
        for worker in workers:
            rank, beat = worker.rank, self._pulses[worker.rank].read()
            activity, place, is_busy, is_moving = judge(first[rank], second[rank], worker.pid)
            findings, dumps = data_worker_findings(worker) if activity is Activity.DATA else ((), "")
            collective, operation = last_collective(flights.get(rank, b""))
            report = RankReport(
                rank=rank,
                steps=beat.steps,
                silent_seconds=silent_seconds(beat, now),
                activity=activity,
                place=place,
                state=second[rank].process.state,
                is_busy=is_busy,
                is_moving=is_moving,
                has_stepped=beat.steps > before[rank].steps,
                collective=collective,
                operation=operation,
                data_workers=findings,
            )
            reports.append(report)
            self._keep(report, f"{second[rank].dump}\n{dumps}", flights.get(rank))
        return reports

    def _keep(self, report: RankReport, dump: str, flight: bytes | None) -> None:
        with suppress(OSError):  # a full disk: the events name the place all the same
            heading = f"rank {report.rank} {describe(report)}; {report.state}, {report.steps} steps"
            self._files.stacks(report.rank).write_text(f"{heading}\n\n{dump}")
            if flight:
                self._files.flight_recorder(report.rank).write_bytes(flight)

    def _facts(self, verdict: Verdict, reports: Sequence[RankReport], silence: float) -> dict[str, Any]:
        typical = [times.typical_seconds for times in self._times.values() if times.typical_seconds is not None]
        return {
            "ranks": [report.rank for report in verdict.culprits],
            "doing": [describe(report) for report in verdict.culprits],
            "silent_seconds": silence,
            "step_seconds": max(typical, default=None),
            "attempt": self._files.attempt,
            "reports": [report.as_json() for report in reports],
        }


def blame(verdict: Verdict) -> str:
    """Who holds up the others, in words."""
    if not verdict.culprits:
        return "all ranks wait in the same collective, so the network between them is to be looked at"
    return ", ".join(f"rank {report.rank} {describe(report)}" for report in verdict.culprits)
