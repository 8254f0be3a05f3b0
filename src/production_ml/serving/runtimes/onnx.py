"""ONNX Runtime on the CPU: no Python of the model's author is executed, and a small model answers in microseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import onnxruntime

from production_ml.core.errors import ConfigError, ServingError
from production_ml.mlops.model_package import ModelPackage
from production_ml.serving.tensors import Array

_SUFFIX: Final = ".onnx"
_FATAL_ONLY: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxRuntimeConfig:
    """How ONNX Runtime executes a model."""

    threads: int = 1
    """For one batch. More pay off only where a batch takes milliseconds, and they take cores from the server."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError("threads", self.threads, "must be at least 1")


class OnnxRuntime:
    """Executes the `.onnx` file of a package.

    Args:
        config: How to execute it.
    """

    platform = "onnxruntime_onnx"

    def __init__(self, config: OnnxRuntimeConfig | None = None) -> None:
        self._config = config or OnnxRuntimeConfig()
        self._session: Any = None
        self._outputs: list[str] = []

    def open(self, package: ModelPackage) -> None:
        path = _model_file(package)
        try:
            # Onnxruntime's errors have no class in common but Exception.
            self._session = onnxruntime.InferenceSession(str(path), self._options(), ["CPUExecutionProvider"])
        except Exception as problem:
            raise ServingError(
                f"{path}: ONNX Runtime cannot load this model ({_first_line(problem)})",
                meaning="The package is intact, but it is not served.",
                cure="Export it again with an opset that the installed onnxruntime knows.",
            ) from problem
        self._outputs = [spec.name for spec in package.outputs]
        _check_names(path, "inputs", [spec.name for spec in package.inputs], self._session.get_inputs())
        _check_names(path, "outputs", self._outputs, self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        return cast("Sequence[Array]", self._session.run(self._outputs, inputs))

    def close(self) -> None:
        self._session = None

    def _options(self) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._config.threads
        options.inter_op_num_threads = 1
        # Idle threads that spin would burn the cores that read the next requests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _FATAL_ONLY  # what fails here is raised as well, and answered to the client
        return options


def _model_file(package: ModelPackage) -> Path:
    found = [name for name in package.files if name.endswith(_SUFFIX)]
    if len(found) != 1:
        raise ServingError(f"{package.directory}: needs exactly one {_SUFFIX} file for ONNX Runtime, has {len(found)}")
    return package.file(found[0])


def _check_names(path: Path, what: str, described: list[str], found: Sequence[Any]) -> None:
    names = [node.name for node in found]
    missing = sorted(set(described) ^ set(names)) if what == "inputs" else sorted(set(described) - set(names))
    if missing:
        raise ServingError(f"{path}: the {what} are {names}, but the package describes {described}")


def _first_line(problem: Exception) -> str:
    return str(problem).strip().partition("\n")[0]
