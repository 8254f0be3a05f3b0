"""The data and registry commands do what the library does, and say it in exit codes and JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from production_ml.cli import data, registry
from production_ml.core.errors import ExitCode, InputFileError, PromotionRefusedError, UnknownModelError
from production_ml.mlops.evaluation_gate import AtLeast, EvaluationGate
from production_ml.mlops.model_package import TensorSpec, create_package
from production_ml.mlops.model_registry import ModelRegistry


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "digits.csv"
    path.write_text("pixel,label\n0,1\n16,2\n")
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    data.register(app)
    registry.register(app)

    def invoke(*arguments: str):
        result = CliRunner().invoke(app, list(arguments))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def two_versions(tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    models = ModelRegistry()
    for number, accuracy in enumerate((0.95, 0.96, 0.1)):
        weights = tmp_path / f"{number}.onnx"
        weights.write_text(str(number))
        spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
        described = {"name": "digits", "runtime": "onnx", "inputs": [spec], "outputs": [spec]}
        package = create_package(tmp_path / f"package-{number}", **described, files={"model.onnx": weights})
        gate = EvaluationGate([AtLeast("accuracy", 0.9)])
        models.register(package, verdict=gate.decide({"accuracy": accuracy}, None, subject=package.content_hash))
    return models


def test_data_that_was_added_is_listed_and_got(run, table):
    added = json.loads(run("data", "add", "digits", str(table), "--json").stdout)
    listed = json.loads(run("data", "list", "--json").stdout)
    got = run("data", "get", "digits:1").stdout.strip()

    assert listed == [added]
    assert Path(got).read_text() == table.read_text()
    assert "digits" in run("data", "list").stdout


def test_a_damaged_dataset_is_listed_as_such_beside_the_sound_ones(run, table):
    lost = json.loads(run("data", "add", "lost", str(table), "--json").stdout)
    table.write_text("pixel\n1\n")
    run("data", "add", "sound", str(table))
    shutil.rmtree(Path(lost["directory"]).parent)

    listed = json.loads(run("data", "list", "--json").stdout)

    assert [(version["name"], version["problem"] is None) for version in listed] == [("lost", False), ("sound", True)]
    assert "DAMAGED" in run("data", "list").stdout
    assert run("data", "get", "sound").exit_code == ExitCode.OK


@pytest.mark.parametrize(("limit", "exit_code"), [(16, ExitCode.OK), (15, ExitCode.REFUSED)])
def test_the_exit_code_of_validate_is_the_verdict(run, table, tmp_path, limit, exit_code):
    (tmp_path / "rules.yaml").write_text(f"- column: pixel\n  between: [0, {limit}]\n")
    run("data", "add", "digits", str(table))

    for data_argument in (str(table), "digits", "digits:1"):
        result = run("data", "validate", data_argument, "--rules", "rules.yaml", "--json")
        assert result.exit_code == exit_code
        assert json.loads(result.stdout)["passed"] is (exit_code == ExitCode.OK)


@pytest.mark.parametrize("content", [None, b"", b'a,b\n1,2,3\n"'])
def test_a_table_that_cannot_be_read_is_named(run, tmp_path, content):
    (tmp_path / "rules.yaml").write_text('- not_null: "*"\n')
    if content is not None:
        (tmp_path / "broken.csv").write_bytes(content)

    with pytest.raises(InputFileError, match=r"broken\.csv"):
        run("data", "validate", "broken.csv", "--rules", "rules.yaml")


def test_a_dataset_of_several_tables_is_not_guessed_at(run, tmp_path, table):
    (tmp_path / "rules.yaml").write_text('- not_null: "*"\n')
    (tmp_path / "tables").mkdir()
    for name in ("a.csv", "b.csv"):
        (tmp_path / "tables" / name).write_text("x\n1\n")
    run("data", "add", "both", "tables")

    with pytest.raises(InputFileError, match=r"a\.csv, b\.csv"):
        run("data", "validate", "both", "--rules", "rules.yaml")


def test_a_promotion_and_a_rollback_are_seen_by_list_and_show(run, two_versions):
    run("registry", "promote", "digits", "1")
    run("registry", "promote", "digits", "2")
    assert "version 1 again" in run("registry", "rollback", "digits").stdout

    shown = json.loads(run("registry", "show", "digits", "--json").stdout)
    assert shown["aliases"] == {"champion": 1}
    assert [version["verdicts"]["champion"]["passed"] for version in shown["versions"]] == [True, True, False]
    assert json.loads(run("registry", "list", "--json").stdout) == [shown]
    assert "champion → 1" in run("registry", "list").stdout
    printed = run("registry", "show", "digits").stdout
    assert "champion: refused" in printed
    assert "Version 3 refused for champion:\n  accuracy at least 0.9: observed 0.1" in printed


def test_a_refused_promotion_leaves_through_the_exit_code_for_refusals(run, two_versions):
    with pytest.raises(PromotionRefusedError) as caught:
        run("registry", "promote", "digits", "3")

    assert caught.value.exit_code == ExitCode.REFUSED


def test_a_verdict_for_the_champion_does_not_open_another_alias(run, two_versions):
    with pytest.raises(PromotionRefusedError, match="decided for champion, not for challenger"):
        run("registry", "promote", "digits", "1", "--alias", "challenger")


@pytest.mark.parametrize(
    "arguments",
    [("show", "letters"), ("promote", "letters", "1"), ("promote", "digits", "9"), ("rollback", "digits")],
)
def test_what_the_registry_does_not_have_leaves_through_the_exit_code_for_bad_input(run, two_versions, arguments):
    with pytest.raises(UnknownModelError) as caught:
        run("registry", *arguments)

    assert caught.value.exit_code == ExitCode.BAD_INPUT
