"""From a trained torch module to a package that a server can load: ONNX, checked against the module it came from."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from production_ml.core.errors import ConfigError, MissingDependencyError, ProductionMLError
from production_ml.mlops.model_package import ModelPackage, TensorSpec, create_package

try:
    import torch
    from safetensors.torch import save_model
except ModuleNotFoundError as missing:
    if missing.name not in ("torch", "safetensors"):
        raise
    raise MissingDependencyError(missing.name, extra="torch", purpose="Exporting a model") from missing

ONNX_FILE: Final = "model.onnx"
WEIGHTS_FILE: Final = "weights.safetensors"
_DATATYPES: Final = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
# A protobuf, and so an ONNX file with its weights inside, ends at 2 GiB.
_ONNX_LIMIT_BYTES: Final = 2**31 - 2**20


class ExportError(ProductionMLError):
    """The module could not be exported, or the exported file does not compute what the module computes."""


def export_onnx(
    module: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
    directory: Path | str,
    *,
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    metadata: Mapping[str, Any] | None = None,
    relative_tolerance: float = 1e-3,
    absolute_tolerance: float = 1e-5,
) -> ModelPackage:
    """Write `module` as a package with `model.onnx` (weights inside) and `weights.safetensors`.

    The file is run with ONNX Runtime on the example and on a larger batch, and has to agree with the module: a traced
    export can silently fix the batch size or one side of an `if`. The module is exported in eval mode on the CPU and
    left as it was.

    Args:
        module: The trained model; its inputs and outputs are tensors whose first dimension is the batch.
        example_inputs: One tensor for each input, [batch, ...].
        directory: Where the package goes.
        name: The model's name in the registry.
        input_names: One for each input.
        output_names: One for each output.
        metadata: Where it came from: run id, step, dataset hash, metrics. JSON values.
        relative_tolerance: Of an output value, where ONNX Runtime and torch differ.
        absolute_tolerance: Of an output value, where it is near 0.

    Raises:
        ConfigError: There are more or fewer names than tensors, or the examples' batch sizes differ.
        ExportError: The export failed, or does not agree with the module.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    _check_inputs(example_inputs, input_names)
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    examples = [example.detach().cpu() for example in example_inputs]
    batches = (examples, [_larger_batch(example) for example in examples])
    expected = _write_files(module, batches, target, input_names, output_names)
    session = _session(target / ONNX_FILE)
    for batch, outputs in zip(batches, expected, strict=True):
        found = _run_session(session, input_names, output_names, batch)
        _check_agreement(output_names, outputs, found, relative_tolerance, absolute_tolerance)
    interface = {"inputs": _specs(input_names, examples), "outputs": _specs(output_names, expected[0])}
    files = {file: target / file for file in (ONNX_FILE, WEIGHTS_FILE)}
    return create_package(target, name=name, runtime="onnx", **interface, files=files, metadata=metadata)


