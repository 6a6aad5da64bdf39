"""fal's queue: submit, poll, fetch, cancel; and its run that waits."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from redis import Redis

from jobs.keys import Keys
from tests.service.compat.conftest import RESULT, URI
from tests.service.harness import FakeWorker

APP = "/fal/queue/stablesr/tiny"


def submit(client: httpx.Client, path: str = APP, **fields: Any) -> httpx.Response:
    return client.post(path, json={"image_url": URI, **fields})


def test_a_request_goes_through_its_states(client: httpx.Client, worker: FakeWorker) -> None:
    place = submit(client, scale=4, seed=5).json()
    assert (place["status"], place["queue_position"]) == ("IN_QUEUE", 0)
    status = place["status_url"] + "?logs=1"
    assert client.get(place["response_url"]).status_code == 409
    worker.start(place["request_id"])
    assert client.get(status).json()["status"] == "IN_PROGRESS"
    assert "logs" in client.get(status).json()
    worker.succeed(place["request_id"], RESULT)
    assert client.get(status).json()["status"] == "COMPLETED"
    answer = client.get(place["response_url"])
    assert answer.headers["x-fal-request-id"] == place["request_id"]
    image = answer.json()["image"]
    assert httpx.get(image.pop("url")).content == RESULT
    size = {"width": 96, "height": 64, "file_size": len(RESULT)}
    assert image == {**size, "content_type": "image/png", "file_name": "output.png"}
    assert answer.json()["seed"] == 5
    assert client.put(place["cancel_url"]).status_code == 400


def test_a_request_is_canceled(client: httpx.Client) -> None:
    place = submit(client).json()
    assert client.put(place["cancel_url"]).status_code == 202
    assert client.get(place["status_url"]).json()["status"] == "COMPLETED"
    assert client.get(place["response_url"]).status_code == 422


def test_headers_say_priority_and_time(client: httpx.Client, redis: Redis) -> None:
    headers = {"X-Fal-Queue-Priority": "low", "X-Fal-Request-Timeout": "12.5"}
    place = client.post(APP, json={"image_url": URI}, headers=headers).json()
    record = redis.hgetall(f"stablesr:job:{place['request_id']}")
    assert record[b"priority"] == b"low"
    assert float(record[b"deadline"]) - float(record[b"created_at"]) == pytest.approx(13)


@pytest.mark.usefixtures("working")
def test_a_run_waits_for_the_result(client: httpx.Client) -> None:
    answer = submit(client, "/fal/run/stablesr/tiny")
    assert answer.status_code == 200
    assert httpx.get(answer.json()["image"]["url"]).content == RESULT


@pytest.mark.usefixtures("failing")
def test_a_failure_is_completed_and_its_result_an_error(client: httpx.Client) -> None:
    answer = submit(client, "/fal/run/stablesr/tiny")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"] == "The device is too small."
    [job] = client.get("/jobs").json()["jobs"]
    status = client.get(f"{APP}/requests/{job['id']}/status").json()
    assert (status["status"], status["error_type"]) == ("COMPLETED", "out-of-memory")


@pytest.mark.parametrize(
    ("path", "fields", "status", "word"),
    [
        ("/fal/queue/fal-ai/esrgan", {}, 404, "stablesr/tiny"),
        (APP + "?fal_webhook=https://a.example", {}, 422, "fal_webhook"),
        (APP, {"sync_mode": True}, 422, "sync_mode"),
        (APP, {"image_url": "data:image/png;base64,%"}, 422, "image_url"),
        (APP, {"upscale_factor": 99}, 422, "upscale_factor"),
        (APP, {"preset": "tiny"}, 422, "preset"),
    ],
)
def test_what_is_wrong_is_refused_in_the_protocols_form(
    client: httpx.Client, path: str, fields: dict[str, Any], status: int, word: str
) -> None:
    answer = submit(client, path, **fields)
    assert answer.status_code == status
    detail = answer.json()["detail"]
    assert isinstance(detail, list) == (status == 422)
    assert word in str(detail)


def test_a_key_is_taken_as_fal_sends_it_and_sees_its_own_only(
    client: httpx.Client, token: str, redis: Redis
) -> None:
    ada = {"Authorization": f"Key {token}"}
    eve = {"Authorization": f"Key {Keys(redis).create('eve')[1]}"}
    place = client.post(APP, json={"image_url": URI}, headers=ada).json()
    assert client.get(place["status_url"], headers=ada).status_code == 200
    for method, url in (("GET", "status_url"), ("GET", "response_url"), ("PUT", "cancel_url")):
        assert client.request(method, place[url], headers=eve).status_code == 404
    assert submit(client).status_code == 401
