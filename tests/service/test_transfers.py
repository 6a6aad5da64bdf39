"""What slow and silent clients may hold: places, connections, memory, and for how long."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from redis import Redis

from jobs.settings import Settings
from tests.service.harness import FakeWorker, eventually, problem, serving, upload
from tests.service.pictures import picture

PNG = picture("PNG")
LARGE = bytes(30_000_000)
SEND_TIMEOUT_S = 0.7
HALF = (
    b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n"
    b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
)


@pytest.fixture
def narrow(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A service of few places that does not wait long for those who do not read."""
    monkeypatch.setattr(Settings, "max_transfers", 3)
    monkeypatch.setattr(Settings, "max_each", 2)
    monkeypatch.setattr(Settings, "upload_timeout_s", 20.0)
    monkeypatch.setattr("service.run.SEND_TIMEOUT_S", SEND_TIMEOUT_S)
    with serving(settings) as client:
        yield client


@pytest.fixture
def result(narrow: httpx.Client, worker: FakeWorker) -> str:
    """The path of a large result."""
    job = upload(narrow, PNG).json()["id"]
    worker.start(job)
    worker.succeed(job, LARGE)
    return f"/jobs/{job}/result"


def connect(client: httpx.Client, sent: bytes = b"", *, buffer: int = 4096) -> socket.socket:
    """A connection that sends this and does not read; the kernel takes so much for it."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    made.settimeout(20)
    made.connect((client.base_url.host, client.base_url.port))
    made.sendall(sent)
    return made


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def open_transfers(client: httpx.Client) -> int:
    [line] = [
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("stablesr_transfers_open ")
    ]
    return int(float(line.split()[1]))


def test_one_client_receives_and_sends_only_so_much_at_once(
    narrow: httpx.Client, result: str
) -> None:
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(connect(narrow, HALF))
        eventually(lambda: open_transfers(narrow) == 2)
        for answer in (upload(narrow, PNG), narrow.get(result)):
            body = problem(answer, 429, "too-many-transfers")
            assert body["limit"] == 2
            assert answer.headers["Retry-After"]
        assert narrow.head(result).status_code == 200
    eventually(lambda: open_transfers(narrow) == 0)
    assert upload(narrow, PNG).status_code == 202
    assert narrow.get(result).content == LARGE


def test_who_does_not_read_a_result_is_cut_off(narrow: httpx.Client, result: str) -> None:
    with connect(narrow, get(result)) as silent:
        eventually(lambda: open_transfers(narrow) == 1)
        eventually(lambda: open_transfers(narrow) == 0)
        read = 0
        try:
            while piece := silent.recv(1 << 20):
                read += len(piece)
        except ConnectionResetError:
            pass
        assert 0 < read < len(LARGE)
    files = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    assert not [path for path in files if "results" in path.parts]


def test_who_reads_slowly_is_not_cut_off(narrow: httpx.Client, result: str) -> None:
    pause = threading.Event()
    with connect(narrow, get(result), buffer=65536) as slow:
        started = time.monotonic()
        # Three times as long as who reads nothing may take.
        while time.monotonic() - started < 3 * SEND_TIMEOUT_S:
            assert slow.recv(65536)
            pause.wait(0.02)
        assert open_transfers(narrow) == 1


def test_there_are_only_so_many_connections(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.run.HEAD_TIMEOUT_S", 20.0)
    with serving(settings.model_copy(update={"max_connections": 3})) as client, ExitStack() as held:
        for _ in range(3):
            held.enter_context(connect(client))
        with connect(client) as further:
            answer = b""
            while piece := further.recv(65536):
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 5" in head
        assert json.loads(body)["status"] == 503
        held.close()
        eventually(lambda: client.get("/livez").status_code == 200)
