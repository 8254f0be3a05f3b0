"""What one side writes the other reads, and a message that breaks the protocol is refused with the reason."""

from __future__ import annotations

import math

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from production_ml.mlops.model_package import TensorSpec
from production_ml.serving.open_inference import (
    InferResponse,
    Message,
    encode_request,
    encode_response,
    parse_request,
    parse_response,
)
from production_ml.serving.problems import InvalidRequestError
from production_ml.serving.tensors import DATATYPES

INPUTS = (TensorSpec(name="a", datatype="FP32", shape=(-1, 2)), TensorSpec(name="b", datatype="INT64", shape=(-1,)))
OUTPUTS = (TensorSpec(name="y", datatype="FP32", shape=(-1, 2)), TensorSpec(name="z", datatype="BOOL", shape=(-1,)))
A = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
B = {"name": "b", "shape": [1], "datatype": "INT64", "data": [3]}


def length_header(message: Message) -> str | None:
    return None if message.json_length is None else str(message.json_length)


def parse(message: dict | bytes, tail: bytes = b"", json_length: str | None = None):
    body = message if isinstance(message, bytes) else orjson.dumps(message)
    length = json_length if json_length is not None else str(len(body)) if tail else None
    return parse_request(body + tail, length, INPUTS, OUTPUTS)


def in_binary(entry: dict, size: int) -> dict:
    return {**{key: entry[key] for key in ("name", "shape", "datatype")}, "parameters": {"binary_data_size": size}}


FINITE = {"allow_nan": False, "allow_infinity": False}


@st.composite
def tensors(draw, *, finite: bool):
    """One to three named tensors with the same number of rows."""
    rows = draw(st.integers(1, 4))
    names = draw(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3, unique=True))
    found = {}
    for name in names:
        dtype = DATATYPES[draw(st.sampled_from(sorted(DATATYPES)))]
        shape = (rows, *draw(st.lists(st.integers(1, 3), max_size=2)))
        elements = numpy_strategies.from_dtype(dtype, **(FINITE if finite and dtype.kind == "f" else {}))
        found[name] = draw(numpy_strategies.arrays(dtype, shape, elements=elements))
    return found


def specs_of(arrays) -> list[TensorSpec]:
    names = {dtype: name for name, dtype in DATATYPES.items()}
    return [
        TensorSpec(name=name, datatype=names[array.dtype], shape=(-1, *array.shape[1:]))
        for name, array in arrays.items()
    ]


@given(data=st.data(), binary=st.booleans(), request_id=st.none() | st.text(max_size=5))
def test_a_request_is_read_as_it_was_written(data, binary, request_id):
    arrays = data.draw(tensors(finite=not binary))
    message = encode_request(arrays, binary=binary, request_id=request_id)

    read = parse_request(message.body, length_header(message), specs_of(arrays), OUTPUTS)

    assert (read.id, read.rows) == (request_id, len(next(iter(arrays.values()))))
    assert read.outputs == {"y": binary, "z": binary}
    assert list(read.inputs) == list(arrays)
    for name, array in arrays.items():
        assert read.inputs[name].dtype == array.dtype
        np.testing.assert_array_equal(read.inputs[name], array)


@given(data=st.data(), alias=st.none() | st.text(max_size=5), request_id=st.none() | st.text(max_size=5))
def test_an_answer_is_read_as_it_was_written(data, alias, request_id):
    arrays = data.draw(tensors(finite=True))
    binary = {name: data.draw(st.booleans()) for name in arrays}
    message = encode_response(InferResponse("digits", "3", arrays, request_id, alias), binary)

    read = parse_response(message.body, length_header(message))

    assert (read.model, read.version, read.id, read.alias) == ("digits", "3", request_id, alias)
    assert list(read.outputs) == list(arrays)
    for name, array in arrays.items():
        assert read.outputs[name].dtype == array.dtype
        np.testing.assert_array_equal(read.outputs[name], array)


def test_nan_and_infinity_are_exact_in_binary_and_null_in_json():
    odd = np.array([[math.nan, math.inf]], np.float32)

    binary = encode_response(InferResponse("m", "1", {"y": odd}), {"y": True})
    plain = encode_response(InferResponse("m", "1", {"y": odd}), {"y": False})

    np.testing.assert_array_equal(parse_response(binary.body, length_header(binary)).outputs["y"], odd)
    assert orjson.loads(plain.body)["outputs"][0]["data"] == [None, None]
    assert np.isnan(parse_response(plain.body).outputs["y"]).all()


def test_json_and_binary_inputs_may_be_mixed_in_any_order():
    tail = np.array([5], "<i8").tobytes()

    read = parse({"inputs": [in_binary(B, 8), A]}, tail)

    assert (read.inputs["a"].tolist(), read.inputs["b"].tolist()) == ([[1, 2]], [5])


