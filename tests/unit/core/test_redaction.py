"""Secrets do not reach a log, and what is none stays readable."""

from __future__ import annotations

import pytest

from production_ml.core.redaction import REDACTED, is_secret, redact, redact_command, redact_text


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "WANDB_API_KEY",
        "hf.token",
        "aws-secret-access-key",
        "db_passwd",
        "apikey",
        "credentials",
        "Authorization",
    ],
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ml:hunter2@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("https://ghp_hunter2@github.com/a/b", "https://***@github.com/a/b"),
        ("https://ghp_hunter2:x-oauth-basic@github.com", "https://***@github.com"),
        ("redis://:p@hunter2@cache", "redis://***@cache"),
        ("GET https://h/x?page=2&token=hunter2&q=1#top", "GET https://h/x?page=2&token=***&q=1#top"),
        ("https://h/x?hf_access_token=hunter2", "https://h/x?hf_access_token=***"),
        (
            "https://b.s3/x?X-Amz-Credential=hunter2&X-Amz-Signature=hunter2",
            "https://b.s3/x?X-Amz-Credential=***&X-Amz-Signature=***",
        ),
        ("https://h/x?sv=1&sig=hunter2", "https://h/x?sv=1&sig=***"),
        ("cannot connect: host=db password='hunter2 hunter2' port=1", "cannot connect: host=db password=*** port=1"),
        ("two: http://a:hunter2@b and http://c:hunter2@d", "two: http://***@b and http://***@d"),
    ],
)
def test_a_text_loses_the_secrets_of_its_urls_and_settings_and_nothing_else(text, shown):
    assert redact_text(text) == shown
    assert redact({"text": text}) == {"text": shown}


@pytest.mark.parametrize(
    "text",
    ["https://h/x?page=2&max_tokens=5", "write to a@b.org", "http://h:5000/#/experiments/1", "key=loss", "git@h:a/b"],
)
def test_a_text_without_a_secret_is_kept(text):
    assert redact_text(text) == text


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
        f"mysql://{REDACTED}@h/d",
        "--password",
        "-v",
    ]


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("wandb.api_key=hunter2", "wandb.api_key=***"),
        ("+db.password=hunter2 hunter2", "+db.password=***"),
        ("++token=hunter2", "++token=***"),
        ("--env=HF_TOKEN=hunter2", "--env=HF_TOKEN=***"),
        ("https://u:hunter2@h/x?access_token=hunter2", "https://***@h/x?access_token=***"),
        ("--data=https://h/x?token=hunter2", "--data=https://h/x?token=***"),
        ("model.max_tokens=5", "model.max_tokens=5"),
    ],
)
def test_a_secret_is_hidden_wherever_it_stands_in_an_argument(word, shown):
    assert redact_command(["train.py", word, "last"]) == ["train.py", shown, "last"]


def test_a_word_that_only_sounds_like_a_secrets_name_does_not_hide_the_next():
    assert redact_command(["make", "token", "train"]) == ["make", "token", "train"]
