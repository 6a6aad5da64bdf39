"""A small real HTTP server that answers as it is told, and breaks off where it is told."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JOB_ID = "a" * 32
IMAGE = b"\x89PNG the bytes of an image"
DONE = {
    "url": "/r",
    "width": 8,
    "height": 8,
    "bytes": len(IMAGE),
    "sha256": hashlib.sha256(IMAGE).hexdigest(),
}


def job(state: str, **more: object) -> dict[str, object]:
    """A job as the service tells it, with a field that the client does not know."""
    return {"id": JOB_ID, "state": state, "preset": "tiny", "seed": 7, "new_field": 1, **more}


@dataclass(frozen=True)
class Answer:
    """`cut` ends the connection after so many bytes of the body; -1 resets it before any answer."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


class Script:
    """What the server answers: for each "METHOD path" a list; the last answer stays.

    `handle` is asked first; what neither it nor the list knows is 404.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.handle: Callable[[str, dict[str, str], bytes], Answer | None] = lambda *_: None
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.url = ""
        self._lock = threading.Lock()

    def add(
        self, call: str, status: int, body: object = b"", *, cut: int | None = None, **headers: str
    ) -> None:
        """One more answer; underscores in the names of headers stand for dashes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.setdefault(call, []).append(Answer(status, content, named, cut))

    def reset(self, call: str) -> None:
        """One more answer: the connection is reset once the request has been read."""
        self.answers.setdefault(call, []).append(Answer(0, cut=-1))

    def calls(self, call: str) -> list[tuple[dict[str, str], bytes]]:
        """The headers (lower case) and body of every such request so far."""
        return [(headers, body) for seen, headers, body in self.seen if seen == call]

    def answer(self, call: str, headers: dict[str, str], body: bytes) -> Answer:
        """What is answered next."""
        with self._lock:
            self.seen.append((call, headers, body))
        # Not under the lock: it may wait for another request.
        if (made := self.handle(call, headers, body)) is not None:
            return made
        with self._lock:
            answers = self.answers.get(call)
            if not answers:
                return Answer(404)
            return answers.pop(0) if len(answers) > 1 else answers[0]


@contextmanager
def serve() -> Iterator[Script]:
    """Runs the server on a free port of the loopback address."""
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = script.answer(f"{self.command} {self.path}", headers, body)
            if answer.cut is not None:
                self.close_connection = True
            if answer.cut == -1:
                # Closing with this option sends a reset in place of an orderly end.
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            empty = answer.status in (204, 304)
            if not empty:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if not empty:
                self.wfile.write(answer.body[: answer.cut])

        do_POST = do_GET
        do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        # Clients of these tests leave in the middle of an answer, which is no news.
        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    with Server(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()
