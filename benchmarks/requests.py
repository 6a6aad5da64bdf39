"""Processor time of the service a request, beside a bare FastAPI route in the same run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import redis.asyncio
from fastapi import FastAPI

from benchmarks.images import SCALE, synthetic_png
from benchmarks.stack import Stack, last_state
from benchmarks.workloads import Report, Workload

GETS, POSTS, ROUNDS = 400, 40, 5
_KEY = "benchmark:hash"
_URL = "BENCHMARK_REDIS_URL"
_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


def requests(stack: Stack, workload: Workload) -> Report:
    """Milliseconds of one process, user and system, the least of some rounds; requests come one
    after the other on one connection. The bare route reads one Redis hash and returns it."""
    job = workload.submit(stack, 0, workload.size, 1)
    last_state(stack.client, [job])
    service, image = stack.process("serve"), synthetic_png(workload.size // SCALE, 0)
    form = {"preset": workload.preset, "scale": str(SCALE), "steps": "1"}

    def upload(client: httpx.Client) -> httpx.Response:
        return client.post("/upscale", files={"image": image}, data=form)

    with httpx.Client(base_url=stack.url, trust_env=False, timeout=60) as client:
        values = {
            "GET /livez": _least(service, client, lambda c: c.get("/livez"), GETS),
            "GET /jobs/{id}": _least(service, client, lambda c: c.get(f"/jobs/{job.id}"), GETS),
            "POST /upscale": _least(service, client, upload, POSTS),
        }
    with (
        _bare_route(stack.redis_url()) as (process, url),
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        values["a bare route"] = _least(process, client, lambda c: c.get("/bare"), GETS)
    return [
        workload.measurement("processor time a request", name, value / 1000, "s")
        for name, value in values.items()
    ], []


def _least(
    process: int,
    client: httpx.Client,
    request: Callable[[httpx.Client], httpx.Response],
    count: int,
) -> float:
    """Milliseconds of the process a request, at least."""
    times = []
    for _ in range(ROUNDS + 1):
        start = _processor_ms(process)
        for _ in range(count):
            request(client).raise_for_status()
        times.append((_processor_ms(process) - start) / count)
    # The first round has what is done once.
    return min(times[1:])


def _processor_ms(process: int) -> float:
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) * _TICK_MS


@contextmanager
def _bare_route(redis_url: str) -> Iterator[tuple[int, str]]:
    """Its process and address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, _URL: redis_url}
    command = [sys.executable, "-m", "uvicorn", "benchmarks.requests:bare", "--factory"]
    command += ["--http", "h11", "--loop", "asyncio", "--port", port, "--log-level", "warning"]
    with subprocess.Popen([*command, "--no-access-log"], env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            while True:
                try:
                    httpx.get(f"{url}/bare", trust_env=False).raise_for_status()
                    break
                except httpx.TransportError:
                    if process.poll() is not None:
                        raise SystemExit("The bare route did not start.") from None
                    time.sleep(0.05)
            yield process.pid, url
        finally:
            process.terminate()


def bare() -> FastAPI:
    """The application to compare with."""
    connection = redis.asyncio.Redis.from_url(os.environ[_URL], decode_responses=True)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await connection.hset(_KEY, mapping={str(i): "a value of a field" for i in range(20)})
        yield
        await connection.delete(_KEY)
        await connection.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/bare")
    async def read() -> dict[str, str]:
        values = await connection.hgetall(_KEY)
        return {str(name): str(value) for name, value in values.items()}

    return app
