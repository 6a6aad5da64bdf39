"""The web UI's extras: exact sizes, batches, and errors in its form."""

from __future__ import annotations

import base64
import socket
from typing import Any

import httpx
import pytest
from redis import Redis

from jobs.keys import Keys
from jobs.schema import Progress
from jobs.settings import Settings
from tests.service.compat.conftest import RESULT, TEXT, URI
from tests.service.harness import FakeWorker, eventually

# What webuiapi sends when nothing is said.
DEFAULTS = {
    "resize_mode": 0,
    "show_extras_results": True,
    "gfpgan_visibility": 0,
    "codeformer_visibility": 0,
    "codeformer_weight": 0,
    "upscaling_resize": 2,
    "upscaling_resize_w": 512,
    "upscaling_resize_h": 512,
    "upscaling_crop": True,
    "upscaler_1": "tiny",
    "upscaler_2": "None",
    "extras_upscaler_2_visibility": 0,
    "upscale_first": False,
}


def single(client: httpx.Client, **fields: Any) -> httpx.Response:
    body = {**DEFAULTS, "image": URI, **fields}
    return client.post("/sdapi/v1/extra-single-image", json=body)


@pytest.mark.usefixtures("working")
@pytest.mark.parametrize("image", [TEXT, URI])
def test_an_image_comes_back_in_base64(client: httpx.Client, image: str) -> None:
    answer = single(client, image=image, upscaling_resize=3)
    assert answer.status_code == 200
    assert base64.b64decode(answer.json()["image"]) == RESULT
    [job] = client.get("/jobs").json()["jobs"]
    assert job["parameters"]["scale"] == 3


@pytest.mark.usefixtures("working")
def test_a_batch_comes_back_in_its_order(client: httpx.Client) -> None:
    images = [{"data": TEXT, "name": f"image{i}"} for i in range(3)]
    body = {**DEFAULTS, "imageList": images}
    answer = client.post("/sdapi/v1/extra-batch-images", json=body)
    assert [base64.b64decode(text) for text in answer.json()["images"]] == [RESULT] * 3
    jobs = client.get("/jobs").json()["jobs"]
    seeds = ", ".join(str(job["seed"]) for job in reversed(jobs))
    assert answer.json()["html_info"] == f"<p>Seed: {seeds}</p>"


def test_a_batch_with_a_broken_image_leaves_no_job_behind(client: httpx.Client) -> None:
    images = [{"data": TEXT, "name": "a"}, {"data": "AAAA", "name": "b"}]
    body = {**DEFAULTS, "imageList": images}
    answer = client.post("/sdapi/v1/extra-batch-images", json=body)
    assert answer.status_code == 422
    assert [job["state"] for job in client.get("/jobs").json()["jobs"]] == ["canceled"]


@pytest.mark.usefixtures("working")
@pytest.mark.parametrize(
    ("width", "height", "crop", "scale"),
    [(96, 64, True, 4), (60, 40, True, 2.5), (48, 64, False, 4), (100, 32, False, 100 / 24)],
)
def test_a_size_is_met_or_without_cropping_covered(
    client: httpx.Client, width: int, height: int, crop: bool, scale: float
) -> None:
    size = {"upscaling_resize_w": width, "upscaling_resize_h": height, "upscaling_crop": crop}
    assert single(client, resize_mode=1, **size).status_code == 200
    assert client.get("/jobs").json()["jobs"][0]["parameters"]["scale"] == pytest.approx(scale)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"resize_mode": 1}, "768 x 512 would be right"),
        ({"resize_mode": 2}, "resize_mode"),
        ({"resize_mode": 1, "upscaling_resize_w": 0}, "upscaling_resize_w"),
        ({"upscaler_1": "R-ESRGAN 4x+"}, "upscaler_1 must be one of tiny"),
        ({"upscaler_1": "None"}, "upscaler_1"),
        ({"upscaler_1": [None]}, "upscaler_1 must be one of tiny"),
        ({"upscaler_2": "tiny"}, "upscaler_2"),
        ({"gfpgan_visibility": 0.5}, "gfpgan_visibility must be 0"),
        ({"show_extras_results": False}, "show_extras_results must be True"),
        ({"upscaling_resize": 99}, "upscaling_resize must be between 1 and 16"),
        ({"denoising_strength": 0.3}, "denoising_strength is unknown"),
        ({"image": "photo.png"}, "image must be base64"),
        ({"image": None}, "image is missing"),
    ],
)
def test_what_cannot_be_done_is_refused_in_the_protocols_form(
    client: httpx.Client, fields: dict[str, Any], word: str
) -> None:
    answer = single(client, **fields)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "detail", "body", "errors"}
    assert word in answer.json()["detail"]
    assert client.get("/jobs").json()["jobs"] == []


