"""What the pickle inside a torch checkpoint describes: names and places, nothing that acts."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Global", "Inert", "PickledStorage", "PickledTensor", "Unpickled"]


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """The name of a class or function, as module.name; never the thing itself."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Inert:
    """What the file would have made by calling `name`; the same object for the same name."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class PickledStorage:
    """Numbers that lie in a file of their own beside the pickle."""

    kind: str
    """Such as torch.FloatStorage."""
    key: str
    """The file's name."""
    count: int
    """How many numbers."""


@dataclass(frozen=True, eq=False, slots=True)
class PickledTensor:
    """A view of a storage. All in numbers, not bytes; nothing is checked against the storage."""

    storage: PickledStorage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class Unpickled:
    """What a pickle holds."""

    value: object = None
    """None, bool, int, float, str, bytes, list, tuple, dict with str keys, or the classes above.
    Items of a dict under other keys are dropped."""
    foreign: set[str] = field(default_factory=set)
    """Names of all classes and functions that are not part of tensors."""
