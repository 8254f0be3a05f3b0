"""The registry on real MLflow: aliases move only with a verdict, and what is fetched is what was registered."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from production_ml.core.errors import (
    DamagedFileError,
    ExitCode,
    PromotionRefusedError,
    RegistryError,
    UnknownModelError,
)
from production_ml.mlops.evaluation_gate import AtLeast, EvaluationGate
from production_ml.mlops.experiment_tracking import ExperimentTracker
from production_ml.mlops.model_package import ModelPackage, TensorSpec, create_package
from production_ml.mlops.model_registry import ModelRegistry

GATE = EvaluationGate([AtLeast("accuracy", 0.9)])
MILDER_GATE = EvaluationGate([AtLeast("accuracy", 0.5)], alias="challenger")


@pytest.fixture
def registry(tracking_uri: str) -> ModelRegistry:
    return ModelRegistry(tracking_uri)


@pytest.fixture
def make_package(tmp_path: Path):
    def make(weights: bytes, name: str = "digits") -> ModelPackage:
        directory = tmp_path / f"package-{name}-{weights.hex()}"
        directory.mkdir()
        (directory / "model.onnx").write_bytes(weights)
        spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
        files = {"model.onnx": directory / "model.onnx"}
        return create_package(directory, name=name, runtime="onnx", inputs=[spec], outputs=[spec], files=files)

    return make


def judge(package: ModelPackage, accuracy: float = 0.95, gate: EvaluationGate = GATE):
    return gate.decide({"accuracy": accuracy}, None, subject=package.content_hash)


def test_a_champion_is_fetched_as_it_was_registered(registry, make_package):
    package = make_package(b"one")
    registered = registry.register(package, verdict=judge(package))
    registry.promote("digits", registered.version)

    champion = registry.resolve("digits@champion")

    assert (champion.version, champion.alias, champion.content_hash) == (1, "champion", package.content_hash)
    assert (champion.directory / "model.onnx").read_bytes() == b"one"
    assert registry.resolve("digits") == champion
    assert registry.resolve("digits:1").content_hash == champion.content_hash


def test_no_alias_moves_without_a_verdict(registry, make_package):
    registry.register(make_package(b"one"))

    for alias in ("champion", "challenger"):
        with pytest.raises(PromotionRefusedError, match="no evaluation verdict"):
            registry.promote("digits", 1, alias)

    assert registry.show("digits").aliases == {}


def test_who_passed_as_challenger_does_not_become_champion(registry, make_package):
    package = make_package(b"one")
    registry.register(package, verdict=judge(package, gate=MILDER_GATE))
    registry.promote("digits", 1, "challenger")

    with pytest.raises(PromotionRefusedError, match="its verdict was decided for challenger, not for champion"):
        registry.promote("digits", 1)

    assert registry.show("digits").aliases == {"challenger": 1}


def test_the_verdicts_for_two_aliases_live_side_by_side(registry, make_package, tracking_uri):
    from mlflow import MlflowClient

    package = make_package(b"one")
    verdicts = {"challenger": judge(package, 0.6, MILDER_GATE), "champion": judge(package, 0.6)}
    registry.register(package, verdict=verdicts["challenger"])
    registry.record_verdict("digits", 1, verdicts["champion"])

    with pytest.raises(PromotionRefusedError, match=r"observed 0\.6"):
        registry.promote("digits", 1)
    promoted = registry.promote("digits", 1, "challenger")

    assert promoted.verdicts == verdicts
    client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
    for alias, passed in (("challenger", "true"), ("champion", "false")):
        wanted = f"name = 'digits' AND tags.`production_ml.verdict_passed.{alias}` = '{passed}'"
        assert [found.version for found in client.search_model_versions(wanted)] == [1]


def test_a_rollback_asks_for_the_verdict_of_the_alias_that_moves(registry, make_package):
    packages = [make_package(weights) for weights in (b"one", b"two")]
    for package in packages:
        version = registry.register(package, verdict=judge(package, gate=MILDER_GATE)).version
        registry.promote("digits", version, "challenger")
    registry.record_verdict("digits", 1, judge(packages[0], 0.1))

    assert registry.rollback("digits", "challenger").version == 1


@pytest.mark.parametrize("accuracy", [0.5, math.nan])
def test_a_refused_version_does_not_become_champion_and_the_old_one_stays(registry, make_package, accuracy):
    for weights, measured in ((b"one", 0.95), (b"two", accuracy)):
        package = make_package(weights)
        registry.register(package, verdict=judge(package, measured))
    registry.promote("digits", 1)

    with pytest.raises(PromotionRefusedError, match="champion stays at version 1"):
        registry.promote("digits", 2)

    assert registry.show("digits").aliases == {"champion": 1}


def test_a_verdict_about_another_package_cannot_be_recorded(registry, make_package):
    registry.register(make_package(b"one"))

    with pytest.raises(RegistryError, match="The verdict is about the package"):
        registry.record_verdict("digits", 1, judge(make_package(b"two")))

    assert registry.show("digits").versions[0].verdicts == {}


def test_a_verdict_that_was_copied_onto_another_version_is_not_believed(registry, make_package, tracking_uri):
    from mlflow import MlflowClient

    good = make_package(b"good")
    registry.register(good, verdict=judge(good))
    registry.register(make_package(b"bad"))
    client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
    stolen = client.get_model_version("digits", "1").tags["production_ml.verdict.champion"]
    client.set_model_version_tag("digits", "2", "production_ml.verdict.champion", stolen)

    with pytest.raises(PromotionRefusedError, match="another package"):
        registry.promote("digits", 2)


def test_a_verdict_that_was_copied_to_another_alias_is_not_believed(registry, make_package, tracking_uri):
    from mlflow import MlflowClient

    package = make_package(b"one")
    registry.register(package, verdict=judge(package, gate=MILDER_GATE))
    client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
    milder = client.get_model_version("digits", "1").tags["production_ml.verdict.challenger"]
    client.set_model_version_tag("digits", "1", "production_ml.verdict.champion", milder)

    with pytest.raises(PromotionRefusedError, match="decided for challenger, not for champion"):
        registry.promote("digits", 1)


def test_a_verdict_is_read_from_the_registry_by_whoever_promotes(registry, make_package, tracking_uri):
    package = make_package(b"one")
    verdict = judge(package, gate=MILDER_GATE)
    registry.register(package)
    registry.record_verdict("digits", 1, verdict)

    promoted = ModelRegistry(tracking_uri).promote("digits", 1, "challenger")

    assert promoted.aliases == ("challenger",)
    assert promoted.verdicts == {"challenger": verdict}


def test_a_later_refusal_replaces_an_earlier_pass(registry, make_package):
    package = make_package(b"one")
    registry.register(package, verdict=judge(package))
    registry.record_verdict("digits", 1, judge(package, 0.2))

    with pytest.raises(PromotionRefusedError, match=r"observed 0\.2"):
        registry.promote("digits", 1)


def test_a_rollback_brings_back_the_one_before_and_then_the_one_before_that(registry, make_package):
    for weights in (b"one", b"two", b"three"):
        package = make_package(weights)
        registry.promote("digits", registry.register(package, verdict=judge(package)).version)

    assert registry.rollback("digits").version == 2
    assert registry.rollback("digits").version == 1
    with pytest.raises(RegistryError, match="champion stays at version 1"):
        registry.rollback("digits")
    assert registry.resolve("digits").version == 1


def test_a_rollback_does_not_bring_back_a_version_that_was_refused_meanwhile(registry, make_package):
    packages = [make_package(weights) for weights in (b"one", b"two")]
    for package in packages:
        registry.promote("digits", registry.register(package, verdict=judge(package)).version)
    registry.record_verdict("digits", 1, judge(packages[0], 0.1))

    with pytest.raises(PromotionRefusedError):
        registry.rollback("digits")

    assert registry.resolve("digits").version == 2


def test_promoting_the_champion_again_does_not_lose_its_predecessor(registry, make_package):
    for weights in (b"one", b"two"):
        package = make_package(weights)
        registry.promote("digits", registry.register(package, verdict=judge(package)).version)
    registry.promote("digits", 2)

    assert registry.rollback("digits").version == 1


def test_a_flipped_bit_in_the_registry_is_never_handed_out(registry, make_package):
    registry.register(make_package(b"one"))
    stored = registry.resolve("digits:1").directory / "model.onnx"
    stored.write_bytes(b"onf")

    with pytest.raises(DamagedFileError) as caught:
        registry.resolve("digits:1")

    assert caught.value.path == stored


def test_a_package_that_was_swapped_whole_is_noticed(registry, make_package):
    registry.register(make_package(b"one"))
    other = make_package(b"two")
    stored = registry.resolve("digits:1").directory
    for name in ("model.onnx", "model.json"):
        (stored / name).write_bytes(other.file(name).read_bytes())

    with pytest.raises(DamagedFileError, match="digits version 1"):
        registry.resolve("digits:1")


def test_outputs_that_were_swapped_in_the_registry_are_never_handed_out(registry, make_package):
    registry.register(make_package(b"one"))
    stored = registry.resolve("digits:1").directory / "model.json"
    described = json.loads(stored.read_text())
    described["outputs"][0]["name"] = "y"
    stored.write_text(json.dumps(described))

    with pytest.raises(DamagedFileError, match=r"model\.json"):
        registry.resolve("digits:1")


def test_a_damaged_package_is_not_registered(registry, make_package):
    package = make_package(b"one")
    package.file("model.onnx").write_bytes(b"onf")

    with pytest.raises(DamagedFileError):
        registry.register(package)

    assert registry.list() == ()


def test_a_package_lies_with_the_run_that_trained_it(registry, make_package, tracking_uri):
    with ExperimentTracker("training", tracking_uri).start_run("exp-001") as run:
        registry.register(make_package(b"one"), run_id=run.run_id)

    assert registry.show("digits").versions[0].run_id == run.run_id


def test_what_is_unknown_is_answered_with_what_is_known(registry, make_package):
    package = make_package(b"one")
    registry.register(package, verdict=judge(package, gate=MILDER_GATE))
    registry.promote("digits", 1, "challenger")

    for reference, known in [
        ("letters", "Known models: digits"),
        ("digits:7", "Known versions: 1"),
        ("digits@champion", r"Known aliases: challenger \(version 1\)"),
    ]:
        with pytest.raises(UnknownModelError, match=known) as caught:
            registry.resolve(reference)
        assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_all_models_are_listed(registry, make_package):
    for name in ("letters", "digits"):
        registry.register(make_package(b"one", name))

    assert [(model.name, len(model.versions)) for model in registry.list()] == [("digits", 1), ("letters", 1)]


def test_a_version_that_something_else_made_is_shown_but_not_served(registry, tracking_uri):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "s3://bucket/model")

    assert registry.show("foreign").versions[0].content_hash == ""
    with pytest.raises(PromotionRefusedError, match="not registered by production_ml"):
        registry.promote("foreign", 1)
    with pytest.raises(RegistryError, match="holds no production_ml package"):
        registry.resolve("foreign:1")


def test_the_registry_does_not_depend_on_the_working_directory(make_package, mlflow_template, tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    registry = ModelRegistry()
    registry.register(make_package(b"one"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert registry.resolve("digits:1").version == 1
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_server_that_does_not_answer_is_an_error_with_a_cure(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(RegistryError, match="Check that the MLflow server runs") as caught:
        ModelRegistry("http://127.0.0.1:9").list()

    assert caught.value.exit_code == ExitCode.FAILED


@pytest.mark.parametrize("uri", ["http://alice:hunter2@127.0.0.1:9", "nosuch://alice:hunter2@127.0.0.1:9/db"])
def test_the_password_of_a_registry_that_cannot_be_reached_is_not_told(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9") as caught:
        ModelRegistry(uri).list()

    assert "hunter2" not in str(caught.value)
