"""A package's hash stands for all of it: the files, and everything that is said about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from production_ml.core.errors import DamagedFileError, InputFileError, ProductionMLError
from production_ml.mlops.model_package import ModelPackage, TensorSpec, create_package, open_package


def make(directory: Path, **changed) -> ModelPackage:
    directory.mkdir()
    (directory / "model.onnx").write_bytes(b"weights")
    described = {
        "name": "digits",
        "runtime": "onnx",
        "inputs": [TensorSpec(name="x", datatype="FP32", shape=(-1, 4))],
        "outputs": [TensorSpec(name=name, datatype="FP32", shape=(-1, 2)) for name in ("a", "b")],
        "metadata": {"step": 300},
    }
    return create_package(directory, **{**described, **changed}, files={"model.onnx": directory / "model.onnx"})


def edit(package: ModelPackage, **changed) -> None:
    path = package.file("model.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_a_package_is_read_as_it_was_made(tmp_path):
    made = make(tmp_path / "package")

    assert open_package(made.directory) == made
    assert open_package(made.directory).content_hash == made.content_hash


@pytest.mark.parametrize(
    "metadata", [None, {10: "ten", 9: "nine", "2": 2}, {"loss": float("nan"), "lr": 1e-5, "shape": (1, 2), "name": "ü"}]
)
def test_the_hash_does_not_depend_on_how_metadata_was_stated(tmp_path, metadata):
    made = make(tmp_path / "package", metadata=metadata)

    assert open_package(made.directory).content_hash == made.content_hash


@pytest.mark.parametrize(
    "changed",
    [
        {"outputs": [{"name": name, "datatype": "FP32", "shape": [-1, 2]} for name in ("b", "a")]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 5]}]},
        {"runtime": "other"},
        {"name": "letters"},
        {"metadata": {"step": 301}},
        {"files": {}},
    ],
)
def test_a_description_that_was_changed_is_not_accepted_under_its_hash(tmp_path, changed):
    package = make(tmp_path / "package")
    edit(package, **changed)

    with pytest.raises(DamagedFileError) as caught:
        open_package(package.directory)

    assert caught.value.path == package.file("model.json")


@pytest.mark.parametrize(
    "changed",
    [
        {"outputs": [TensorSpec(name=name, datatype="FP32", shape=(-1, 2)) for name in ("b", "a")]},
        {"runtime": "other"},
        {"metadata": {"step": 301}},
    ],
)
def test_the_same_weights_described_otherwise_need_a_verdict_of_their_own(tmp_path, changed):
    assert make(tmp_path / "one").content_hash != make(tmp_path / "other", **changed).content_hash


def test_a_flipped_bit_of_the_description_is_noticed(tmp_path, rng):
    package = make(tmp_path / "package")
    path = package.file("model.json")
    sound = path.read_bytes()

    for position in rng.sample(range(8 * len(sound)), 500):
        flipped = bytearray(sound)
        flipped[position // 8] ^= 1 << position % 8
        # After the closing brace, one kind of white space is as good as another.
        if flipped.strip() != sound.strip():
            path.write_bytes(flipped)
            with pytest.raises(ProductionMLError):
                open_package(package.directory)


def test_a_changed_or_lost_file_is_named(tmp_path):
    package = make(tmp_path / "package")

    package.file("model.onnx").write_bytes(b"Weights")
    with pytest.raises(DamagedFileError, match=r"model\.onnx: does not match its hash"):
        open_package(package.directory)
    package.file("model.onnx").unlink()
    with pytest.raises(DamagedFileError, match=r"model\.onnx: is listed in the model package but missing"):
        open_package(package.directory)


@pytest.mark.parametrize("version", [1, 3, None])
def test_a_package_of_another_format_is_refused_with_a_cure(tmp_path, version):
    package = make(tmp_path / "package")
    edit(package, format_version=version)

    with pytest.raises(InputFileError, match=r"this release reads version 2(.|\n)*Export it again") as caught:
        open_package(package.directory)

    assert not isinstance(caught.value, DamagedFileError)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"format_version": 2}'])
def test_what_is_no_package_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "model.json").write_text(content)

    with pytest.raises(InputFileError, match=r"model\.json"):
        open_package(tmp_path)
