"""A store that speaks S3, and one that accepts connections and never answers."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Self

import httpx

from cli.processes import free_port


def environment(url: str) -> dict[str, str]:
    """What tells obstore, in this process or another, that S3 is at this address."""
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
    }


class S3Server:
    """A process within `with`, on this machine."""

    def __init__(self) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._client = httpx.Client(base_url=self.url, verify=False)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.clear()
                return self
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.05)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It accepts connections and answers nothing until the block ends."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def bucket(self, name: str) -> str:
        """A new bucket, and a folder in it, as STABLESR_BLOB_URL."""
        self._client.put(f"/{name}").raise_for_status()
        return f"s3://{name}/images"

    def names(self, bucket: str) -> list[str]:
        """All that is in the bucket, at most 1000."""
        return re.findall("<Key>(.*?)</Key>", self._client.get(f"/{bucket}").text)

    def clear(self) -> None:
        """Removes all buckets."""
        self._client.post("/moto-api/reset").raise_for_status()


@contextmanager
def silence() -> Iterator[str]:
    """The URL of a server whose kernel accepts connections, and which reads none of them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def slow_line(url: str, bytes_a_second: int) -> Iterator[str]:
    """The URL under which all that is sent to this one arrives so slowly; answers do not."""
    host, _, port = url.removeprefix("http://").partition(":")

    class Line(BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), socket.create_connection((host, int(port))) as far:
                answering = threading.Thread(target=self._answer, args=(far,))
                answering.start()
                with suppress(OSError):
                    while data := self.request.recv(16_384):
                        time.sleep(len(data) / bytes_a_second)
                        far.sendall(data)
                    far.shutdown(socket.SHUT_WR)
                answering.join()

        def _answer(self, far: socket.socket) -> None:
            with suppress(OSError):
                while data := far.recv(65_536):
                    self.request.sendall(data)

    class Server(ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Line) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            serving.join()
