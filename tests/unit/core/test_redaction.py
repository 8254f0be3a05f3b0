"""Secrets do not reach a log, and what is none stays readable."""

from __future__ import annotations

import pytest

from production_ml.core.redaction import REDACTED, is_secret, redact, redact_command


@pytest.mark.parametrize(
    "key", ["password", "WANDB_API_KEY", "hf.token", "aws-secret-access-key", "db_passwd", "apikey", "credentials"]
)
def test_keys_that_name_a_secret_are_known(key):
    assert is_secret(key)


@pytest.mark.parametrize("key", ["max_tokens", "tokenizer", "key_dim", "n_keys", "learning_rate", "secretary"])
def test_keys_that_only_sound_like_one_are_kept(key):
    assert not is_secret(key)


def test_a_configuration_loses_secrets_at_every_depth_and_nothing_else():
    config = {"lr": 0.1, "api_key": "x", "stores": [{"name": "s3", "secret": "y"}], "tracking": {"token": "z"}}

    redacted = redact(config)

    assert redacted == {
        "lr": 0.1,
        "api_key": REDACTED,
        "stores": [{"name": "s3", "secret": REDACTED}],
        "tracking": {"token": REDACTED},
    }
    assert config["api_key"] == "x"


def test_a_password_in_a_url_is_hidden_and_the_rest_of_it_kept():
    assert redact({"uri": "postgresql://ml:hunter2@db:5432/mlflow"}) == {
        "uri": f"postgresql://ml:{REDACTED}@db:5432/mlflow"
    }


def test_a_command_line_loses_secrets_in_both_spellings():
    command = [
        "train.py",
        "--api-key=x",
        "--hf-token",
        "y",
        "--lr",
        "0.1",
        "--db",
        "mysql://u:p@h/d",
        "--password",
        "-v",
    ]

    assert redact_command(command) == [
        "train.py",
        f"--api-key={REDACTED}",
        "--hf-token",
        REDACTED,
        "--lr",
        "0.1",
        "--db",
        f"mysql://u:{REDACTED}@h/d",
        "--password",
        "-v",
    ]