def test_a_client_gets_the_outputs_it_asks_for_in_the_form_it_asks_for():
    wanted = [{"name": "z", "parameters": {"binary_data": True}}, {"name": "y"}]

    assert parse({"inputs": [A, B], "outputs": wanted}).outputs == {"z": True, "y": False}
    assert parse({"inputs": [A, B], "outputs": []}).outputs == {"y": False, "z": False}


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"inputs": [NaN]}', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b"[]", "must be a JSON object"),
        ({}, "'inputs' must be a list of objects"),
        ({"inputs": {}}, "'inputs' must be a list of objects"),
        ({"inputs": ["a"]}, "'inputs' must be a list of objects"),
        ({"inputs": []}, "inputs are missing: a, b"),
        ({"inputs": [A]}, "inputs are missing: b"),
        ({"inputs": [A, A, B]}, "'a' is there twice"),
        ({"inputs": [{**A, "name": "c"}, B]}, "no input 'c'; known: a, b"),
        ({"inputs": [{**A, "name": ["a"]}, B]}, "no input .* known: a, b"),
        ({"inputs": [{**A, "datatype": "FP64"}, B]}, "'a': expected datatype FP32, got FP64"),
        ({"inputs": [{**A, "shape": [1, 3]}, B]}, r"'a': expected shape \[-1, 2\], got \[1, 3\]"),
        ({"inputs": [{**A, "shape": [-1, 2]}, B]}, "shape must be a list of sizes"),
        ({"inputs": [{**A, "shape": [True, 2]}, B]}, "shape must be a list of sizes"),
        ({"inputs": [{**A, "shape": "12"}, B]}, "shape must be a list of sizes"),
        ({"inputs": [{**A, "data": [1, 2, 3]}, B]}, "takes 2 elements, got 3"),
        ({"inputs": [{**A, "data": ["NaN", 2]}, B]}, "must not hold strings"),
        ({"inputs": [{"name": "a", "shape": [1, 2], "datatype": "FP32"}, B]}, "neither data nor binary_data_size"),
        ({"inputs": [{**A, "parameters": {"binary_data_size": 8}}, B]}, "both data and binary_data_size"),
        ({"inputs": [in_binary(A, 8), B]}, "binary_data_size is 8, but only 0 bytes are left"),
        ({"inputs": [{**A, "parameters": []}, B]}, "'parameters' must be an object"),
        ({"inputs": [{**A, "parameters": {"binary_data_size": "8"}}, B]}, "must be a number of bytes"),
        ({"inputs": [{**A, "shape": [2, 2], "data": [1, 2, 3, 4]}, B]}, "same number of rows, got 'a' 2, 'b' 1"),
        ({"inputs": [A, B], "outputs": [{"name": "q"}]}, "no output 'q'; known: y, z"),
        ({"inputs": [A, B], "outputs": "y"}, "'outputs' must be a list of objects"),
        ({"inputs": [A, B], "id": 7}, "'id' must be a string"),
        ({"inputs": [A, B], "parameters": 7}, "'parameters' must be an object"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_the_reason(message, problem):
    with pytest.raises(InvalidRequestError, match=problem):
        parse(message)


Y = {"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


@pytest.mark.parametrize(
    "message",
    [
        b"<html>",
        {},
        {"outputs": [{**Y, "datatype": "FP12"}]},
        {"outputs": [{**Y, "data": [1]}]},
        {"outputs": [{**Y, "data": {"a": 1}}]},
        {"outputs": [{**Y, "shape": None}]},
        {"outputs": [Y], "parameters": 1},
    ],
)
def test_an_answer_that_breaks_the_protocol_is_an_error_for_its_reader(message):
    with pytest.raises(InvalidRequestError):
        parse_response(message if isinstance(message, bytes) else orjson.dumps(message))


@pytest.mark.parametrize(
    ("tail", "json_length", "problem"),
    [
        (bytes(7), None, "only 7 bytes are left"),
        (bytes(9), None, "1 bytes of binary data belong to no tensor"),
        (bytes(8), "0", "not JSON"),
        (bytes(8), "99999", "Inference-Header-Content-Length is '99999', but the body has"),
        (bytes(8), "-1", "Inference-Header-Content-Length"),
        (bytes(8), "1e2", "Inference-Header-Content-Length"),
        (bytes(8), "٣", "Inference-Header-Content-Length"),
        (bytes(8), "9" * 5000, "Inference-Header-Content-Length"),
    ],
)
def test_binary_data_of_the_wrong_length_is_refused(tail, json_length, problem):
    with pytest.raises(InvalidRequestError, match=problem):
        parse({"inputs": [in_binary(A, 8), B]}, tail, json_length)


def test_an_error_message_does_not_repeat_megabytes_of_the_request():
    with pytest.raises(InvalidRequestError) as caught:
        parse({"inputs": [{**A, "name": "x" * 1_000_000}, B]})

    assert len(str(caught.value)) < 1000
