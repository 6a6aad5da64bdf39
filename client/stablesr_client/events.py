"""The events of a job: a stream of Server-Sent Events (HTML Living Standard, section 9.2)."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["EventParser", "ServerEvent"]


@dataclass(frozen=True)
class ServerEvent:
    """One event of a stream; `id` is the last that the stream has sent, None without any."""

    name: str
    data: str
    id: str | None


class EventParser:
    """Turns bytes, however they are cut, into events.

    `last_id` and `retry_s` (the pause before a new connection, 0 unless the server sent it) outlive
    a connection; `reconnected` drops the unfinished event of the old one.
    """

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self.retry_s = 0.0
        self.reconnected()

    def reconnected(self) -> None:
        """A new connection begins."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        self._line = ""
        self._id = self.last_id
        self._name = ""
        self._data: list[str] = []

    def headers(self) -> dict[str, str]:
        """The headers of a request for the events after the last one."""
        known = {} if self.last_id is None else {"Last-Event-ID": self.last_id}
        return {"Accept": "text/event-stream", **known}

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """The events that are complete with these bytes."""
        *lines, self._line = (self._line + self._decoder.decode(chunk)).split("\n")
        for line in lines:
            if line:
                self._field(line)
                continue
            # Only now: an event that is cut off has to be sent again.
            self.last_id = self._id
            if self._data:
                yield ServerEvent(self._name or "message", "\n".join(self._data), self.last_id)
            self._name, self._data = "", []

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_s = int(value) / 1000
