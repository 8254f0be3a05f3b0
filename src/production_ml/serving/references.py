"""What to serve, as a person writes it (`digits@champion=80`, `./package`), and the verified package behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from production_ml.core.errors import ConfigError
from production_ml.mlops.model_package import DESCRIPTION_FILE, ModelPackage, open_package
from production_ml.mlops.registry_records import parse_reference

_HASH_LETTERS: Final = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedReference:
    """A reference to a model version, and its part of the model's traffic."""

    reference: str
    """Registry reference or path of a package."""
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion:
    """A version that can be loaded: its package is verified."""

    package: ModelPackage
    version: str
    """The registry's number; for a package from a path, the beginning of its content hash."""
    alias: str | None = None
    """The alias it was asked for by."""


def parse_references(given: Sequence[str]) -> tuple[WeightedReference, ...]:
    """Read references with weights; where none has a weight, all share alike.

    Raises:
        ConfigError: There is none, one is there twice, one has no known form, or only some have weights.
    """
    if not given:
        raise ConfigError("models", list(given), "must name at least one model, such as digits@champion")
    pairs = [_split_weight(text) for text in given]
    references = [reference for reference, _ in pairs]
    twice = next((reference for reference in references if references.count(reference) > 1), None)
    if twice is not None:
        raise ConfigError("models", twice, "is there twice; give it one weight instead")
    if len({weight is None for _, weight in pairs}) > 1:
        cure = "Example: production-ml serve digits@champion=80 digits@challenger=20"
        raise ConfigError("models", list(given), "must all have a weight, or none", cure=cure)
    return tuple(
        WeightedReference(reference=reference, weight=1.0 if weight is None else weight) for reference, weight in pairs
    )


def resolve(reference: str, tracking_uri: str | None = None) -> ModelVersion:
    """Find and verify the package behind `reference`.

    Raises:
        RegistryError: The registry has no such model, version or alias, or cannot be opened.
        InputFileError: There is no package at that path.
        DamagedFileError: The package is not what it was.
        MissingDependencyError: A registry reference, and MLflow is not installed.
    """
    if _is_path(reference):
        # The directory itself: a link such as `current` may be moved on between the check of the files and their use.
        package = open_package(Path(reference).resolve())
        return ModelVersion(package=package, version=package.content_hash[:_HASH_LETTERS])
    # Not before it is needed: the registry brings MLflow, which takes seconds to import.
    from production_ml.mlops.model_registry import ModelRegistry

    found = ModelRegistry(tracking_uri).resolve(reference)
    return ModelVersion(package=open_package(found.directory), version=str(found.version), alias=found.alias)


def _split_weight(text: str) -> tuple[str, float | None]:
    """A path may have a `=` of its own: runs/lr=0.1/package is a directory before it is a weight."""
    reference, equals, weight = text.rpartition("=")
    if not equals or _is_package(text):
        reference, number = text, None
    else:
        number = _number(text, weight)
    if not _is_path(reference):
        parse_reference(reference)
    return reference, number


def _number(text: str, weight: str) -> float:
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ConfigError("weight", weight, f"must be a number from 0 up in {text!r}")
    return number


def _is_path(reference: str) -> bool:
    return "/" in reference or _is_package(reference)


def _is_package(path: str) -> bool:
    return (Path(path) / DESCRIPTION_FILE).is_file()
