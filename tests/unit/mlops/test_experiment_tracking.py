"""What leaves the process for a tracking server."""

from __future__ import annotations

from production_ml.mlops.experiment_tracking import flatten


def test_nested_settings_become_dotted_keys():
    nested = {"lr": 0.1, "optimizer": {"name": "adam", "betas": [0.9, 0.999]}, "stages": [{"depth": 2}, {"depth": 3}]}

    assert flatten(nested) == {
        "lr": 0.1,
        "optimizer.name": "adam",
        "optimizer.betas": [0.9, 0.999],
        "stages.0.depth": 2,
        "stages.1.depth": 3,
    }


def test_a_secret_does_not_leave_at_any_depth():
    settings = {
        "wandb_api_key": "s3cret",
        "hub": {"token": "s3cret"},
        "sinks": [{"password": "s3cret"}],
        "credentials": {"user": "s3cret"},
        "grid": [[{"token": "s3cret"}]],
        "url": ["https://s3cret@host"],
    }

    flat = flatten(settings)

    assert "s3cret" not in str(flat)
    assert set(flat) == {"wandb_api_key", "hub.token", "sinks.0.password", "credentials", "grid", "url"}


def test_a_setting_that_only_sounds_like_a_secret_stays():
    assert flatten({"max_tokens": 512, "tokenizer": "bpe"}) == {"max_tokens": 512, "tokenizer": "bpe"}
