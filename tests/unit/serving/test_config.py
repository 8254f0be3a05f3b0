"""A server that anybody could use, or whose secret could leak, is not built."""

from __future__ import annotations

import pytest

from production_ml.core.errors import ConfigError
from production_ml.serving.config import ServerConfig


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_no_token(host):
    assert ServerConfig(host=host).token is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "models.example.org", ""])
def test_other_machines_need_one_and_the_error_tells_how(host):
    with pytest.raises(ConfigError, match="PRODUCTION_ML_TOKEN"):
        ServerConfig(host=host)

    assert ServerConfig(host=host, token="s3cret").host == host


def test_the_token_is_in_no_text_about_the_settings():
    assert "s3cret" not in repr(ServerConfig(token="s3cret"))


@pytest.mark.parametrize("token", ["", " ", "s3cret\n", "s3crét"])
def test_a_token_that_no_header_can_carry_is_refused_without_being_shown(token):
    with pytest.raises(ConfigError, match="visible ASCII") as caught:
        ServerConfig(token=token)

    assert "s3cr" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"port": -1}, {"port": 65536}, {"max_body_bytes": 0}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError):
        ServerConfig(**settings)
