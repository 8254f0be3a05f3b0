"""What every serving runtime promises to the queue before it; a new kind adds one maker of packages here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from production_ml.core.errors import ServingError
from production_ml.mlops.model_package import ModelPackage, TensorSpec, create_package
from production_ml.serving.runtimes import RUNTIMES

X = np.arange(12, dtype=np.float32).reshape(6, 2)


def onnx_package(directory: Path) -> ModelPackage:
    """`total = left + right` and `larger = left > right`."""
    import onnx
    from onnx import TensorProto, helper

    def tensor(name: str, kind: int):
        return helper.make_tensor_value_info(name, kind, ["batch", 2])

    inputs = [tensor("left", TensorProto.FLOAT), tensor("right", TensorProto.FLOAT)]
    outputs = [tensor("total", TensorProto.FLOAT), tensor("larger", TensorProto.BOOL)]
    nodes = [
        helper.make_node("Add", ["left", "right"], ["total"]),
        helper.make_node("Greater", ["left", "right"], ["larger"]),
    ]
    graph = helper.make_graph(nodes, "two-in-two-out", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    directory.mkdir()
    onnx.save(model, directory / "model.onnx")
    return create_package(
        directory,
        name="two",
        runtime="onnx",
        inputs=[TensorSpec(name=name, datatype="FP32", shape=(-1, 2)) for name in ("left", "right")],
        # Not in the model's order: it is the package's order that counts.
        outputs=[
            TensorSpec(name="larger", datatype="BOOL", shape=(-1, 2)),
            TensorSpec(name="total", datatype="FP32", shape=(-1, 2)),
        ],
        files={"model.onnx": directory / "model.onnx"},
    )


MAKERS: dict[str, Callable[[Path], ModelPackage]] = {"onnx": onnx_package}


def test_every_kind_is_under_contract():
    assert RUNTIMES.names() == sorted(MAKERS)


@pytest.fixture(params=sorted(MAKERS))
def kind(request) -> str:
    return request.param


@pytest.fixture
def package(kind, tmp_path) -> ModelPackage:
    return MAKERS[kind](tmp_path / "package")


@pytest.fixture
def runtime(kind, package):
    runtime = RUNTIMES.load(kind)()
    runtime.open(package)
    yield runtime
    runtime.close()


def test_outputs_come_in_the_packages_order_and_types(runtime):
    larger, total = runtime.run({"left": X, "right": X[::-1].copy()})

    np.testing.assert_array_equal(total, X + X[::-1])
    np.testing.assert_array_equal(larger, X[::-1] < X)
    assert (larger.dtype, total.dtype) == (np.bool_, np.float32)


def test_a_row_has_the_same_answer_in_every_batch(runtime):
    together = runtime.run({"left": X, "right": X})
    alone = [runtime.run({"left": X[row : row + 1], "right": X[row : row + 1]}) for row in range(len(X))]

    for index, output in enumerate(together):
        np.testing.assert_array_equal(output, np.concatenate([answer[index] for answer in alone]))


def test_inputs_are_named_and_so_their_order_is_free(runtime):
    _, one = runtime.run({"left": X, "right": 2 * X})
    _, other = runtime.run({"right": 2 * X, "left": X})

    np.testing.assert_array_equal(one, other)


def test_read_only_inputs_are_taken_and_left_as_they_are(runtime):
    received = np.frombuffer(X.tobytes(), np.float32).reshape(X.shape)

    runtime.run({"left": received, "right": received})

    np.testing.assert_array_equal(received, X)


def test_an_answer_is_not_overwritten_by_the_next(runtime):
    _, first = runtime.run({"left": X, "right": X})
    runtime.run({"left": X * 0, "right": X * 0})

    np.testing.assert_array_equal(first, 2 * X)


def test_a_failed_batch_leaves_no_trace_in_the_next(runtime):
    with pytest.raises(Exception):  # noqa: B017, PT011 - a runtime may raise what it likes
        runtime.run({"left": np.ones((2, 7), np.float32), "right": np.ones((2, 7), np.float32)})

    _, total = runtime.run({"left": X, "right": X})
    np.testing.assert_array_equal(total, 2 * X)


def test_a_package_that_cannot_be_loaded_is_a_serving_error(kind, package):
    for name in package.files:
        package.file(name).write_bytes(b"damaged")

    with pytest.raises(ServingError, match=str(package.directory)):
        RUNTIMES.load(kind)().open(package)


def test_a_runtime_may_be_closed_before_it_was_opened(kind):
    RUNTIMES.load(kind)().close()


def test_metadata_can_name_it(runtime):
    assert runtime.platform
