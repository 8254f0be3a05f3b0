"""ONNX Runtime loads what a package describes, and says so where it cannot."""

from __future__ import annotations

import dataclasses

import onnx
import pytest
from onnx import TensorProto, helper

from production_ml.core.errors import ConfigError, ServingError
from production_ml.mlops.model_package import ModelPackage, TensorSpec, create_package
from production_ml.serving.runtimes.onnx import OnnxRuntime, OnnxRuntimeConfig


@pytest.fixture
def package(tmp_path) -> ModelPackage:
    """`y = x + x`, made by hand."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    described = {"inputs": [spec("x")], "outputs": [spec("y")], "files": {"model.onnx": tmp_path / "model.onnx"}}
    return create_package(tmp_path, name="double", runtime="onnx", **described)


def spec(name: str) -> TensorSpec:
    return TensorSpec(name=name, datatype="FP32", shape=(-1, 2))


def test_a_file_that_is_no_model_is_named(package):
    package.file("model.onnx").write_bytes(b"no protobuf")

    with pytest.raises(ServingError, match=r"model\.onnx: ONNX Runtime cannot load this model"):
        OnnxRuntime().open(package)


@pytest.mark.parametrize("changes", [{"inputs": (spec("pixels"),)}, {"outputs": (spec("y"), spec("z"))}])
def test_names_that_the_model_does_not_have_are_found_when_it_is_opened(package, changes):
    with pytest.raises(ServingError, match="but the package describes"):
        OnnxRuntime().open(dataclasses.replace(package, **changes))


@pytest.mark.parametrize("files", [{}, {"a.onnx": "", "b.onnx": ""}])
def test_a_package_without_one_model_is_refused(package, files):
    with pytest.raises(ServingError, match=r"exactly one \.onnx file"):
        OnnxRuntime().open(dataclasses.replace(package, files=files))


def test_a_model_needs_a_thread():
    with pytest.raises(ConfigError, match="threads"):
        OnnxRuntimeConfig(threads=0)
