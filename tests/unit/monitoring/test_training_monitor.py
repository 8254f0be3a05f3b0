"""The monitor keeps what it is given, refuses what it cannot keep by name, and never costs a training run."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest

from production_ml.core.errors import ConfigError, RunDirectoryError, UnknownPluginError
from production_ml.core.structured_logging import log_event
from production_ml.monitoring import RunLog, TrainingMonitor


class OnDevice:
    """Like a device tensor: a number by `__float__` alone, which warns where its graph is not cut off first."""

    def __init__(self, value: float, *, has_graph: bool = True) -> None:
        self.value = value
        self.has_graph = has_graph

    def detach(self) -> OnDevice:
        return OnDevice(self.value, has_graph=False)

    def __float__(self) -> float:
        assert not self.has_graph
        return self.value


class Many:
    """Like a tensor of many elements."""

    def __float__(self) -> float:
        raise RuntimeError("a Tensor with 10 elements cannot be converted to Scalar")


def monitor(run_dir: Path | None, **options: object) -> TrainingMonitor:
    return TrainingMonitor("shop", "exp-001", None, run_dir=run_dir, **options)


def is_closed(m: TrainingMonitor) -> bool:
    return event_names(m.run_dir)[-1] == "monitor_closed"


def logged(run_dir: Path) -> list[tuple[int, dict[str, float]]]:
    return [(record.step, dict(record.values)) for _, record in RunLog.open(run_dir).metrics()]


def event_names(run_dir: Path) -> list[str]:
    return [event.name for _, event in RunLog.open(run_dir).events()]


def test_metrics_are_in_the_log_when_log_returns(tmp_path):
    with monitor(tmp_path) as m:
        m.log({"train/loss": 0.5, "train/step": 3})

        assert logged(tmp_path) == [(3, {"train/loss": 0.5, "train/step": 3.0})]


def test_the_step_is_the_given_one_else_train_step_else_one_more_than_the_last(tmp_path):
    with monitor(tmp_path) as m:
        m.log({"loss": 1.0})
        m.log({"loss": 1.0, "train/step": 10})
        m.log({"loss": 1.0})
        m.log({"loss": 1.0, "train/step": 50}, step=20)

    assert [step for step, _ in logged(tmp_path)] == [0, 10, 11, 20]


def test_steps_may_go_back_as_after_loading_a_checkpoint(tmp_path):
    with monitor(tmp_path) as m:
        for step in (98, 99, 60, 61):
            m.log({"loss": float(step)}, step=step)

    assert [step for step, _ in logged(tmp_path)] == [98, 99, 60, 61]


@pytest.mark.parametrize("step", ["ten", math.nan, math.inf, 1 << 70, [1]])
def test_a_step_that_is_none_is_named_once_and_metrics_are_kept(tmp_path, caplog, step):
    with monitor(tmp_path) as m:
        m.log({"loss": 1.0}, step=4)
        m.log({"loss": 2.0}, step=step)
        m.log({"loss": 3.0}, step=step)

    assert logged(tmp_path) == [(4, {"loss": 1.0}), (5, {"loss": 2.0}), (6, {"loss": 3.0})]
    assert len([message for message in caplog.messages if "is no whole number" in message]) == 1


@pytest.mark.parametrize("value", ["0.5", b"0.5", None, 1j, [1.0], Many(), 10**400, {"a": 1}])
def test_a_value_that_is_no_number_is_named_once_and_the_others_are_kept(tmp_path, caplog, value):
    with monitor(tmp_path) as m:
        for step in range(3):
            m.log({"loss": 1.0, "bad/one": value, "lr": 0.1}, step=step)

    assert logged(tmp_path) == [(step, {"loss": 1.0, "lr": 0.1}) for step in range(3)]
    (message,) = caplog.messages
    assert "'bad/one'" in message
    assert "is not a number" in message
    ((_, event),) = RunLog.open(tmp_path).events("metric_rejected")
    assert (event.step, event.fields) == (0, {"metric": "bad/one"})


def test_anything_with_a_float_is_taken_and_its_graph_is_cut_off_first(tmp_path):
    with monitor(tmp_path) as m:
        m.log({"tensor": OnDevice(0.25), "count": 3, "flag": True})

    assert logged(tmp_path) == [(0, {"tensor": 0.25, "count": 3.0, "flag": 1.0})]


def test_nan_and_infinities_are_kept_as_they_are(tmp_path, caplog):
    with monitor(tmp_path) as m:
        m.log({"nan": math.nan, "up": math.inf, "down": -math.inf})

    ((_, values),) = logged(tmp_path)
    assert math.isnan(values["nan"])
    assert (values["up"], values["down"]) == (math.inf, -math.inf)
    assert caplog.messages == []


def test_an_alert_reaches_the_log_the_structured_log_and_people(tmp_path, caplog):
    with monitor(tmp_path) as m:
        m.log({"loss": 1.0}, step=7)
        m.alert("loss exploded", "it is 1e9", level="error")

    ((_, event),) = RunLog.open(tmp_path).events("alert")
    assert (event.step, event.level, event.message, event.fields) == (
        7,
        "error",
        "it is 1e9",
        {"title": "loss exploded"},
    )
    assert caplog.record_tuples[-1][1:] == (logging.ERROR, "loss exploded: it is 1e9")
    assert any('"alert"' in line for line in (tmp_path / "logs" / "rank-00000.jsonl").read_text().splitlines())


def test_an_alert_of_an_unknown_level_is_recorded_as_an_error_and_named_once(tmp_path, caplog):
    with monitor(tmp_path) as m:
        m.alert("loss exploded", "it is 1e9", level="critical")
        m.alert("loss exploded again", level=["critical"])

    alerts = [event for _, event in RunLog.open(tmp_path).events("alert")]
    assert [(alert.level, alert.fields["title"]) for alert in alerts] == [
        ("error", "loss exploded"),
        ("error", "loss exploded again"),
    ]
    assert len([message for message in caplog.messages if "'critical' (str) is none of info, warning" in message]) == 1


def test_every_line_of_the_structured_log_has_rank_attempt_and_step(tmp_path, monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "PRODUCTION_ML_ATTEMPT": "2"}.items():
        monkeypatch.setenv(name, value)
    with monitor(tmp_path) as m:
        m.log({"loss": 1.0}, step=7)
        log_event(logging.getLogger("production_ml.checkpoints"), "checkpoint_saved", size_bytes=3)
        logging.getLogger("production_ml.anything").warning("a plain message")

    lines = [json.loads(line) for line in (tmp_path / "logs" / "rank-00003.jsonl").read_text().splitlines()]
    assert all((line["rank"], line["attempt"]) == (3, 2) and "step" in line for line in lines)
    assert [(line["event"], line["step"]) for line in lines[-4:]] == [
        ("run_restarted", None),
        ("checkpoint_saved", 7),
        ("log", 7),
        ("monitor_closed", 7),
    ]


def test_events_of_other_rooms_come_into_the_run_log_with_step_and_facts(tmp_path):
    with monitor(tmp_path) as m:
        m.log({"loss": 1.0}, step=7)
        logger = logging.getLogger("production_ml.checkpoints")
        log_event(logger, "checkpoint_saved", "saved", path=Path("c/step-7"), name="any fact")
        log_event(logger, "checkpoint_damaged", level=logging.WARNING, step=5)

    log = RunLog.open(tmp_path)
    ((_, saved),) = log.events("checkpoint_saved")
    ((_, damaged),) = log.events("checkpoint_damaged")
    assert (saved.step, saved.message, saved.fields) == (7, "saved", {"path": "c/step-7", "name": "any fact"})
    assert (damaged.step, damaged.level) == (5, "warning")


def test_a_resume_before_the_monitor_is_in_its_log(tmp_path):
    log_event(logging.getLogger("production_ml.checkpoints"), "checkpoint_loaded", step=40)

    with monitor(tmp_path):
        pass

    assert [event.step for _, event in RunLog.open(tmp_path).events("checkpoint_loaded")][-1:] == [40]


def test_the_first_attempt_is_a_start_and_a_later_one_a_restart(tmp_path, monkeypatch):
    monitor(tmp_path).close()
    monkeypatch.setenv("PRODUCTION_ML_ATTEMPT", "1")
    monitor(tmp_path).close()

    wanted = ("run_started", "run_restarted", "monitor_closed")
    assert [name for name in event_names(tmp_path) if name in wanted] == [
        "run_started",
        "monitor_closed",
        "run_restarted",
        "monitor_closed",
    ]


def test_the_configuration_is_recorded_without_secrets(tmp_path):
    monitor(tmp_path, config={"lr": 0.1, "hub": {"token": "abc"}, "model": object}).close()

    ((_, event),) = RunLog.open(tmp_path).events("run_started")
    assert event.fields["config"] == {"lr": 0.1, "hub": {"token": "***"}, "model": "<class 'object'>"}


def test_the_run_stays_who_it_is_over_restarts(tmp_path):
    first, second = monitor(tmp_path), monitor(tmp_path)
    first.close()
    second.close()

    assert first.identity == second.identity == RunLog.open(tmp_path).identity


def test_an_exception_that_leaves_the_block_is_recorded_with_its_traceback(tmp_path):
    m = monitor(tmp_path)
    m.log({"loss": 1.0}, step=3)
    with pytest.raises(ZeroDivisionError), m:
        m.log({"loss": 1 / 0})

    ((_, event),) = RunLog.open(tmp_path).events("exception")
    assert (event.step, event.level, event.message) == (3, "error", "ZeroDivisionError: division by zero")
    assert "test_training_monitor.py" in event.fields["traceback"]


def test_a_deliberate_exit_is_no_exception(tmp_path):
    with pytest.raises(SystemExit), monitor(tmp_path):
        sys.exit(0)

    assert "exception" not in event_names(tmp_path)
    assert event_names(tmp_path)[-1] == "monitor_closed"


@pytest.mark.parametrize("indent", ["", "    "], ids=["in the script", "in a function"])
def test_an_uncaught_exception_without_a_block_is_recorded_and_still_shown(tmp_path, indent):
    code = f"""
