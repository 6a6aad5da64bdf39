"""A stand-in for the Hugging Face hub: real HTTP on a socket, with faults on demand.

It speaks what a download of a large file needs: `/<repository>/resolve/<revision>/<file>` tells
commit, size and sha256 and redirects to another origin, where the bytes are, in ranges, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self

from huggingface_hub import close_session

from models.presets import Preset, Release, ReleasedFile, get_preset

NAMES = "stablesr_000117.ckpt", "vqgan_cfw_00011.ckpt"
WHOLE = ["stablesr-512/config.json", "stablesr-512/model.safetensors"]
"""What a pull leaves."""

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Request:
    """What was asked of the hub, or of the host of the bytes."""

    method: str
    path: str
    start: int | None
    """First byte asked for, where a range was."""
    authorization: str | None


@dataclass
class Hub:
    """Files by name, and what goes wrong.

    `cuts`: after how many bytes each answer in turn breaks off. `statuses`: what the first requests
    are answered with, with a Retry-After. `ranges`: whether they are honoured. `tells_sum`: whether
    the hub tells a file's. `before`: is called before bytes are sent.
    """

    files: dict[str, bytes]
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    tells_sum: bool = True
    before: Callable[[], object] = lambda: None
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._servers = [_serve(self, _Front), _serve(self, _Bytes)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The library keeps connections, whose threads here would not end.
        close_session()
        for server, thread in self._servers:
            server.shutdown()
            thread.join()
            server.server_close()

    @property
    def url(self) -> str:
        return _address(self._servers[0][0])

    @property
    def bytes_url(self) -> str:
        return _address(self._servers[1][0])

    def starts(self, name: str) -> list[int]:
        """The first bytes of a file that were asked for, in order."""
        asked = [r for r in self.requests if r.path.startswith("/bytes/") and r.path.endswith(name)]
        return [r.start or 0 for r in asked]


def small_preset(contents: dict[str, bytes]) -> Preset:
    """stablesr-512, with the sizes and sums of these files."""
    diffusion, autoencoder = (
        ReleasedFile(name, len(content), hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    )
    return replace(get_preset("stablesr-512"), release=Release(diffusion, autoencoder))


def files_in(root: Path) -> list[str]:
    """Every file in the root, but for the lock."""
    return sorted(
        str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name != ".lock"
    )


def _address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def _serve(hub: Hub, handler: type[_Handler]) -> tuple[ThreadingHTTPServer, Thread]:
    bound = type(handler.__name__, (handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    server.daemon_threads = False
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    return server, thread


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(send=False)

    def do_GET(self) -> None:
        self.answer(send=True)

    def answer(self, *, send: bool) -> None:
        raise NotImplementedError

    def note(self) -> Request:
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        request = Request(
            self.command,
            self.path,
            int(ranged[1]) if ranged else None,
            self.headers.get("Authorization"),
        )
        self.hub.requests.append(request)
        return request

    def empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Front(_Handler):
    """The hub itself."""

    def answer(self, *, send: bool) -> None:
        self.note()
        if self.hub.statuses:
            self.empty(self.hub.statuses.pop(0), Retry_After="7")
            return
        name = self.path.rpartition("/")[2]
        if not re.fullmatch(r"/\w+/\w+/resolve/main/.+", self.path) or name not in self.hub.files:
            self.empty(404)
            return
        content = self.hub.files[name]
        told = {"X_Linked_Etag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self.empty(
            302,
            Location=f"{self.hub.bytes_url}/bytes/{name}?signature=abc",
            X_Repo_Commit=COMMIT,
            X_Linked_Size=str(len(content)),
            **(told if self.hub.tells_sum else {}),
        )


class _Bytes(_Handler):
    """Where the hub keeps the bytes of large files."""

    def answer(self, *, send: bool) -> None:
        self.path = self.path.partition("?")[0]
        request = self.note()
        content = self.hub.files[self.path.removeprefix("/bytes/")]
        start = (request.start or 0) if self.hub.ranges else 0
        if start >= len(content):
            self.empty(416, Content_Range=f"bytes */{len(content)}")
            return
        self.hub.before()
        rest = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if send:
            cut = self.hub.cuts.pop(0) if self.hub.cuts else len(rest)
            self.wfile.write(rest[:cut])
            if cut < len(rest):
                self.close_connection = True