def _write_files(
    module: torch.nn.Module,
    batches: Sequence[Sequence[torch.Tensor]],
    target: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> list[list[torch.Tensor]]:
    """Write the weights and the ONNX file, traced on the first batch; returns the module's outputs for each batch."""
    with _ready_for_export(module):
        expected = [_run_module(module, batch) for batch in batches]
        _check_names("output_names", output_names, expected[0])
        # Not save_file: that one refuses tensors which share memory, such as tied embeddings.
        save_model(module, str(target / WEIGHTS_FILE))
        _write_onnx(module, batches[0], target / ONNX_FILE, input_names, output_names)
    return expected


@contextlib.contextmanager
def _ready_for_export(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode, on the CPU, without gradients; afterwards everything is as it was."""
    modes = {part: part.training for part in module.modules()}
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    try:
        with torch.no_grad():
            module.eval().cpu()
            yield
    finally:
        module.to(device)
        for part, training in modes.items():
            part.training = training


def _run_module(module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    found = module(*inputs)
    outputs = list(found) if isinstance(found, tuple | list) else [found]
    for position, output in enumerate(outputs):
        if not isinstance(output, torch.Tensor) or output.shape[:1] != inputs[0].shape[:1]:
            raise ExportError(
                f"Output {position} of {type(module).__name__} is no tensor with one row for each row of the input.",
                meaning="It cannot be served: a batcher has to hand each request its own rows.",
                cure="Wrap the module in one whose forward() returns tensors of shape [batch, ...].",
            )
    return outputs


def _larger_batch(example: torch.Tensor) -> torch.Tensor:
    """The example twice and its first row once more: a size that is no multiple of the traced one."""
    return torch.cat([example, example, example[:1]])


def _write_onnx(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> None:
    _need("onnx")
    _check_size(module)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            # The tracing exporter is deprecated, but 20 times quicker than its successor (0.14 s against 3.3 s for a
            # small net) and silent; what tracing can get wrong, the comparison below finds.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                tuple(examples),
                str(path),
                dynamo=False,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_axes={name: {0: "batch"} for name in (*input_names, *output_names)},
            )
    except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as problem:
        raise ExportError(
            f"{type(module).__name__} could not be exported to ONNX: {problem}",
            meaning="There is no package; the trained weights are safe in their checkpoint.",
            cure="Replace the operation that ONNX does not know, or serve the model with another runtime.",
        ) from problem


def _check_size(module: torch.nn.Module) -> None:
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size_bytes > _ONNX_LIMIT_BYTES:
        raise ExportError(
            f"{type(module).__name__} has {size_bytes / 2**30:.1f} GiB of weights; one ONNX file holds at most 2 GiB.",
            cure="Export it in a smaller type, such as module.half(), or serve it with another runtime.",
        )


def _session(path: Path) -> Any:
    runtime = _need("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what fails here is raised as well, and said better
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run_session(
    session: Any, input_names: Sequence[str], output_names: Sequence[str], batch: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    feed = {name: example.numpy() for name, example in zip(input_names, batch, strict=True)}
    try:
        return [torch.from_numpy(array) for array in session.run(list(output_names), feed)]
    except Exception as problem:  # onnxruntime's errors have no other class in common; each means the same here
        raise ExportError(
            f"The exported model does not run on a batch of {len(batch[0])}: {problem}",
            meaning="The package was not made: a server would fail in the same way.",
            cure="Avoid Python numbers taken from tensor shapes in forward(): tracing fixes them.",
        ) from problem


def _check_agreement(
    names: Sequence[str],
    expected: Sequence[torch.Tensor],
    found: Sequence[torch.Tensor],
    relative_tolerance: float,
    absolute_tolerance: float,
) -> None:
    for name, wanted, got in zip(names, expected, found, strict=True):
        try:
            torch.testing.assert_close(got, wanted, rtol=relative_tolerance, atol=absolute_tolerance, equal_nan=True)
        except AssertionError as difference:
            facts = "; ".join(line for line in str(difference).splitlines() if line)
            raise ExportError(
                f"Output {name!r} of the exported model is not the module's, on a batch of {len(wanted)}: {facts}",
                meaning="The package was not made: it would serve another model than the one that was evaluated.",
                cure="Look for randomness or data-dependent branches in forward(); tracing keeps only one branch.",
            ) from None


def _specs(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> list[TensorSpec]:
    return [
        TensorSpec(name=name, datatype=_datatype(name, tensor), shape=(-1, *tensor.shape[1:]))
        for name, tensor in zip(names, tensors, strict=True)
    ]


def _datatype(name: str, tensor: torch.Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in _DATATYPES:
        raise ConfigError(name, kind, f"is no tensor type that can be served; known: {', '.join(_DATATYPES)}")
    return _DATATYPES[kind]


def _check_inputs(example_inputs: Sequence[torch.Tensor], input_names: Sequence[str]) -> None:
    _check_names("input_names", input_names, example_inputs)
    sizes = [len(example) if example.dim() else 0 for example in example_inputs]
    if len(set(sizes)) != 1 or sizes[0] == 0:
        raise ConfigError(
            "example_inputs", sizes, "must be tensors with the same, non-empty first dimension: the batch"
        )


def _check_names(field: str, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> None:
    if len(names) != len(tensors):
        raise ConfigError(field, list(names), f"must name each of the {len(tensors)} tensors")


def _need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as missing:
        raise MissingDependencyError(package, extra="onnx", purpose="Exporting a model") from missing
