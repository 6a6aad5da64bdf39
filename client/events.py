"""Reading a stream of Server-Sent Events (HTML Living Standard, section 9.2)."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["EventParser", "ServerEvent"]


@dataclass(frozen=True)
class ServerEvent:
    """One event of a stream; `id` is the last that the stream has named, None when none was."""

    name: str
    data: str
    id: str | None


class EventParser:
    """Turns bytes, however they are cut, into events.

    `last_id` and `retry_s` (how long to wait before reconnecting, None unless the server said so)
    outlive a connection; `reconnected` drops what an old connection left half told.
    """

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self.retry_s: float | None = None
        self.reconnected()

    def reconnected(self) -> None:
        """A new connection begins."""
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._text = ""
        self._id = self.last_id
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """The events that are complete with these bytes."""
        self._text += self._decoder.decode(chunk)
        # A lone \r at the end may be half of \r\n.
        held = "\r" if self._text.endswith("\r") else ""
        text = self._text.removesuffix(held) if held else self._text
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._text = rest + held
        for line in lines:
            if event := self._line(line):
                yield event

    def _line(self, line: str) -> ServerEvent | None:
        if not line:
            name, data = self._name or "message", "\n".join(self._data)
            told = bool(self._data)
            self._name, self._data = "", []
            # Only now: an event that is cut off has to be told again.
            self.last_id = self._id
            return ServerEvent(name, data, self.last_id) if told else None
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "data":
            self._data.append(value)
        elif key == "event":
            self._name = value
        elif key == "id" and "\0" not in value:
            self._id = value
        elif key == "retry" and value.isascii() and value.isdigit():
            self.retry_s = int(value) / 1000
        return None
