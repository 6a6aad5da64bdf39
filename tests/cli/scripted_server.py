"""A small real HTTP server that answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["DONE", "IMAGE", "JOB_ID", "Script", "job", "serve"]

JOB_ID = "a" * 32
IMAGE = b"\x89PNG the bytes of an image"
DONE = {"url": "/r", "width": 8, "height": 8, "bytes": len(IMAGE)}

Answer = tuple[int, dict[str, str], bytes]


def job(state: str, **more: object) -> dict[str, object]:
    """A job as the service tells it, with a field that the client does not know."""
    return {"id": JOB_ID, "state": state, "preset": "tiny", "seed": 7, "new_field": 1, **more}


class Script:
    """What the server answers: for each "METHOD path" a list; the last answer stays."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.url = ""

    def add(self, call: str, status: int, body: object, **headers: str) -> None:
        """One more answer; underscores in the names of headers stand for dashes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.setdefault(call, []).append((status, named, content))

    def calls(self, call: str) -> list[tuple[dict[str, str], bytes]]:
        """The headers (lower case) and body of every such request so far."""
        return [(headers, body) for seen, headers, body in self.seen if seen == call]


@contextmanager
def serve() -> Iterator[Script]:
    """Runs the server on a free port of the loopback address."""
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            call = f"{self.command} {self.path}"
            script.seen.append((call, {k.lower(): v for k, v in self.headers.items()}, body))
            answers = script.answers[call]
            status, headers, content = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 304:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if status != 304:
                self.wfile.write(content)

        do_POST = do_GET
        do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()
