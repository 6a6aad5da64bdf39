"""How many requests of a kind may be open at once: streams, or transfers of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.errors import JobsError
from service.errors import TooManyStreams, TooManyTransfers

__all__ = ["Places", "streams", "transfers"]


class Places:
    """Counts what is open in this process, in all and of each client. Used on the loop only."""

    def __init__(
        self, most: int, most_each: int, *, what: str, otherwise: str, error: type[JobsError]
    ) -> None:
        """`what` is counted; who finds no place is told `otherwise` and gets an `error`."""
        self._most = most
        self._most_each = most_each
        self._what, self._otherwise, self._error = what, otherwise, error
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        return self._open.total()

    @contextmanager
    def one(self, client: str) -> Iterator[None]:
        """Holds a place as long as the block runs; raises the error."""
        if self._open[client] >= self._most_each:
            raise self._error(
                f"{self._most_each} {self._what} of one client may be open at once; "
                "let one end first.",
                limit=self._most_each,
                retry_after=5,
            )
        if self.open >= self._most:
            raise self._error(
                f"All {self._most} {self._what} of this server are in use; {self._otherwise}.",
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


def streams(most: int, most_each: int) -> Places:
    """Event streams, and uploads that wait for their job."""
    otherwise = "try again later, or ask for the job instead"
    return Places(most, most_each, what="streams", otherwise=otherwise, error=TooManyStreams)


def transfers(most: int, most_each: int) -> Places:
    """Uploads that are received and results that are sent: each holds a file and a socket."""
    otherwise = "try again later"
    return Places(most, most_each, what="transfers", otherwise=otherwise, error=TooManyTransfers)
