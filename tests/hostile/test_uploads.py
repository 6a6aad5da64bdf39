"""Whatever is sent: refused within two seconds, with a problem, and nothing of it stays."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from jobs.settings import Settings
from tests.hostile.documents import DOCUMENTS
from tests.hostile.files import FILES, FORMS, REQUESTS
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, Leftovers, eventually, serving
from tests.service.pictures import picture

SOON_S = 2.0
# What a file may be refused for that is not whole, or no image of a kind that is taken.
UNFIT = {"truncated", "empty", "unreadable", "animated", "format-unsupported"}


@pytest.fixture(scope="module")
def service(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, httpx.Client]]:
    """A service that does not wait long for slow clients."""
    settings = Settings(
        redis_url=redis_server.url,
        blob_root=tmp_path_factory.mktemp("store") / "blobs",
        max_upload_bytes=2_000_000,
        max_input_pixels=1_000_000,
        max_output_pixels=4_000_000,
        uploads_per_minute=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.run.HEAD_TIMEOUT_S", 0.3)
        patch.setattr(Settings, "upload_timeout_s", 0.3)
        with serving(settings) as client:
            yield settings, client


@pytest.fixture(autouse=True)
def unharmed(client: httpx.Client, leftovers: Leftovers) -> Iterator[None]:
    """Nothing is left of a request, and the service goes on."""
    assert leftovers.found() == []
    yield
    eventually(lambda: leftovers.found() == [])
    assert client.get("/livez").status_code == 200


def refused(answer: httpx.Response, started: float) -> None:
    assert 400 <= answer.status_code < 500, answer.text[:500]
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    assert time.monotonic() - started < SOON_S


def test_there_are_enough_of_them() -> None:
    assert len(FILES) + len(FORMS) + len(DOCUMENTS) + len(REQUESTS) >= 90


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_for_what_it_is(client: httpx.Client, name: str) -> None:
    started = time.monotonic()
    answer = client.post("/upscale", files={"image": ("a.png", FILES[name])})
    refused(answer, started)
    # Each by the limit that is meant: a bomb is refused for its result as well.
    if " x " in name:
        expected = {"/problems/image-too-large"}
    elif "result" in name:
        expected = {"/problems/output-too-large"}
    else:
        expected = {f"/problems/image-{reason}" for reason in UNFIT}
    assert answer.json()["type"] in expected


@pytest.mark.parametrize("name", [*FORMS, *DOCUMENTS])
def test_a_hostile_form_is_refused(client: httpx.Client, name: str) -> None:
    content_type, body = {**FORMS, **DOCUMENTS}[name]
    started = time.monotonic()
    answer = client.post("/upscale", content=body, headers={"Content-Type": content_type})
    refused(answer, started)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_hostile_request_is_refused(client: httpx.Client, name: str) -> None:
    assert client.base_url.port is not None
    started = time.monotonic()
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(REQUESTS[name])
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := connection.recv(65536)):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert b"application/problem+json" in answer.lower()
    assert time.monotonic() - started < SOON_S


def test_a_name_that_leads_elsewhere_stays_a_name(
    client: httpx.Client, settings: Settings, redis: Redis
) -> None:
    """The one thing that is accepted here: a good image under a bad name."""
    before = {path for path in settings.blob_root.parent.rglob("*")}
    for name in ("../../../../tmp/x.png", "/etc/passwd", "..\\..\\x", "a\nb"):
        answer = client.post("/upscale", files={"image": (name, picture("PNG"))})
        assert answer.status_code == 202
        worker = FakeWorker(redis, settings)
        job = answer.json()["id"]
        worker.start(job)
        worker.succeed(job, b"result")
        shown = client.get(f"/jobs/{job}").json()["input"]["filename"]
        assert "/" not in shown
        assert "\\" not in shown
        stored = {path.name for path in set(settings.blob_root.parent.rglob("*")) - before}
        assert stored <= {job, "blobs", "inputs", "results"}
        for path in settings.blob_root.rglob("*"):
            if path.is_file():
                path.unlink()
    redis.flushall()
