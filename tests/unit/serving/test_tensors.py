"""Numbers arrive as they were sent, or the client hears what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from production_ml.mlops.model_package import TensorSpec
from production_ml.serving.problems import InvalidRequestError
from production_ml.serving.tensors import DATATYPES, check_shape, datatype_of, from_bytes, from_json, to_bytes

FP32, INT8, BOOL, UINT64, FP16 = (DATATYPES[name] for name in ("FP32", "INT8", "BOOL", "UINT64", "FP16"))


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        ([1, 2.5, -3], FP32),
        ([[1], [2.5], [-3]], FP32),
        ([-128, 0, 127], INT8),
        ([2**64 - 1, 0, 1], UINT64),
        ([True, False, True], BOOL),
        ([1, 65504, -0.5], FP16),
    ],
)
def test_json_numbers_are_taken_flat_or_nested(data, dtype):
    array = from_json("x", data, dtype, [3, 1])

    assert (array.dtype, array.shape) == (dtype, (3, 1))
    assert array.ravel().tolist() == np.array(data, object).ravel().tolist()


@pytest.mark.parametrize(
    ("data", "dtype", "shape", "problem"),
    [
        ([1.5], INT8, [1], "INT8 data must not hold numbers with a fraction"),
        ([128], INT8, [1], "out of range for INT8"),
        ([-1], UINT64, [1], "out of range for UINT64"),
        ([2**64], UINT64, [1], "out of range for UINT64"),
        ([2**64 - 1, -1], UINT64, [2], "out of range for UINT64"),
        ([2**64 - 1, 1, 0.5], UINT64, [3], "must not hold numbers with a fraction"),
        ([2**70], FP32, [1], "beyond 64 bits"),
        ([1e39], FP32, [1], "out of range for FP32"),
        ([65536], FP16, [1], "out of range for FP16"),
        (["NaN"], FP32, [1], "strings .JSON has no NaN or infinity: send binary data"),
        (["1"], INT8, [1], "must not hold strings"),
        ([1, "2"], FP32, [2], "must not hold strings"),
        ([None], FP32, [1], "must not hold null"),
        ([{"a": 1}], FP32, [1], "must not hold null or objects"),
        ([True], FP32, [1], "must not hold booleans"),
        ([1, 0], BOOL, [2], "BOOL data must not hold integers"),
        ([1, 2], FP32, [3], r"shape \[3\] takes 3 elements, got 2"),
        ([], FP32, [3], "takes 3 elements, got 0"),
        ([[1, 2], [3]], FP32, [3], "nested unevenly"),
        ([1, [2, 3]], FP32, [3], "nested unevenly"),
        ([[1, 2, 3], [4, 5, 6]], FP32, [3, 2], r"nested as \[2, 3\], shape says \[3, 2\]"),
        ("1,2", FP32, [2], "must be a list, got a string"),
        (1, FP32, [1], "must be a list, got a number"),
        ({}, FP32, [1], "must be a list, got an object"),
        (None, FP32, [1], "must be a list, got null"),
    ],
)
def test_json_data_that_does_not_fit_is_refused_with_the_reason(data, dtype, shape, problem):
    with pytest.raises(InvalidRequestError, match=problem) as caught:
        from_json("pixels", data, dtype, shape)

    assert "'pixels'" in str(caught.value)


@given(data=st.data(), name=st.sampled_from(sorted(DATATYPES)), shift=st.integers(0, 9))
def test_binary_data_survives_the_way_there_and_back_at_any_alignment(data, name, shift):
    shapes = numpy_strategies.array_shapes(max_dims=3, max_side=4)
    array = data.draw(numpy_strategies.arrays(DATATYPES[name], shapes))
    body = b"x" * shift + to_bytes(array)

    found = from_bytes("x", memoryview(body)[shift:], DATATYPES[name], array.shape)

    np.testing.assert_array_equal(found, array)
    assert found.flags.aligned
    assert datatype_of(found) == name


@pytest.mark.parametrize("size", [0, 11, 13])
def test_more_or_fewer_bytes_than_the_shape_takes_are_refused(size):
    with pytest.raises(InvalidRequestError, match=rf"FP32 takes 12 bytes, got {size}"):
        from_bytes("x", memoryview(bytes(size)), FP32, [1, 3])


def test_a_byte_that_is_no_truth_value_is_refused():
    with pytest.raises(InvalidRequestError, match="0 or 1"):
        from_bytes("x", memoryview(b"\x00\x01\x02"), BOOL, [3])


@pytest.mark.parametrize("shape", [[1, 3], [7, 3]])
def test_a_batch_may_have_any_number_of_rows(shape):
    check_shape(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)), shape)


@pytest.mark.parametrize("shape", [[3], [1, 4], [1, 3, 1], [], [0, 3]])
def test_a_shape_that_is_not_the_models_is_refused_with_both(shape):
    with pytest.raises(InvalidRequestError) as caught:
        check_shape(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)), shape)

    assert str(shape) in str(caught.value)
    assert "[-1, 3]" in str(caught.value) or "holds nothing" in str(caught.value)
