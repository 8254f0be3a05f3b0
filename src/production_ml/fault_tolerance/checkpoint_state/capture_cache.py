"""What the capture before found, so that the next one only looks whether the same tensors stand in the same places."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch.distributed.tensor import DTensor

_Held: TypeAlias = Callable[[], Any]
_LOOKS: Final[tuple[Callable[[Any], Any], ...]] = (
    torch.Tensor.data_ptr,
    torch.Tensor.stride,
    operator.attrgetter("shape"),
    operator.attrgetter("dtype"),
)
"""All that tells where a tensor's elements are and how they are read."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Which tensors stand under which names, and where their memory is. It is compared by `is`."""


@dataclass(slots=True)
class Section:
    """A module or an optimizer as it was captured."""

    places: Any
    """What names the places, such as the keys of a state_dict: compared by `==`."""
    held: Sequence[_Held]
    encoded: Any
    names: Sequence[str]
    """Of its tensors in a checkpoint."""

    def is_unchanged(self, places: Any, objects: Sequence[Any]) -> bool:
        """Whether the very same `objects` stand in the same places."""
        return (
            len(objects) == len(self.held)
            and bool(self.places == places)
            and all(map(operator.is_, objects, [held() for held in self.held]))
        )


@dataclass(slots=True)
class CaptureCache:
    """Kept from save to save by whoever captures one training; forgotten, the next capture is only slower.

    It holds no tensor alive (but those of a DeepSpeed engine): an optimizer's state that was replaced is not to stay in
    memory until the next save. A dead reference matches nothing, so that an `id` that is used again cannot deceive it.
    """

    sections: dict[str, Section] = field(default_factory=dict)
    _layout: Layout = field(default_factory=Layout)
    _names: list[str] = field(default_factory=list)
    _held: list[_Held] = field(default_factory=list)
    _memory: list[list[Any]] = field(default_factory=list)

    def forget(self) -> None:
        """Hold nothing any more."""
        self.sections.clear()
        self._layout = Layout()
        self._names, self._held, self._memory = [], [], []

    def layout_of(self, tensors: dict[str, torch.Tensor]) -> Layout:
        """The layout, which is the same object as before where nothing but values has changed.

        A tensor may be the same and yet stand on other memory: `parameter.data = …` swaps it. That is looked at too.
        """
        names, objects = list(tensors), list(tensors.values())
        same = (
            len(objects) == len(self._held)
            and all(map(operator.is_, objects, [held() for held in self._held]))
            and names == self._names
            and _is_on(self._memory, objects)
        )
        if not same:
            self._layout, self._names, self._memory = Layout(), names, _memory_of(objects)
            self._held = hold(objects)
        return self._layout


def hold(objects: Iterable[Any]) -> list[_Held]:
    """References that tell whether an object is still the same: weak ones of tensors, and plain values themselves."""
    return [weakref.ref(item) if isinstance(item, torch.Tensor) else _Literal(item) for item in objects]


@dataclass(frozen=True, slots=True)
class _Literal:
    """A number or None in an optimizer's state. Python keeps one object for small ones; others only miss the cache."""

    value: Any

    def __call__(self) -> Any:
        return self.value if isinstance(self.value, int | float | None) else self


def _memory_of(tensors: Sequence[torch.Tensor]) -> list[list[Any]]:
    local = _local(tensors)
    try:
        return [list(map(look, local)) for look in _LOOKS]
    except RuntimeError:
        # A sparse or lazy one has no such memory; it is refused by name when it comes to writing.
        return []


def _is_on(memory: list[list[Any]], tensors: Sequence[torch.Tensor]) -> bool:
    """Whether it is still the same; item by item, for thousands of new tuples would wake the garbage collector."""
    local = _local(tensors)
    try:
        return bool(memory) and all(
            all(map(operator.eq, map(look, local), known)) for look, known in zip(_LOOKS, memory, strict=True)
        )
    except RuntimeError:
        return False


def _local(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor._local_tensor if type(tensor) is DTensor else tensor for tensor in tensors]
