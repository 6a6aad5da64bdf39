"""What an operation asks of the client that runs it: the only place where sync and async differ.

An operation (see `client.operations`) is a generator. It yields effects, is sent what came of each,
or has the exception thrown in at the `yield`, and returns the call's result.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Generic, TypeVar

__all__ = ["Call", "Chunk", "Effect", "Emit", "Operation", "Run", "Send", "Sleep"]

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """Make a request; comes to an `httpx.Response`, or httpx.TransportError is thrown in.

    The body is read, unless `stream` is set and the status is a success: then it is what `Chunk`
    brings, until the next `Send` or the operation's end.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, tuple[str, BinaryIO]] = field(default_factory=dict)
    stream: bool = False
    timeout_s: float | None = None
    """How long the server may be silent; None leaves it to the client."""


@dataclass(frozen=True)
class Chunk:
    """Comes to the next bytes of the streamed body, None at its end."""


@dataclass(frozen=True)
class Sleep:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Call:
    """Call the caller's function; where the client is async, what it returns may be awaited."""

    function: Callable[[Any], Any]
    argument: Any


@dataclass(frozen=True)
class Emit:
    """Give the caller who iterates one item."""

    item: Any


Effect = Send | Chunk | Sleep | Call | Emit
Operation = Generator[Effect, Any, T]


class Run(Generic[T]):
    """An operation under way."""

    def __init__(self, operation: Operation[T]) -> None:
        self._operation = operation
        self.value: T
        """What the operation returned, once `next` has returned None."""

    def next(self, outcome: Any = None, error: BaseException | None = None) -> Effect | None:
        """The next effect, given what came of the last one; None when the operation has ended.

        Raises whatever the operation raises.
        """
        try:
            if error is not None:
                return self._operation.throw(error)
            return self._operation.send(outcome)
        except StopIteration as end:
            self.value = end.value
            return None
