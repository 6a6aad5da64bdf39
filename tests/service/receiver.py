"""What tests of calls to others share: a receiver, which is a real HTTPS server on this machine
with a certificate made for it; names in place of DNS; for webhooks ended jobs and the agenda."""

from __future__ import annotations

import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue

import httpx
import trustme
from redis import Redis

from jobs.job_store import WEBHOOKS_KEY
from jobs.outbox import PAUSES_S
from service.egress import Address
from tests.service.harness import FakeWorker
from tests.service.pictures import picture

HOST = "hooks.example.org"
PNG = picture("PNG")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LOCAL = ipaddress.ip_address("127.0.0.1")


@dataclass(frozen=True)
class Delivery:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    server_name: str | None
    """The name that the TLS handshake asked for."""


@dataclass
class Receiver:
    """`answers` are the next ones to POST, status and headers; with none left, 204. `pages` answer
    to GET, by path."""

    port: int = 0
    got: SimpleQueue[Delivery] = field(default_factory=SimpleQueue)
    answers: SimpleQueue[tuple[int, dict[str, str]]] = field(default_factory=SimpleQueue)
    pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    connections: int = 0

    def address(self, path: str) -> str:
        return f"https://{HOST}:{self.port}{path}"

    def show(self, path: str, status: int, body: bytes = b"", **headers: str) -> str:
        """Answers to GET so; returns the address."""

        def page(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            fields = {"Content-Type": "image/png", "Content-Length": str(len(body))} | {
                name.replace("_", "-"): value for name, value in headers.items()
            }
            for name, value in fields.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)

        self.pages[path] = page
        return self.address(path)

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}/hook?of=1"

    def next(self) -> Delivery:
        return self.got.get(timeout=10)


@contextmanager
def receiving(ca_file: Path, host: str = HOST) -> Iterator[Receiver]:
    """A receiver whose certificate is for `host`, by an authority written to `ca_file`."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    receiver = Receiver()
    names: dict[int, str | None] = {}

    def note_name(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        receiver.connections += 1
        names[threading.get_ident()] = name

    context.sni_callback = note_name

    class Handler(BaseHTTPRequestHandler):
        def setup(self) -> None:
            # Here and not in the accepting thread, which a client without TLS would stop.
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            name = names.get(threading.get_ident())
            receiver.got.put(Delivery(self.path, dict(self.headers), body, name))
            status, headers = (204, {}) if receiver.answers.empty() else receiver.answers.get()
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            name = names.get(threading.get_ident())
            receiver.got.put(Delivery(self.path, dict(self.headers), b"", name))
            with suppress(OSError):
                receiver.pages[self.path](self)

        def finish(self) -> None:
            super().finish()
            self.request.close()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that does not trust the certificate leaves: that is its right."""

    server = Server(("127.0.0.1", 0), Handler)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Names:
    """What stands in for DNS: each question takes the next answer, the last one stays."""

    def __init__(self, *answers: list[Address]) -> None:
        self._answers = [*answers]
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[Address]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def ended(client: httpx.Client, worker: FakeWorker, url: str, **headers: str) -> str:
    """A job that asked for a webhook and has succeeded."""
    answer = client.post(
        "/upscale", files={"image": ("a.png", PNG)}, data={"webhook_url": url}, headers=headers
    )
    assert answer.status_code == 202, answer.text
    job = str(answer.json()["id"])
    worker.start(job)
    worker.succeed(job, PNG)
    return job


def agenda(redis: Redis) -> int:
    return int(redis.zcard(WEBHOOKS_KEY))


def put_off(redis: Redis) -> bool:
    """Whether the call waits for its second attempt; the lease of the first is a minute."""
    now = redis.time()[0]
    return redis.zcount(WEBHOOKS_KEY, now, now + 1.2 * PAUSES_S[0]) == 1
