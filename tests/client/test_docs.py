"""The code in docs/client.md, run as it stands against the real service."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from PIL import Image
from redis import Redis

from jobs.schema import Progress
from jobs.settings import Settings
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, serving
from tests.service.pictures import picture

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
STEP = Progress(stage="denoise", step=2, steps=4, fraction=0.5)


@pytest.fixture(scope="module")
def url(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service whose worker is done with every job at once."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    settings = Settings(
        redis_url=redis_server.url,
        blob_root=tmp_path_factory.mktemp("blobs"),
    )
    over = threading.Event()
    result = picture("PNG", 96, 64)

    def work(redis: Redis) -> None:
        worker = FakeWorker(redis, settings)
        seen: set[bytes] = set()
        while not over.wait(0.01):
            for key in set(redis.scan_iter("stablesr:job:*")) - seen:
                seen.add(key)
                job = key.decode().rpartition(":")[2]
                worker.start(job)
                worker.progress(job, STEP)
                worker.succeed(job, result)

    with Redis.from_url(settings.redis_url) as redis, serving(settings) as plain:
        redis.flushall()
        thread = threading.Thread(target=work, args=(redis,))
        thread.start()
        yield str(plain.base_url)
        over.set()
        thread.join()
    structlog.reset_defaults()


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_the_code_runs_as_it_stands(
    snippet: str,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg", "photos/c.jpg"):
        Image.new("RGB", (24, 16), "teal").save(name)
    assert ADDRESS in snippet
    exec(compile(snippet.replace(ADDRESS, url), str(PAGE), "exec"), {"__name__": "snippet"})
    said = capsys.readouterr().out
    if "photos" in snippet:
        assert len(list(Path("photos").glob("*.4x.png"))) == 3
        assert said == ""
    elif "download" in snippet:
        assert Path("photo-2x.png").exists()
        assert "succeeded" in said
    elif "upscale" in snippet:
        assert said.startswith("96 64 ")
    else:
        assert said.split()[-1] == "succeeded"


def test_the_page_has_all_its_code() -> None:
    assert len(SNIPPETS) == 4
