"""The Open Inference Protocol v2, both ways: messages to checked arrays and back, in JSON and with binary tensors.

Specification: github.com/kserve/open-inference-protocol (HTTP/REST), and its binary tensor data extension: after a JSON
part, whose length the header Inference-Header-Content-Length tells, come the raw bytes of the tensors in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from production_ml.mlops.model_package import TensorSpec
from production_ml.serving.problems import InvalidRequestError
from production_ml.serving.tensors import DATATYPES, Array, check_shape, datatype_of, from_bytes, from_json, to_bytes

JSON_LENGTH_HEADER: Final = "Inference-Header-Content-Length"
BINARY_EXTENSION: Final = "binary_tensor_data"
_BINARY_SIZE: Final = "binary_data_size"
_BINARY_OUTPUT: Final = "binary_data"
_ALL_BINARY: Final = "binary_data_output"


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that fits its model."""

    id: str | None
    inputs: dict[str, Array]
    """All inputs of the model, [rows, ...] each."""
    rows: int
    outputs: dict[str, bool]
    """The outputs to send, in that order, and whether as binary data."""


@dataclass(frozen=True, slots=True)
class InferResponse:
    """An answer, and who gave it."""

    model: str
    version: str
    outputs: dict[str, Array]
    id: str | None = None
    alias: str | None = None
    """The alias that led to the version; None where it was served without one."""


@dataclass(frozen=True, slots=True)
class Message:
    """What goes into an HTTP body."""

    body: bytes
    json_length: int | None
    """For the header Inference-Header-Content-Length; None where the body is JSON alone."""

    @property
    def content_type(self) -> str:
        """For the header of that name."""
        return "application/json" if self.json_length is None else "application/octet-stream"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that the body needs."""
        length = {} if self.json_length is None else {JSON_LENGTH_HEADER: str(self.json_length)}
        return {"Content-Type": self.content_type, **length}


def parse_request(
    body: bytes, json_length: str | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> InferRequest:
    """Read a request to a model with these inputs and outputs.

    Args:
        body: The HTTP body.
        json_length: The value of the header Inference-Header-Content-Length.
        inputs: What the model takes.
        outputs: What it can answer.

    Raises:
        InvalidRequestError: It is malformed, or does not fit the model; the message says what was expected.
    """
    message, tail = _open(body, json_length)
    entries = _list_of_objects(message, "inputs")
    specs = {spec.name: spec for spec in inputs}
    arrays: dict[str, Array] = {}
    for entry in entries:
        spec = _named(entry, specs, "input")
        if spec.name in arrays:
            raise InvalidRequestError(f"input {spec.name!r} is there twice")
        arrays[spec.name] = _read_input(entry, spec, tail)
    tail.check_used_up()
    missing = [name for name in specs if name not in arrays]
    if missing:
        raise InvalidRequestError(f"inputs are missing: {', '.join(missing)}")
    return InferRequest(_id(message), arrays, _rows(arrays), _requested_outputs(message, outputs))


def encode_response(response: InferResponse, binary: Mapping[str, bool]) -> Message:
    """Write an answer.

    NaN and infinities have no form in JSON and become null there; binary data holds them exactly.

    Args:
        response: What to send.
        binary: The names of the outputs to send, and whether as binary data.
    """
    parts: list[bytes] = []
    outputs = [_write_tensor(name, response.outputs[name], parts, binary=wished) for name, wished in binary.items()]
    message: dict[str, Any] = {"model_name": response.model, "model_version": response.version, "outputs": outputs}
    if response.id is not None:
        message["id"] = response.id
    if response.alias is not None:
        message["parameters"] = {"alias": response.alias}
    return _close(message, parts)


def encode_request(inputs: Mapping[str, Array], *, binary: bool = False, request_id: str | None = None) -> Message:
    """Write what a client sends.

    Args:
        inputs: All inputs of the model by name, [rows, ...] each.
        binary: Send binary data and ask for it.
        request_id: Comes back with the answer.
    """
    parts: list[bytes] = []
    tensors = [_write_tensor(name, array, parts, binary=binary) for name, array in inputs.items()]
    message: dict[str, Any] = {"inputs": tensors}
    if request_id is not None:
        message["id"] = request_id
    if binary:
        message["parameters"] = {_ALL_BINARY: True}
    return _close(message, parts)


def parse_response(body: bytes, json_length: str | None = None) -> InferResponse:
    """Read what a client gets; null is read as NaN.

    Raises:
        InvalidRequestError: It does not follow the protocol.
    """
    message, tail = _open(body, json_length)
    outputs: dict[str, Array] = {}
    for entry in _list_of_objects(message, "outputs"):
        name, datatype, shape = str(entry.get("name")), str(entry.get("datatype")), _shape(entry, "output")
        if datatype not in DATATYPES:
            raise InvalidRequestError(f"output {name!r} has the unknown datatype {datatype}")
        dtype = DATATYPES[datatype]
        size = _binary_size(entry, name)
        if size is not None:
            outputs[name] = from_bytes(name, tail.take(name, size), dtype, shape)
        else:
            outputs[name] = _read_output(name, entry.get("data"), dtype, shape)
    tail.check_used_up()
    alias = _parameters(message).get("alias")
    return InferResponse(
        str(message.get("model_name")), str(message.get("model_version")), outputs, message.get("id"), alias
    )


class _Tail:
    """The binary part, taken from the front."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def take(self, name: str, size: int) -> memoryview:
        taken = self._data[self._position : self._position + size]
        if len(taken) != size:
            raise InvalidRequestError(f"{name!r}: {_BINARY_SIZE} is {size}, but only {len(taken)} bytes are left")
        self._position += size
        return taken

    def check_used_up(self) -> None:
        if self._position != len(self._data):
            left = len(self._data) - self._position
            raise InvalidRequestError(f"{left} bytes of binary data belong to no tensor; is {_BINARY_SIZE} missing?")


