"""A model package: a directory of weights and a described interface, all of it hashed, nothing in it executable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from production_ml.core.errors import DamagedFileError, InputFileError
from production_ml.storage.hashing import hash_bytes, hash_file

DESCRIPTION_FILE = "model.json"
# Version 1 hashed the files alone: who swapped the outputs' names, or the runtime, kept the hash and its verdict.
FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One input or output, in the terms of the Open Inference Protocol v2."""

    name: str
    datatype: str
    """`FP32`, `INT64`, …"""
    shape: tuple[int, ...]
    """-1 stands for any size; the first dimension is the batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPackage:
    """What a registry stores and a server loads."""

    directory: Path
    name: str
    runtime: str
    """The serving runtime that executes it: a name of the runtime family, such as `onnx`."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: Mapping[str, str]
    """File name to XXH3-128 digest."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Where it came from: run id, step, dataset hash, metrics. JSON values."""

    @property
    def content_hash(self) -> str:
        """One digest for the files and everything that is said about them; a verdict is bound to it."""
        return hash_bytes(json.dumps(_describe(self), sort_keys=True).encode())

    def file(self, name: str) -> Path:
        """The path of a file that belongs to the package."""
        return self.directory / name


def create_package(
    directory: Path,
    *,
    name: str,
    runtime: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    files: Mapping[str, Path],
    metadata: Mapping[str, Any] | None = None,
) -> ModelPackage:
    """Copy `files` (name in the package → source) into `directory`, describe and hash them.

    A source that already lies in place is left there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for target, source in files.items():
        if source.resolve() != (directory / target).resolve():
            shutil.copyfile(source, directory / target)
    package = ModelPackage(
        directory=directory,
        name=name,
        runtime=runtime,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        files={target: hash_file(directory / target) for target in files},
        # As it will be read: JSON makes a key of 10 into "10", which sorts, and so hashes, otherwise.
        metadata=json.loads(json.dumps(dict(metadata or {}))),
    )
    description = {**_describe(package), "content_hash": package.content_hash}
    (directory / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")
    return package


def open_package(directory: Path) -> ModelPackage:
    """Read and verify a package.

    Raises:
        InputFileError: There is no package, its description cannot be read, or another release wrote it.
        DamagedFileError: A file, or the description, does not match its hash.
    """
    path = directory / DESCRIPTION_FILE
    package = _parse(path, directory)
    for name, expected in package.files.items():
        _check_file(directory / name, expected)
    return package


def _describe(package: ModelPackage) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "name": package.name,
        "runtime": package.runtime,
        "inputs": [asdict(spec) for spec in package.inputs],
        "outputs": [asdict(spec) for spec in package.outputs],
        "files": dict(package.files),
        "metadata": dict(package.metadata),
    }


def _parse(path: Path, directory: Path) -> ModelPackage:
    try:
        described = json.loads(path.read_text())
        _check_format(path, described["format_version"])
        package = ModelPackage(
            directory=directory,
            name=described["name"],
            runtime=described["runtime"],
            inputs=_specs(described["inputs"]),
            outputs=_specs(described["outputs"]),
            files=dict(described["files"]),
            metadata=dict(described["metadata"]),
        )
        expected = str(described["content_hash"])
    except FileNotFoundError:
        raise InputFileError(path, "not found, so this is no model package") from None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputFileError(path, f"is not a readable model description ({problem!r})") from problem
    _check_hash(path, expected, package.content_hash)
    return package


def _check_format(path: Path, version: Any) -> None:
    if version != FORMAT_VERSION:
        raise InputFileError(
            path,
            f"is a model package of format version {version!r}; this release reads version {FORMAT_VERSION}",
            meaning="The model is not loaded: what its hash covers is not known here.",
            cure="Export it again from its checkpoint, or use the release that wrote it.",
        )


def _specs(described: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=spec["name"], datatype=spec["datatype"], shape=tuple(spec["shape"])) for spec in described
    )


def _check_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise DamagedFileError(path, "is listed in the model package but missing")
    _check_hash(path, expected, hash_file(path))


def _check_hash(path: Path, expected: str, found: str) -> None:
    if found != expected:
        raise DamagedFileError(
            path,
            f"does not match its hash (expected {expected[:8]}, found {found[:8]})",
            meaning="The model is not loaded.",
            cure="Register it again from its checkpoint, and check the disk.",
        )
