"""The models that a server offers: slots that share a model's traffic, and the swap of what is behind a slot."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from production_ml.core.errors import ServingError
from production_ml.core.structured_logging import log_event
from production_ml.serving.loaded_version import LoadedVersion
from production_ml.serving.metrics import QueueDepth
from production_ml.serving.problems import UnknownModelError
from production_ml.serving.traffic import TrafficSplit, sticky_point

_LOGGER = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Slot:
    """A fixed share of a model's traffic; the version behind it can change."""

    reference: str
    """What was asked for, such as `digits@champion`; names the slot."""
    weight: float
    version: LoadedVersion


class ServedModel:
    """One model name: its slots in the order they were asked for, and the split between them.

    Raises:
        ConfigError: The weights leave no version to answer.
        ServingError: The versions do not take the same requests.
    """

    def __init__(self, name: str, slots: Sequence[Slot], *, chance: random.Random | None = None) -> None:
        self.name = name
        self.slots = tuple(slots)
        self._split = TrafficSplit([slot.weight for slot in slots])
        # Not a secret: it only spreads requests.
        self._chance = chance or random.Random()  # noqa: S311
        for slot in slots[1:]:
            check_same_interface(slots[0].version, slot.version)

    @property
    def shares(self) -> tuple[float, ...]:
        """The part of the traffic that each slot gets."""
        return self._split.shares

    @property
    def versions(self) -> list[str]:
        """The versions behind the slots, each once."""
        return list(dict.fromkeys(slot.version.version for slot in self.slots))

    def choose(self, routing_key: bytes | None = None) -> Slot:
        """The slot that answers: the same for the same key, else by chance."""
        if len(self.slots) == 1:
            return self.slots[0]
        point = self._chance.random() if routing_key is None else sticky_point(self.name, routing_key)
        return self.slots[self._split.choose(point)]

    def pinned(self, version: str) -> Slot:
        """A slot with that version behind it.

        Raises:
            UnknownModelError: There is none.
        """
        for slot in self.slots:
            if slot.version.version == version:
                return slot
        raise UnknownModelError(f"version {version!r} of {self.name}", self.versions)


class ServedModels:
    """All models by name; what an endpoint asks."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}

    def __iter__(self) -> Iterator[Slot]:
        for model in self._models.values():
            yield from model.slots

    def replace(self, slots: Iterable[Slot]) -> None:
        """Serve these, grouped by their models' names.

        Raises:
            ConfigError: The weights of a model leave no version to answer.
            ServingError: The versions of a model do not take the same requests.
        """
        grouped: dict[str, list[Slot]] = {}
        for slot in slots:
            grouped.setdefault(slot.version.model, []).append(slot)
        self._models = {name: ServedModel(name, members) for name, members in grouped.items()}

    def model(self, name: str) -> ServedModel:
        """The model of that name.

        Raises:
            UnknownModelError: There is none.
        """
        found = self._models.get(name)
        if found is None:
            raise UnknownModelError(f"model {name!r}", sorted(self._models))
        return found

    def choose(self, name: str, version: str | None, routing_key: bytes | None) -> Slot:
        """Who answers a request: the pinned version, else whom the split names.

        Raises:
            UnknownModelError: There is no such model or version.
        """
        model = self.model(name)
        return model.choose(routing_key) if version is None else model.pinned(version)

    def slot(self, reference: str) -> Slot:
        """The slot of that name.

        Raises:
            ServingError: There is none.
        """
        for slot in self:
            if slot.reference == reference:
                return slot
        known = ", ".join(slot.reference for slot in self)
        raise ServingError(f"Nothing is served as {reference!r}.", meaning=f"Known slots: {known}.")

    def queue_depths(self) -> Iterator[QueueDepth]:
        """For the metrics: each version once, even where two slots lead to it."""
        waiting: dict[tuple[str, str], int] = {}
        for slot in self:
            key = (slot.version.model, slot.version.version)
            waiting[key] = waiting.get(key, 0) + slot.version.waiting
        for (model, version), depth in waiting.items():
            yield QueueDepth(model, version, depth)


def check_same_interface(serving: LoadedVersion, joining: LoadedVersion) -> None:
    """Clients do not know which version answers: all have to take the same inputs and answer in the same terms.

    Raises:
        ServingError: They do not.
    """
    if serving.model != joining.model:
        raise ServingError(f"{joining.model} cannot take the place of {serving.model}: it is another model.")
    same_inputs = {spec.name: spec for spec in serving.inputs} == {spec.name: spec for spec in joining.inputs}
    outputs, others = (
        {spec.name: (spec.datatype, len(spec.shape)) for spec in version.outputs} for version in (serving, joining)
    )
    if not same_inputs or outputs != others:
        raise ServingError(
            f"{serving.model} versions {serving.version} and {joining.version} have different inputs or outputs: "
            f"{_interface(serving)} and {_interface(joining)}.",
            meaning=f"Version {joining.version} is not served.",
            cure="Serve it under another model name, or alone: stop this server and start one with it.",
        )


def put_behind(slot: Slot, new: LoadedVersion) -> None:
    """Let a loaded, warm version answer from now on; what the old one has in its queue is still its own.

    Choosing a slot and queueing a request are one step of the event loop: no request can be between the versions.

    Raises:
        ServingError: The new version takes other requests than the old one; nothing has changed.
    """
    check_same_interface(slot.version, new)
    old, slot.version = slot.version, new
    log_event(
        _LOGGER,
        "version_swapped",
        f"{slot.reference}: version {new.version} answers instead of {old.version}",
        model=new.model,
        reference=slot.reference,
        version=new.version,
        replaced=old.version,
    )


def _interface(version: LoadedVersion) -> str:
    inputs, outputs = (
        ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs)
        for specs in (version.inputs, version.outputs)
    )
    return f"({inputs}) → ({outputs})"
