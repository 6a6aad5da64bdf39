"""The same at the largest upload that is taken by default: refused as soon."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from jobs.settings import Settings
from tests.hostile.files import LARGE
from tests.redis_server import RedisServer
from tests.service.harness import Leftovers, eventually, serving

SOON_S = 2.0
# Around the file.
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n',
    b"\r\n--x--\r\n",
)


@pytest.fixture(scope="module")
def service(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, httpx.Client]]:
    """A service with every limit as it is by default."""
    settings = Settings(
        redis_url=redis_server.url, blob_root=tmp_path_factory.mktemp("store") / "blobs"
    )
    with serving(settings) as client:
        yield settings, client


@pytest.mark.parametrize("name", LARGE)
def test_a_large_hostile_file_is_refused_in_time(
    client: httpx.Client, settings: Settings, leftovers: Leftovers, name: str
) -> None:
    file = LARGE[name]()
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    content = FORM[0] + file + FORM[1]
    assert 0.99 < len(content) / settings.max_upload_bytes <= 1
    # Of this process, in which client and server are: what else runs here does not count.
    started = time.process_time()
    answer = client.post("/upscale", content=content, headers=headers)
    seconds = time.process_time() - started
    assert answer.status_code == 422, answer.text[:500]
    assert seconds < SOON_S
    eventually(lambda: leftovers.found() == [])
