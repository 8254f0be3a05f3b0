"""Versions that share a name share its clients, so they have to be alike."""

from __future__ import annotations

import pytest

from production_ml.core.errors import ConfigError, ServingError
from production_ml.serving import ModelServer
from production_ml.testing.serving import fake_package


@pytest.fixture
def load(runtimes):
    def make(*models) -> ModelServer:
        server = ModelServer(models, runtimes=runtimes)
        server.load()
        return server

    return make


def test_models_of_different_names_have_all_of_their_own_traffic(load, tmp_path):
    a, b = (fake_package(tmp_path / name, name=name) for name in "ab")

    server = load(a.directory, b.directory)

    assert [server.share(slot) for slot in server.slots] == [1, 1]


@pytest.mark.parametrize("other", [{"width": 4}, {"datatype": "FP64"}])
def test_versions_that_take_different_requests_cannot_share_a_name(load, tmp_path, other):
    one, two = fake_package(tmp_path / "one"), fake_package(tmp_path / "two", **other)

    with pytest.raises(ServingError, match="have different inputs or outputs"):
        load(one.directory, two.directory)


def test_a_model_without_any_weight_is_refused(load, tmp_path):
    package = fake_package(tmp_path)

    with pytest.raises(ConfigError, match="no version to answer"):
        load(f"{package.directory}=0")
