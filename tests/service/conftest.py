"""The service on a socket, empty Redis and store, and what to look at after a refusal."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import structlog
from redis import Redis

from jobs.settings import Settings
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, Leftovers, serving
from tests.service.receiver import LOCAL, SECRET, Names, Receiver, receiving


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Log lines go nowhere: the server's thread may write them after a test's output is closed."""

    def drop(*_: object) -> str:
        raise structlog.DropEvent

    structlog.configure(processors=[drop], logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def unshared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was answered a moment ago is no answer any more: here workers come and go at once."""
    monkeypatch.setattr("service.routes.status.SHARED_S", 0.0)


@pytest.fixture(scope="module")
def service(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, httpx.Client]]:
    """One server for the tests of a file; it keeps nothing itself, so they cannot meet in it."""
    settings = Settings(
        redis_url=redis_server.url,
        blob_root=tmp_path_factory.mktemp("store") / "blobs",
        # Small limits, so that a test can exceed them quickly.
        max_upload_bytes=2_000_000,
        max_input_pixels=1_000_000,
        max_output_pixels=4_000_000,
        max_queued=3,
    )
    with serving(settings) as client:
        yield settings, client


@pytest.fixture
def settings(service: tuple[Settings, httpx.Client], redis_url: str) -> Settings:
    """The settings of the server, over an empty Redis and an empty store."""
    settings, _ = service
    for path in settings.blob_root.rglob("*"):
        if path.is_file():
            path.unlink()
    return settings


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which this process makes temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def client(
    service: tuple[Settings, httpx.Client], settings: Settings, temporary: Path
) -> httpx.Client:
    """A client of the service, before anything has happened."""
    _, client = service
    return client


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def leftovers(settings: Settings, temporary: Path, redis: Redis) -> Leftovers:
    return Leftovers(settings.blob_root, temporary, redis)


@pytest.fixture
def worker(settings: Settings, redis: Redis) -> FakeWorker:
    return FakeWorker(redis, settings)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names([LOCAL])
    monkeypatch.setattr("service.egress.lookup", names)
    return names


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Names) -> Iterator[Receiver]:
    with receiving(tmp_path / "ca.pem") as receiver:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        yield receiver


@pytest.fixture
def private(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings under which this machine's own receiver may be called."""
    monkeypatch.setattr("service.webhooks.LOOK_S", 0.02)
    return settings.model_copy(update={"egress": "any", "webhook_secret": SECRET})


@pytest.fixture
def telling(private: Settings, receiver: Receiver) -> Iterator[httpx.Client]:
    with serving(private) as client:
        yield client