@pytest.mark.usefixtures("failing")
def test_a_failure_is_an_error(client: httpx.Client) -> None:
    answer = single(client)
    assert answer.status_code == 422
    assert answer.json()["detail"] == "The device is too small."


def test_a_password_is_a_key(client: httpx.Client, token: str) -> None:
    path = "/sdapi/v1/upscalers"
    assert client.get(path, auth=("anyone", token)).status_code == 200
    for auth in (("anyone", "wrong"), None):
        refusal = client.get(path, auth=auth)
        assert refusal.status_code == 401
        assert refusal.json()["error"] == "An API key is needed"
    assert client.get(path, headers={"Authorization": "Basic %%%"}).status_code == 401


def test_the_upscalers_are_what_workers_serve(client: httpx.Client, worker: FakeWorker) -> None:
    worker.appear(preset="stablesr-512")
    names = [each["name"] for each in client.get("/sdapi/v1/upscalers").json()]
    assert names == ["tiny", "stablesr-512"]


@pytest.mark.parametrize("fact", ["sd-models", "samplers", "options", "cmd-flags", "memory"])
def test_what_clients_ask_at_the_start_is_answered(client: httpx.Client, fact: str) -> None:
    assert client.get(f"/sdapi/v1/{fact}").status_code == 200


def open_request(client: httpx.Client) -> socket.socket:
    """A request for an image, sent and not yet answered."""
    body = client.build_request(
        "POST", "/sdapi/v1/extra-single-image", json={**DEFAULTS, "image": URI}
    )
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 0))
    head = f"POST {body.url.path} HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body.content)}\r\n\r\n"
    connection.sendall(head.encode() + body.content)
    eventually(lambda: bool(client.get("/jobs").json()["jobs"]))
    return connection


def state(client: httpx.Client) -> str:
    return str(client.get("/jobs").json()["jobs"][0]["state"])


def test_a_client_that_leaves_cancels_its_job(client: httpx.Client) -> None:
    open_request(client).close()
    eventually(lambda: state(client) == "canceled")


def test_progress_is_told_and_an_interrupt_ends_the_request(
    client: httpx.Client, worker: FakeWorker, settings: Settings
) -> None:
    idle = client.get("/sdapi/v1/progress").json()
    assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
    with open_request(client) as connection:
        other = client.post("/upscale", json={"image": URI}).json()["id"]
        [job_id] = [j["id"] for j in client.get("/jobs").json()["jobs"] if j["id"] != other]
        worker.start(job_id)
        worker.progress(job_id, Progress(stage="denoise", step=1, steps=4, fraction=0.25))
        now = client.get("/sdapi/v1/progress").json()
        assert (now["progress"], now["state"]["sampling_step"]) == (0.25, 1)
        assert now["state"]["job_count"] == 1
        assert client.post("/sdapi/v1/interrupt").status_code == 200
        worker.stop(job_id)
        answer = connection.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 422")
    assert "is canceled" in answer
    assert client.get(f"/jobs/{other}").json()["state"] == "queued"


def test_another_keys_jobs_are_not_interrupted(keyed: httpx.Client, redis: Redis) -> None:
    keyed.post("/upscale", json={"image": URI})
    headers = {"Authorization": f"Bearer {Keys(redis).create('eve')[1]}"}
    interrupt = keyed.base_url.join("/sdapi/v1/interrupt")
    assert httpx.post(interrupt, headers=headers).status_code == 200
    assert state(keyed) == "queued"
