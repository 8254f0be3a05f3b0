"""Runs in real MLflow hold what was logged, and end as they ended."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from production_ml.core.errors import InputFileError, RegistryError
from production_ml.mlops.experiment_tracking import ExperimentTracker


@pytest.fixture
def tracker(tracking_uri: str) -> ExperimentTracker:
    return ExperimentTracker("digits", tracking_uri)


@pytest.fixture
def client(tracking_uri: str):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def test_a_run_holds_its_settings_its_tags_and_the_code_it_came_from(tracker, client):
    with tracker.start_run("exp-001", {"lr": 0.1, "optimizer": {"name": "adam"}}, {"team": "vision"}) as run:
        pass

    data, info = client.get_run(run.run_id).data, client.get_run(run.run_id).info
    assert data.params == {"lr": "0.1", "optimizer.name": "adam"}
    assert data.tags["team"] == "vision"
    assert data.tags["production_ml.python"].startswith("3.")
    assert "production_ml.version.mlflow" in data.tags
    assert (info.run_name, info.status) == ("exp-001", "FINISHED")


def test_every_point_of_a_long_series_arrives(tracker, client):
    with tracker.start_run("exp-001") as run:
        run.log_metrics(("train/loss", 1 / (step + 1), step, 1_700_000_000.0 + step) for step in range(2_500))

    history = client.get_metric_history(run.run_id, "train/loss")
    assert [point.step for point in history] == list(range(2_500))
    assert history[-1].timestamp == 1_700_002_499_000


def test_what_is_not_finite_is_kept_as_well_as_the_database_can(tracker, client):
    with tracker.start_run("exp-001") as run:
        run.log_metrics([("loss", math.nan, 0, 1.0), ("loss", math.inf, 1, 2.0), ("loss", -math.inf, 2, 3.0)])

    nan, infinite, minus = (point.value for point in client.get_metric_history(run.run_id, "loss"))
    assert math.isnan(nan)
    assert infinite > 1e308
    assert minus < -1e308


def test_a_name_that_mlflow_refuses_is_logged_under_the_nearest_it_takes(tracker, client):
    with tracker.start_run("exp-001", {"lr@start": 1}) as run:
        run.log_metrics([("acc%", 0.5, 0, 1.0)])

    assert client.get_run(run.run_id).data.metrics == {"acc_": 0.5}
    assert client.get_run(run.run_id).data.params == {"lr_start": "1"}


def test_an_endless_setting_is_cut_and_said_to_be(tracker, client, caplog):
    with caplog.at_level(logging.WARNING), tracker.start_run("exp-001", {"prompt": "x" * 10_000}) as run:
        pass

    assert client.get_run(run.run_id).data.params["prompt"] == "x" * 6000
    assert "prompt has 10000 characters" in caplog.text


def test_more_settings_than_a_request_takes_all_arrive(tracker, client):
    with tracker.start_run("exp-001", {f"setting_{number}": number for number in range(250)}) as run:
        pass

    assert len(client.get_run(run.run_id).data.params) == 250


def test_a_secret_is_not_in_the_database(tracker, tmp_path: Path):
    with tracker.start_run("exp-001", {"hub": {"token": "s3cret-value"}}, {"api_key": "s3cret-value"}):
        pass

    assert b"s3cret-value" not in (tmp_path / "mlflow.db").read_bytes()


def test_a_url_s_password_is_not_in_the_database(tracker, client, tmp_path: Path):
    url = "postgresql://reader:s3cret-value@db/digits"
    settings = {"data": url, "shards": [url, url], "prompt": "x" * (6000 - len(url) // 2) + url}

    with pytest.raises(ValueError, match="s3cret"), tracker.start_run("exp-001", settings, {"source": url}) as run:
        raise ValueError(f"cannot connect to {url}")

    data = client.get_run(run.run_id).data
    assert data.params["data"] == data.tags["source"] == "postgresql://***@db/digits"
    assert data.tags["production_ml.error"] == "ValueError: cannot connect to postgresql://***@db/digits"
    assert b"s3cret-v" not in (tmp_path / "mlflow.db").read_bytes()


def test_a_run_that_raised_has_failed_and_says_why(tracker, client):
    with pytest.raises(ZeroDivisionError), tracker.start_run("exp-001") as run:
        1 / 0  # noqa: B018  (the point is that it raises)

    assert client.get_run(run.run_id).info.status == "FAILED"
    assert client.get_run(run.run_id).data.tags["production_ml.error"] == "ZeroDivisionError: division by zero"


def test_two_runs_may_be_open_at_once(tracker, client):
    with tracker.start_run("outer") as outer, tracker.start_run("inner") as inner:
        outer.log_metrics([("loss", 1.0, 0, 1.0)])
        inner.log_metrics([("loss", 2.0, 0, 1.0)])

    assert client.get_run(outer.run_id).data.metrics == {"loss": 1.0}
    assert client.get_run(inner.run_id).data.metrics == {"loss": 2.0}


def test_files_and_directories_are_kept_with_the_run(tracker, client, tmp_path: Path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.txt").write_text("…")
    with tracker.start_run("exp-001") as run:
        run.log_artifact(tmp_path / "plots", "plots")
        run.log_artifact(tmp_path / "plots" / "loss.txt")

    assert {entry.path for entry in client.list_artifacts(run.run_id)} == {"plots", "loss.txt"}
    assert [entry.path for entry in client.list_artifacts(run.run_id, "plots")] == ["plots/loss.txt"]


def test_a_missing_artifact_is_named(tracker, tmp_path: Path):
    with pytest.raises(InputFileError, match=r"absent\.txt"), tracker.start_run("exp-001") as run:
        run.log_artifact(tmp_path / "absent.txt")


def test_a_setting_cannot_be_changed_behind_a_runs_back(tracker):
    with pytest.raises(RegistryError, match="lr"), tracker.start_run("exp-001", {"lr": 0.1}) as run:
        run.log_params({"lr": 0.2})
