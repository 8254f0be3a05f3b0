"""The line that announces the server is true and says what to try."""

from __future__ import annotations

import pytest

from production_ml.mlops.model_package import TensorSpec
from production_ml.serving import ModelServer, ServerConfig
from production_ml.serving.announcement import announcement, example_request
from production_ml.testing.serving import FakeRuntimes, fake_package


@pytest.mark.parametrize("token", [None, "s3cret"])
def test_versions_and_shares_are_named_and_the_token_is_not(tmp_path, token):
    two, three = (fake_package(tmp_path / f"{scale}", scale=scale) for scale in (2, 3))
    references = [f"{two.directory}=80", f"{three.directory}=20"]
    server = ModelServer(references, ServerConfig(token=token), runtimes=FakeRuntimes())
    server.load()

    line = announcement(server, "http://127.0.0.1:8080")

    assert f"{two.directory} (version {two.content_hash[:12]}, 80%)" in line
    assert "at http://127.0.0.1:8080" in line
    assert "s3cret" not in line
    assert ("$PRODUCTION_ML_TOKEN" in line) is (token is not None)
    assert "\n" not in line


def test_the_example_of_a_small_model_is_spelled_out():
    spec = TensorSpec(name="flags", datatype="BOOL", shape=(-1, 2))

    request = example_request("http://h:1", "m", [spec], with_token=False)

    assert request == (
        "curl -s http://h:1/v2/models/m/infer -d "
        '\'{"inputs":[{"name":"flags","shape":[1,2],"datatype":"BOOL","data":[false,false]}]}\''
    )
