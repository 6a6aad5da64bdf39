"""The service as a process, and what slow and silent clients may hold of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from redis import Redis

from jobs.errors import InvalidSettings
from jobs.settings import Settings
from service.run import check_address
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, eventually, problem, serving, upload
from tests.service.pictures import picture

ROOT = Path(__file__).parents[2]
PNG = picture("PNG")
SERVE = """
import sys
from jobs.settings import Settings
from service.run import main
import cli.main
print(*sys.modules, flush=True)
main(Settings())
"""


@dataclass(frozen=True)
class Run:
    """What a process of the service had imported, wrote and ended with."""

    modules: list[str]
    lines: list[dict[str, str]]
    returncode: int


@pytest.fixture(scope="module")
def run(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A process of the service that is ended as soon as it serves."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("STABLESR_")},
        "STABLESR_REDIS_URL": redis_server.url,
        "STABLESR_BLOB_ROOT": str(tmp_path_factory.mktemp("blobs")),
        "STABLESR_PORT": "0",
    }
    lines = []
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVE],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        modules = process.stdout.readline().split()
        for line in process.stderr:
            lines.append(json.loads(line))
            if "running on" in lines[-1]["event"]:
                process.send_signal(signal.SIGTERM)
    return Run(modules, lines, process.returncode)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_leave(host: str) -> None:
    check_address(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_an_address_that_others_reach_needs_leave(host: str) -> None:
    with pytest.raises(InvalidSettings, match="STABLESR_ACCESS"):
        check_address(Settings(host=host))
    check_address(Settings(host=host, access="open"))
    check_address(Settings(host=host, access="keys"))


def test_the_process_serves_logs_json_and_ends_in_order(run: Run) -> None:
    # uvicorn shuts down in order and then ends by the signal that it was sent.
    assert run.returncode == -signal.SIGTERM
    assert "Finished server process" in run.lines[-1]["event"]
    assert any("http://127.0.0.1:" in line["event"] for line in run.lines), run.lines
    assert all({"level", "timestamp", "logger"} <= set(line) for line in run.lines)


def test_the_service_needs_of_the_models_only_what_its_image_holds(run: Run) -> None:
    ours = [name.replace(".", "/") for name in run.modules if name.startswith("models.")]
    assert ours
    for name in ours:
        file = f"{name}/__init__.py" if (ROOT / name).is_dir() else f"{name}.py"
        assert f" {file}" in (ROOT / "docker/service.Dockerfile").read_text()


def test_a_warning_is_a_line_like_any_other() -> None:
    code = (
        "from jobs.logs import configure_logging; from jobs.settings import Settings; "
        "import warnings; configure_logging(Settings()); "
        "warnings.warn('an odd file', stacklevel=1)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stderr
    line = json.loads(said)
    assert "an odd file" in line["event"]
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")


def exchange(address: tuple[str, int], sent: bytes) -> bytes:
    """What the server says to these bytes until it closes the connection."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(sent)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def address_of(client: httpx.Client) -> tuple[str, int]:
    assert client.base_url.port is not None
    return client.base_url.host, client.base_url.port


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * 40_000,
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b\r\n folded\x00\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
    ],
)
def test_what_is_no_request_is_400_as_a_problem(client: httpx.Client, sent: bytes) -> None:
    head, _, body = exchange(address_of(client), sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == 400


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"HTTP/1.1 408 Request Timeout"),
    ],
)
def test_a_request_whose_head_does_not_come_is_given_up(
    settings: Settings, sent: bytes, answered: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.run.HEAD_TIMEOUT_S", 0.2)
    with serving(settings) as client:
        assert exchange(address_of(client), sent).partition(b"\r\n")[0] == answered
        assert client.get("/livez").status_code == 200


def test_a_second_head_that_does_not_come_is_given_up_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.run.HEAD_TIMEOUT_S", 0.2)
    with (
        serving(settings) as client,
        socket.create_connection(address_of(client), timeout=10) as connection,
    ):
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b'"alive"}'):
            answer += connection.recv(65536)
        started = time.monotonic()
        connection.sendall(b"GET / HT")
        assert connection.recv(12) == b"HTTP/1.1 408"
        assert time.monotonic() - started < 3


def test_a_body_may_take_longer_than_a_head(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.run.HEAD_TIMEOUT_S", 0.2)
    with serving(settings) as client:
        head = (
            b"POST /upscale HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 5\r\nConnection: close\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        with socket.create_connection(address_of(client), timeout=10) as connection:
            connection.sendall(head)
            connection.settimeout(0.6)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(10)
            connection.sendall(b"--x--")
            assert connection.recv(12) == b"HTTP/1.1 422"


def test_an_upload_that_trickles_is_given_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "upload_timeout_s", 0.5)
    with serving(settings) as client:
        head = (
            b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        with socket.create_connection(address_of(client), timeout=0.05) as connection:
            connection.sendall(head)
            connection.sendall(b'--x\r\nContent-Disposition: form-data; name="image"; filename=')
            connection.sendall(b'"a.png"\r\n\r\n')
            answer = b""
            while not answer.endswith(b"}"):
                # A byte now and then keeps it from being a connection that stopped.
                connection.sendall(b"-")
                try:
                    answer += connection.recv(65536)
                except TimeoutError:
                    continue
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"0.5 seconds" in answer


LARGE = bytes(12_000_000)
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


@pytest.mark.parametrize(
    ("proxies", "limit", "status"), [("", 6, 429), ("127.0.0.1", 3, 503)], ids=["client", "all"]
)
def test_there_are_only_so_many_connections_with_requests_and_half_of_them_for_one_client(
    settings: Settings,
    redis: Redis,
    proxies: str,
    limit: int,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind a proxy all come from one address, whose share is no measure then."""
    monkeypatch.setattr(Settings, "max_transfers", 3)
    monkeypatch.setattr(Settings, "max_each", 3)
    changes = {"max_connections": limit, "trusted_proxies": proxies}
    with serving(settings.model_copy(update=changes)) as client, ExitStack() as stack:
        for _ in range(3):
            busy = connect(client, HALF.replace(b"\r\n", b"\r\nExpect: 100-continue\r\n", 1))
            assert stack.enter_context(busy).recv(12) == b"HTTP/1.1 100"
        head, _, body = exchange(address_of(client), b"").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"retry-after: 5" in head.lower()
        assert json.loads(body)["status"] == status
        stack.close()
        eventually(lambda: client.get("/livez").status_code == 200)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", get("/livez")])
def test_who_opens_many_connections_pushes_out_only_their_own(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Silent, with half a head, or kept after an answer; from one address and from several."""
    monkeypatch.setattr("service.run.HEAD_TIMEOUT_S", 60.0)
    limit = 32
    with serving(settings.model_copy(update={"max_connections": limit})) as client:

        def opened(source: str, sent: bytes) -> socket.socket:
            connection = socket.create_connection(
                address_of(client), timeout=10, source_address=(source, 0)
            )
            connection.sendall(sent)
            return connection

        with opened("127.0.0.2", get("/livez")) as first, ExitStack() as crowd:
            assert first.recv(65536).startswith(b"HTTP/1.1 200")
            for number in range(4 * limit):
                source = f"127.0.0.{3 + number % (1 + number // limit)}"
                crowd.enter_context(opened(source, sent))
                with opened("127.0.0.2", get("/livez")) as other:
                    assert other.recv(65536).startswith(b"HTTP/1.1 200"), number
                # Nor does a connection end that was there before, while it is not idle for long.
                first.sendall(get("/livez"))
                assert first.recv(65536).startswith(b"HTTP/1.1 200"), number
