"""What cannot work is refused when the monitor is made; what may change later never stops training."""

from __future__ import annotations

import shutil
import sys

import pytest

from production_ml.core.errors import ConfigError
from production_ml.monitoring.exporter.start import check_address, ensure_exporter


@pytest.mark.parametrize("port", [None, 0, 1, 65535])
def test_every_port_can_be_asked_for(port):
    check_address("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", -1), ("127.0.0.1", 65536), ("203.0.113.7", 8000), ("::1", 8000)]
)
def test_an_address_that_cannot_be_served_on_is_refused(host, port):
    with pytest.raises(ConfigError, match="metrics_"):
        check_address(host, port)


def test_an_exporter_that_cannot_be_started_is_warned_of_and_training_goes_on(run, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", "/no/such/python")

    assert ensure_exporter(run, host="127.0.0.1", port=0, sinks=("prometheus",), owner_pid=1) is None
    assert "Training goes on" in caplog.text


def test_a_run_directory_without_locks_is_warned_of_and_training_goes_on(run, caplog):
    shutil.rmtree(run.path / "exporter")

    assert ensure_exporter(run, host="127.0.0.1", port=0, sinks=("prometheus",), owner_pid=1) is None
    assert "no exporter could be started" in caplog.text
