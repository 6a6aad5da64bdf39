"""The HTTP API of a Cog container."""

from __future__ import annotations

import base64

import httpx
import pytest
from redis import Redis

from jobs.keys import Keys
from tests.service.compat.conftest import RESULT, URI
from tests.service.harness import FakeWorker

INPUT = {"input": {"image": URI, "scale": 4}}
ASYNC = {"Prefer": "respond-async"}


@pytest.mark.usefixtures("working")
def test_a_prediction_answers_with_its_output_inside(client: httpx.Client) -> None:
    answer = client.post("/predictions", json={**INPUT, "id": "mine"})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["id"], body["status"], body["error"]) == ("mine", "succeeded", None)
    head, _, text = body["output"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(text) == RESULT


@pytest.mark.usefixtures("failing")
def test_a_failure_is_an_answer_too(client: httpx.Client) -> None:
    answer = client.post("/predictions", json=INPUT)
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["output"]) == ("failed", None)
    assert answer.json()["error"] == "The device is too small."


def test_a_prediction_that_is_put_again_is_the_same_job(
    client: httpx.Client, worker: FakeWorker
) -> None:
    first = client.put("/predictions/mine", json=INPUT, headers=ASYNC)
    assert first.status_code == 202
    assert (first.json()["id"], first.json()["status"]) == ("mine", "starting")
    [job] = client.get("/jobs").json()["jobs"]
    worker.start(job["id"])
    worker.succeed(job["id"], RESULT)
    again = client.put("/predictions/mine", json=INPUT, headers=ASYNC)
    assert again.json()["status"] == "succeeded"
    assert httpx.get(again.json()["output"]).content == RESULT
    assert len(client.get("/jobs").json()["jobs"]) == 1
    other = {"input": {"image": URI, "scale": 2}}
    assert client.put("/predictions/mine", json=other, headers=ASYNC).status_code == 422


@pytest.mark.parametrize("own", [True, False])
def test_a_prediction_is_canceled_by_either_id(client: httpx.Client, own: bool) -> None:
    client.put("/predictions/mine", json=INPUT, headers=ASYNC)
    [job] = client.get("/jobs").json()["jobs"]
    name = "mine" if own else job["id"]
    assert client.post(f"/predictions/{name}/cancel").status_code == 200
    assert client.get(f"/jobs/{job['id']}").json()["state"] == "canceled"
    assert client.post(f"/predictions/{name}/cancel").status_code == 200


def test_another_keys_prediction_cannot_be_canceled(keyed: httpx.Client, redis: Redis) -> None:
    keyed.put("/predictions/mine", json=INPUT, headers=ASYNC)
    headers = {"Authorization": f"Bearer {Keys(redis).create('eve')[1]}"}
    answer = httpx.post(keyed.base_url.join("/predictions/mine/cancel"), headers=headers)
    assert answer.status_code == 404
    assert "mine" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"input": {"image": "%"}}, "image"),
        ({"input": {"image": URI, "scael": 2}}, "scael"),
        ({"input": {"image": URI}, "output_file_prefix": "https://x"}, "output_file_prefix"),
        ({}, "input"),
    ],
)
def test_what_is_wrong_is_listed_by_its_place(
    client: httpx.Client, body: dict[str, object], place: str
) -> None:
    answer = client.post("/predictions", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "input", place]


def test_an_id_is_that_of_the_path(client: httpx.Client) -> None:
    assert client.put("/predictions/a", json={**INPUT, "id": "b"}).status_code == 422


def test_the_health_is_told_with_200_whatever_it_is(
    client: httpx.Client, worker: FakeWorker
) -> None:
    def status() -> str:
        answer = client.get("/health-check")
        assert answer.status_code == 200
        return str(answer.json()["status"])

    assert status() == "STARTING"
    worker.appear(state="not_ready", reason="it has no weights")
    assert status() == "SETUP_FAILED"
    worker.appear(state="idle", reason=None)
    assert status() == "READY"
