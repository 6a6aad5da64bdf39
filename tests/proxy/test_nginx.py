"""Debian's nginx before the service, as configs/nginx.conf has it."""

from __future__ import annotations

import base64
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from redis import Redis

from cli.processes import free_port
from jobs.connection import as_text
from jobs.job_store import record_key
from jobs.schema import Progress
from jobs.settings import Settings
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, eventually, plain_client, problem, serving, upload
from tests.service.pictures import picture

PNG = picture("PNG")
CONFIG = Path(__file__).parents[2] / "configs" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
# Its own user could not write into the folder; without root the line is ignored.
MAIN = """
user root;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {site}
}}
"""


@pytest.fixture(scope="module")
def service(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, httpx.Client]]:
    """The service under its limits by default; the client asks the proxy."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    settings = Settings(
        redis_url=redis_server.url,
        blob_root=tmp_path_factory.mktemp("store") / "blobs",
        trusted_proxies="127.0.0.1",
    )
    with serving(settings) as direct:
        site = CONFIG.read_text()
        for there, here in (
            ("127.0.0.1:8000", f"127.0.0.1:{direct.base_url.port}"),
            ("listen 80;", f"listen 127.0.0.1:{port};"),
            ("upscale.example.org", "localhost"),
        ):
            assert there in site
            site = site.replace(there, here)
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder, site=site))
        assert NGINX is not None
        command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        with subprocess.Popen([*command, "-e", str(folder / "error.log")]) as process:
            try:
                with plain_client(f"http://localhost:{port}") as client:
                    eventually(lambda: _answers(client))
                    yield settings, client
            finally:
                process.terminate()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def client(service: tuple[Settings, httpx.Client], settings: Settings) -> httpx.Client:
    return service[1]


def test_an_image_goes_in_and_its_result_comes_out(
    client: httpx.Client, worker: FakeWorker
) -> None:
    job = upload(client, PNG).json()["id"]
    worker.start(job)
    worker.succeed(job, PNG)
    answer = client.get(f"/jobs/{job}/result", headers={"Range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, PNG[10:20])


def test_the_largest_image_passes_as_a_file_and_as_json(
    client: httpx.Client, settings: Settings
) -> None:
    # What follows a PNG's end is not looked at.
    large = PNG + bytes(settings.max_upload_bytes - 1000 - len(PNG))
    assert upload(client, large).status_code == 202
    answer = client.post("/upscale", json={"image": base64.b64encode(large).decode()})
    assert answer.status_code == 202
    problem(upload(client, large + bytes(2000)), 413, "upload-too-large")


def test_events_pass_as_they_happen(client: httpx.Client, worker: FakeWorker) -> None:
    job = upload(client, PNG).json()["id"]
    with client.stream("GET", f"/jobs/{job}/events") as stream:
        lines = stream.iter_lines()

        def next_event() -> str:
            return next(line for line in lines if line.startswith("event: "))

        assert next_event() == "event: state"
        worker.start(job)
        assert next_event() == "event: state"
        worker.progress(job, Progress(stage="denoise", step=1, steps=4, fraction=0.2))
        assert next_event() == "event: progress"
        worker.succeed(job, PNG)
        assert next_event() == "event: end"


def test_a_request_may_wait_and_one_that_leaves_is_noticed(
    client: httpx.Client, worker: FakeWorker, redis: Redis
) -> None:
    def wait(seconds: int) -> httpx.Response:
        return client.post("/upscale", files={"image": PNG}, headers={"Prefer": f"wait={seconds}"})

    started = time.monotonic()
    assert wait(1).status_code == 202
    assert time.monotonic() - started >= 1
    redis.flushall()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait, 50)
        eventually(lambda: bool(redis.keys("stablesr:job:*")))
        [key] = redis.keys("stablesr:job:*")
        job = as_text(key).removeprefix(record_key(""))
        worker.start(job)
        worker.succeed(job, PNG)
        answer = waiting.result(timeout=20)
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")


def test_clients_are_told_apart_by_the_address_that_nginx_saw(
    client: httpx.Client, redis: Redis
) -> None:
    upload(client, PNG).raise_for_status()
    claim = {"X-Forwarded-For": "203.0.113.7"}
    client.post("/upscale", files={"image": PNG}, headers=claim).raise_for_status()
    [rate] = redis.keys("stablesr:rate:uploads:*")
    assert rate == b"stablesr:rate:uploads:address:127.0.0.1"