def _open(body: bytes, json_length: str | None) -> tuple[dict[str, Any], _Tail]:
    length = len(body) if json_length is None else _json_length(json_length, len(body))
    view = memoryview(body)
    try:
        message = orjson.loads(view[:length])
    except orjson.JSONDecodeError as problem:
        raise InvalidRequestError(f"the body is not JSON: {problem}") from None
    if not isinstance(message, dict):
        raise InvalidRequestError("the body must be a JSON object")
    return message, _Tail(view[length:])


def _json_length(text: str, body_length: int) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(body_length)) or int(text) > body_length:
        raise InvalidRequestError(f"{JSON_LENGTH_HEADER} is {text!r}, but the body has {body_length} bytes")
    return int(text)


def _close(message: dict[str, Any], parts: list[bytes]) -> Message:
    head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    return Message(b"".join([head, *parts]), len(head)) if parts else Message(head, None)


def _read_input(entry: dict[str, Any], spec: TensorSpec, tail: _Tail) -> Array:
    datatype = entry.get("datatype")
    if datatype != spec.datatype:
        raise InvalidRequestError(f"input {spec.name!r}: expected datatype {spec.datatype}, got {datatype}")
    shape = _shape(entry, "input")
    check_shape(spec, shape)
    size = _binary_size(entry, spec.name)
    if size is None:
        if "data" not in entry:
            raise InvalidRequestError(f"input {spec.name!r} has neither data nor {_BINARY_SIZE}")
        return from_json(spec.name, entry["data"], DATATYPES[spec.datatype], shape)
    if "data" in entry:
        raise InvalidRequestError(f"input {spec.name!r} has both data and {_BINARY_SIZE}")
    return from_bytes(spec.name, tail.take(spec.name, size), DATATYPES[spec.datatype], shape)


def _read_output(name: str, data: Any, dtype: np.dtype[Any], shape: list[int]) -> Array:
    try:
        return np.asarray(data, dtype).reshape(shape)
    except (ValueError, TypeError, OverflowError) as problem:
        raise InvalidRequestError(f"output {name!r}: data does not fit {dtype} {shape}: {problem}") from problem


def _write_tensor(name: str, array: Array, parts: list[bytes], *, binary: bool) -> dict[str, Any]:
    tensor: dict[str, Any] = {"name": name, "datatype": datatype_of(array), "shape": array.shape}
    if binary:
        parts.append(to_bytes(array))
        tensor["parameters"] = {_BINARY_SIZE: len(parts[-1])}
    else:
        tensor["data"] = np.ascontiguousarray(array).reshape(-1)
    return tensor


def _requested_outputs(message: dict[str, Any], outputs: Sequence[TensorSpec]) -> dict[str, bool]:
    all_binary = _parameters(message).get(_ALL_BINARY) is True
    specs = {spec.name: spec for spec in outputs}
    if not message.get("outputs"):
        return dict.fromkeys(specs, all_binary)
    wanted: dict[str, bool] = {}
    for entry in _list_of_objects(message, "outputs"):
        binary = _parameters(entry).get(_BINARY_OUTPUT, all_binary)
        wanted[_named(entry, specs, "output").name] = binary is True
    return wanted


def _named(entry: dict[str, Any], specs: dict[str, TensorSpec], what: str) -> TensorSpec:
    name = entry.get("name")
    spec = specs.get(name) if isinstance(name, str) else None
    if spec is None:
        raise InvalidRequestError(f"the model has no {what} {name!r}; known: {', '.join(specs)}")
    return spec


def _list_of_objects(message: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = message.get(key)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InvalidRequestError(f"{key!r} must be a list of objects")
    return found


def _shape(entry: dict[str, Any], what: str) -> list[int]:
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise InvalidRequestError(f"{what} {entry.get('name')!r}: shape must be a list of sizes, got {shape!r}")
    return shape


def _binary_size(entry: dict[str, Any], name: str) -> int | None:
    size = _parameters(entry).get(_BINARY_SIZE)
    if size is not None and (type(size) is not int or size < 0):
        raise InvalidRequestError(f"{name!r}: {_BINARY_SIZE} must be a number of bytes, got {size!r}")
    return size


def _parameters(entry: dict[str, Any]) -> dict[str, Any]:
    found = entry.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidRequestError("'parameters' must be an object")
    return found


def _id(message: dict[str, Any]) -> str | None:
    found = message.get("id")
    if found is not None and not isinstance(found, str):
        raise InvalidRequestError("'id' must be a string")
    return found


def _rows(arrays: dict[str, Array]) -> int:
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) != 1:
        listed = ", ".join(f"{name!r} {count}" for name, count in rows.items())
        raise InvalidRequestError(f"the inputs must have the same number of rows, got {listed}")
    return next(iter(rows.values()))
