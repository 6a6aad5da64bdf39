"""Replicate's API: what its clients send, and what they make of the answers. And that of a Cog
container."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest
from redis import Redis

from jobs.keys import Keys
from service.compat.replicate import version_of
from tests.service.compat.conftest import PNG, RESULT, URI, ending
from tests.service.harness import FakeWorker, problem

VERSION = version_of("tiny")
MODEL = "/v1/models/stablesr/tiny/predictions"


def create(client: httpx.Client, prefer: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if prefer is None else {"Prefer": prefer}
    body = {"version": VERSION, "input": {"image": URI, **fields}}
    return client.post("/v1/predictions", json=body, headers=headers)


@pytest.mark.usefixtures("working")
def test_a_prediction_that_is_waited_for_has_its_output(client: httpx.Client) -> None:
    answer = create(client, "wait", scale=4)
    assert answer.status_code == 201
    body = answer.json()
    assert body["status"] == "succeeded"
    assert body["version"] == VERSION
    assert body["model"] == "stablesr/tiny"
    assert httpx.get(body["output"]).content == RESULT


def test_a_wait_that_runs_out_says_starting_although_the_job_runs(
    client: httpx.Client, worker: FakeWorker, redis: Redis
) -> None:
    with ending(redis, worker.start):
        job = create(client, "wait=1").json()
    assert job["status"] == "starting"
    assert client.get(f"/v1/predictions/{job['id']}").json()["status"] == "processing"


@pytest.mark.parametrize(
    ("name", "value", "field", "parameter"),
    [
        ("scale", 2, "scale", 2),
        ("scale_factor", 2, "scale", 2),
        ("factor", 2.5, "scale", 2.5),
        ("num_inference_steps", 3, "steps", 3),
        ("output_format", "jpg", "output_format", "jpeg"),
        ("seed", 9, "seed", 9),
    ],
)
def test_the_names_that_people_send_are_known(
    client: httpx.Client, name: str, value: Any, field: str, parameter: object
) -> None:
    job = create(client, **{name: value}).json()
    assert client.get(f"/jobs/{job['id']}").json()["parameters"][field] == parameter
    assert job["input"][field] == parameter


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"face_enhance": True}, "face_enhance"),
        ({"creativity": 0.3}, "creativity"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"output_quality": 90}, "output_quality"),
        ({"scale": 2, "factor": 3}, "factor"),
        ({"image": "no base64!"}, "image"),
        ({"preset": "tiny"}, "scale"),
    ],
)
def test_what_is_wrong_is_refused_by_the_name_that_was_sent(
    client: httpx.Client, fields: dict[str, Any], field: str
) -> None:
    if "preset" in fields:
        fields = {"scale": 99}
    body = problem(create(client, **fields), 422, "invalid-parameters")
    assert body["errors"][0]["field"] == field


def test_face_enhance_false_is_what_we_do(client: httpx.Client) -> None:
    assert create(client, face_enhance=False).status_code == 201


def test_a_model_may_be_named_in_the_path_or_as_the_version(client: httpx.Client) -> None:
    assert client.post(MODEL, json={"input": {"image": URI}}).status_code == 201
    body = {"version": "stablesr/tiny", "input": {"image": URI}}
    assert client.post("/v1/predictions", json=body).status_code == 201


def test_an_unknown_model_and_version_are_refused(client: httpx.Client) -> None:
    path = "/v1/models/nightmareai/real-esrgan/predictions"
    refusal = client.post(path, json={"input": {"image": URI}})
    assert "stablesr/tiny" in problem(refusal, 404, "model-not-found")["detail"]
    refusal = client.post("/v1/predictions", json={"version": "f" * 64, "input": {}})
    assert problem(refusal, 422, "invalid-parameters")["errors"][0]["field"] == "version"
    refusal = client.get(f"/v1/models/stablesr/tiny/versions/{'f' * 64}")
    problem(refusal, 404, "model-not-found")


def test_a_model_and_its_version_have_the_schema_of_the_output(client: httpx.Client) -> None:
    latest = client.get("/v1/models/stablesr/tiny").json()["latest_version"]
    version = client.get(f"/v1/models/stablesr/tiny/versions/{latest['id']}").json()
    assert version == latest
    output = version["openapi_schema"]["components"]["schemas"]["Output"]
    assert output == {"type": "string", "format": "uri"}


def test_a_file_goes_back_as_what_an_input_takes(client: httpx.Client) -> None:
    files = {
        "content": ("photo.png", PNG, "image/png"),
        "metadata": ("blob", b"{}", "application/json"),
    }
    answer = client.post("/v1/files", files=files)
    assert answer.status_code == 201
    body = answer.json()
    assert body["name"] == "photo.png"
    assert body["size"] == len(PNG)
    assert base64.b64decode(body["urls"]["get"].partition(",")[2]) == PNG
    assert create(client, image=body["urls"]["get"]).status_code == 201


def test_a_file_without_content_or_too_large_is_refused(client: httpx.Client) -> None:
    refusal = client.post("/v1/files", files={"file": ("a.png", PNG)})
    assert problem(refusal, 422, "invalid-parameters")["errors"][0]["field"] == "content"
    refusal = client.post("/v1/files", files={"content": ("a.png", bytes(2_100_000))})
    problem(refusal, 413, "upload-too-large")


def test_predictions_are_listed_page_by_page(client: httpx.Client) -> None:
    ids = [create(client).json()["id"] for _ in range(22)]
    first = client.get("/v1/predictions").json()
    second = client.get(first["next"]).json()
    seen = [each["id"] for each in (*first["results"], *second["results"])]
    assert seen == ids[::-1]
    assert second["next"] is None


def test_a_prediction_is_canceled_and_canceling_again_is_no_error(client: httpx.Client) -> None:
    url = create(client).json()["urls"]["cancel"]
    assert client.post(url).json()["status"] == "canceled"
    assert client.post(url).json()["status"] == "canceled"


@pytest.mark.usefixtures("failing")
def test_a_failure_says_why(client: httpx.Client) -> None:
    body = create(client, "wait=30").json()
    assert (body["status"], body["error"]) == ("failed", "The device is too small.")


def test_another_keys_prediction_is_not_there(keyed: httpx.Client, redis: Redis) -> None:
    job = create(keyed).json()
    other = Keys(redis).create("eve")[1]
    headers = {"Authorization": f"Bearer {other}"}
    for method, url in (("GET", job["urls"]["get"]), ("POST", job["urls"]["cancel"])):
        problem(httpx.request(method, url, headers=headers), 404, "job-not-found")


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"webhook_events_filter": ["start", "completed"]}, "webhook_events_filter"),
        ({"stream": True}, "stream"),
        ({"webhook": "http://example.org/"}, "webhook_url"),
        ({"webhook": 7}, "webhook_url"),
        ({"input": "photo.png"}, "input"),
    ],
)
def test_what_is_not_told_or_known_is_refused_by_name(
    client: httpx.Client, extra: dict[str, object], field: str
) -> None:
    body = {"version": VERSION, "input": {"image": URI}, **extra}
    refusal = problem(client.post("/v1/predictions", json=body), 422, "invalid-parameters")
    assert refusal["errors"][0]["field"] == field


def test_the_secret_of_webhooks_is_the_keys_own(client: httpx.Client, keyed: httpx.Client) -> None:
    assert keyed.get("/v1/webhooks/default/secret").json()["key"].startswith("whsec_")
    problem(client.get("/v1/webhooks/default/secret"), 401, "unauthorized")


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
