"""Steps are completed from what is there, and places and metrics are read in each of their forms."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from production_ml.cli.checkpoint.arguments import (
    complete_directory,
    complete_step,
    open_directory,
    parse_best,
    parse_place,
)
from production_ml.core.errors import ConfigError, InputFileError


def test_the_shell_completes_the_steps_that_are_there(root, tmp_path):
    assert complete_step(SimpleNamespace(params={"directory": root}), "") == ["100", "200", "300"]
    assert complete_step(SimpleNamespace(params={"directory": str(root)}), "2") == ["200"]
    assert complete_step(SimpleNamespace(params={"directory": tmp_path / "absent"}), "") == []
    assert complete_step(SimpleNamespace(params={}), "") == []


def test_the_shell_completes_directories(root, tmp_path):
    (tmp_path / "check").touch()

    assert complete_directory(f"{tmp_path}/che") == [str(root)]
    assert complete_directory(f"{tmp_path}/absent/") == []


@pytest.mark.parametrize(("form", "step"), [("{}", 300), ("{}@100", 100), ("{}/step-00000200", 200)])
def test_a_place_has_three_forms(root, form, step):
    directory, found = parse_place(form.format(root))

    assert (directory.path, found) == (root, step)


def test_a_directory_with_an_at_sign_in_its_name_is_a_directory(root):
    odd = root.rename(root.with_name("run@7"))

    assert parse_place(str(odd))[1] == 300


@pytest.mark.parametrize(
    ("text", "metric", "mode"),
    [("loss", "loss", "min"), ("acc:max", "acc", "max"), ("a:b", "a:b", "min"), ("a:b:min", "a:b", "min")],
)
def test_a_metric_may_say_which_end_is_best(text, metric, mode):
    best = parse_best(text)

    assert (best.metric, best.mode) == (metric, mode)


def test_a_metric_without_a_name_is_bad_input():
    with pytest.raises(ConfigError, match="names no metric"):
        parse_best(":max")


def test_a_url_of_a_directory_that_is_not_there_is_bad_input_as_its_path_is(tmp_path):
    for name in (str(tmp_path / "absent"), f"file://{tmp_path}/absent"):
        with pytest.raises(InputFileError, match="does not exist"):
            open_directory(name)
