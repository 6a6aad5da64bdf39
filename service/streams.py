"""How many requests may stay open at once: event streams, and uploads that wait for their job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import TooManyStreams

__all__ = ["Streams"]


class Streams:
    """Counts what is open in this process, in all and of each client. Used on the loop only."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        return self._open.total()

    @contextmanager
    def one(self, client: str) -> Iterator[None]:
        """Holds a place as long as the block runs; raises TooManyStreams."""
        if self._open[client] >= self._most_each:
            raise TooManyStreams(
                f"{self._most_each} streams of one client may be open at once; close one first.",
                limit=self._most_each,
                retry_after=5,
            )
        if self.open >= self._most:
            raise TooManyStreams(
                f"All {self._most} streams of this server are in use; try again later, or ask "
                "for the job instead.",
                limit=self._most,
                retry_after=10,
            )
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1
            # A counter keeps its zeros, and clients are many.
            self._open += Counter()