from production_ml.monitoring import TrainingMonitor
def main():
    pass
{indent}monitor = TrainingMonitor("shop", "exp-001", None, run_dir={str(tmp_path)!r})
{indent}raise ValueError("boom")
main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert "ValueError: boom" in ended.stderr
    ((_, event),) = RunLog.open(tmp_path).events("exception")
    assert event.message == "ValueError: boom"


def test_after_close_nothing_is_recorded_and_late_metrics_cost_one_warning(tmp_path, caplog):
    hook = sys.excepthook
    m = monitor(tmp_path)
    m.close()
    m.close()
    for step in range(3):
        m.log({"loss": 1.0}, step=step)
    log_event(logging.getLogger("production_ml.checkpoints"), "checkpoint_saved")

    assert sys.excepthook == hook
    assert event_names(tmp_path)[-1] == "monitor_closed"
    assert logged(tmp_path) == []
    assert len([message for message in caplog.messages if "the monitor is closed" in message]) == 1


def test_a_cell_that_is_run_again_closes_the_monitor_it_made_before(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    hook = sys.excepthook
    made = []
    for number in range(3):
        made.append(monitor(None))  # something may still refer to the earlier ones, as a notebook's Out does
        made[-1].log({"loss": float(number)})

    assert [is_closed(m) for m in made] == [True, True, False]
    assert len([message for message in caplog.messages if "its monitor is closed" in message]) == 2
    made[-1].close()
    assert is_closed(made[-1])
    assert sys.excepthook == hook


def test_a_monitor_that_nothing_refers_to_any_more_is_closed(tmp_path):
    hook = sys.excepthook
    monitor(tmp_path).log({"loss": 1.0})
    log_event(logging.getLogger("production_ml.checkpoints"), "checkpoint_saved")

    assert event_names(tmp_path)[-1] == "monitor_closed"
    assert sys.excepthook == hook


def test_runs_that_differ_are_monitored_side_by_side(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trials = [monitor(None, run_id=f"trial-{number}") for number in range(3)]

    assert [is_closed(m) for m in trials] == [False, False, False]
    for m in trials:
        m.close()


def test_a_monitor_that_cannot_be_made_closes_no_other(tmp_path):
    with monitor(tmp_path) as m:
        with pytest.raises(ConfigError):
            monitor(tmp_path, sinks=("nothing",))

        assert not is_closed(m)


def test_two_monitors_of_one_process_may_be_closed_in_any_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # gives it back after the test
    first, second = monitor(tmp_path / "1"), monitor(tmp_path / "2")
    first.close()
    sys.excepthook(ValueError, ValueError("boom"), None)
    second.close()

    assert "exception" not in event_names(tmp_path / "1")
    assert "exception" in event_names(tmp_path / "2")
    assert "ValueError: boom" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["project", "experiment", "run_id"])
def test_a_bad_name_is_refused_before_anything_is_made(tmp_path, name):
    names = {"project": "shop", "experiment": "exp", name: "a/b"}

    with pytest.raises(ConfigError, match=name):
        TrainingMonitor(metrics_port=None, run_dir=tmp_path / "run", **names)

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(tmp_path, port):
    with pytest.raises(ConfigError, match="metrics_port"):
        TrainingMonitor("shop", "exp", port, run_dir=tmp_path)


def test_an_address_that_is_not_this_machines_is_refused_with_a_cure(tmp_path):
    with pytest.raises(ConfigError, match=r"metrics_host = '203\.0\.113\.7'(.|\n)*127\.0\.0\.1"):
        TrainingMonitor("shop", "exp", 0, metrics_host="203.0.113.7", run_dir=tmp_path)


def test_an_unknown_sink_is_refused_and_the_known_ones_are_listed(tmp_path):
    with pytest.raises(UnknownPluginError, match="known kinds: jsonl, prometheus"):
        monitor(tmp_path, sinks=("prom",))


def test_an_unwritable_run_directory_is_refused_before_training_starts(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(RunDirectoryError, match="nothing is lost"):
        monitor(tmp_path / "file" / "run")
