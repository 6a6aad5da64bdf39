"""POST /upscale as JSON: the form's fields with their JSON types, the image in base64."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from redis import Redis

from jobs.settings import Settings
from jobs.store import BlobStore, input_key
from service.image_source import PIECE
from service.json_body import FIELDS_BYTES, json_limit
from tests.service.harness import Leftovers, problem, upload
from tests.service.pictures import picture

PNG = picture("PNG")
IMAGE = base64.b64encode(PNG).decode()


def post(client: httpx.Client, content: str | bytes, key: str = "") -> httpx.Response:
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
    return client.post("/upscale", content=content, headers=headers)


def test_json_makes_the_same_job_as_a_form(client: httpx.Client, settings: Settings) -> None:
    fields: dict[str, Any] = {"scale": 2.5, "seed": 7, "steps": 2.0, "output_format": "webp"}
    fields |= {"fidelity_weight": 1, "priority": "low", "expires_in": None, "prompt": ""}
    answer = client.post("/upscale", json={"image": IMAGE, **fields})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert BlobStore.open(settings).get(input_key(job["id"])) == PNG
    form = upload(client, PNG, scale="2.5", seed=7, steps=2, output_format="webp")
    assert job["parameters"] == {**form.json()["parameters"], "fidelity_weight": 1.0}
    assert job["input"]["filename"] is None


def test_a_data_uri_is_taken_too(client: httpx.Client) -> None:
    for head in ("data:image/png;base64,", "DATA:;Base64,", "data:text/plain;name=a;base64,"):
        assert client.post("/upscale", json={"image": head + IMAGE}).status_code == 202


def test_json_and_a_form_are_the_same_request(client: httpx.Client, redis: Redis) -> None:
    body = {"image": IMAGE, "scale": 2, "seed": None, "quality": None}
    first = post(client, json.dumps(body), "k")
    again = client.post(
        "/upscale",
        files={"image": ("a.png", PNG)},
        data={"scale": "2"},
        headers={"Idempotency-Key": "k"},
    )
    assert first.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    problem(post(client, json.dumps({**body, "scale": 3}), "k"), 422, "idempotency-mismatch")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("scale", "4", 'must be between 1 and 16; got "4"'),
        ("scale", True, "must be between 1 and 16; got true"),
        ("scale", 99, "must be between 1 and 16; got 99"),
        ("scale", [4], "must be between 1 and 16; got [4]"),
        ("steps", 1.5, "must be a whole number between 1 and"),
        ("steps", {"a": 1}, 'got {"a": 1}'),
        ("seed", -1, "got -1"),
        ("sampler", 3, "must be one of "),
        ("sampler", "", "must be one of "),
        ("preset", ["tiny"], "must be one of "),
        ("prompt", 7, "must be at most 1000 characters long; got 7"),
        ("fidelity_weigth", 0.5, "is unknown; the fields are image, image_url, "),
        ("image", 5, "must be a string"),
        ("image", ["AAAA"], "must be a string"),
    ],
)
def test_a_wrong_value_is_refused_in_the_forms_sentences(
    client: httpx.Client, leftovers: Leftovers, field: str, value: object, said: str
) -> None:
    answer = client.post("/upscale", json={"image": IMAGE, field: value})
    body = problem(answer, 422, "invalid-parameters")
    assert [error["field"] for error in body["errors"]] == [field]
    assert said in body["errors"][0]["detail"]
    assert leftovers.found() == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes"),
        (b"[]", "must be a JSON object"),
        (b'"AAAA"', "must be a JSON object"),
        (b"{", "cannot be read as JSON"),
        (b"{} {}", "Extra data"),
        (b'{"scale": 2, "scale": 3}', "'scale' comes twice"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' comes twice"),
        (b'{"scale": NaN}', "NaN is no JSON"),
        (b'{"scale": -Infinity}', "-Infinity is no JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b'{"image": "\xff\xfe"}', "utf-8"),
        (b'\xef\xbb\xbf{"image": "AAAA"}', "cannot be read as JSON"),
        ('{"image": "AAAA"}'.encode("utf-16"), "cannot be read as JSON"),
        (b"[" * 50_000, "cannot be read as JSON"),
        (b'{"a":' * 12_000, "cannot be read as JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(
    client: httpx.Client, leftovers: Leftovers, content: bytes, said: str
) -> None:
    assert said in problem(post(client, content), 400, "malformed-json")["detail"]
    assert leftovers.found() == []


@pytest.mark.parametrize(
    "text",
    [
        IMAGE[:-1],
        IMAGE + "=",
        IMAGE[:8] + "\n" + IMAGE[8:],
        IMAGE[:8] + " " + IMAGE[8:],
        "=" + IMAGE,
        "AA==" + IMAGE,
        IMAGE.replace(IMAGE[20], "-"),
        IMAGE[:8] + "\u00e9" + IMAGE[9:],
        "no base64 at all",
        "A" * (PIECE - 4) + "AAA=" + IMAGE,
        "data:image/png," + IMAGE,
        "data:image/png;base64" + IMAGE,
        "data:" + "x" * 2000 + ";base64," + IMAGE,
    ],
)
def test_what_is_not_strictly_base64_is_refused(
    client: httpx.Client, leftovers: Leftovers, text: str
) -> None:
    body = problem(client.post("/upscale", json={"image": text}), 422, "invalid-parameters")
    assert "base64" in body["errors"][0]["detail"]
    assert leftovers.found() == []


def test_slashes_may_be_escaped_as_some_languages_do(client: httpx.Client) -> None:
    content = json.dumps({"image": "data:image/png;base64," + IMAGE}).replace("/", "\\/")
    assert post(client, content).status_code == 202


def test_an_image_must_be_named_once(client: httpx.Client) -> None:
    for body in ({}, {"image": None}, {"image": None, "image_url": None}):
        answer = client.post("/upscale", json=body)
        assert problem(answer, 422, "invalid-parameters")["errors"][0]["field"] == "image"
    for url in ("https://a.example/", ""):
        answer = client.post("/upscale", json={"image": IMAGE, "image_url": url})
        assert problem(answer, 422, "invalid-parameters")["errors"][0]["field"] == "image_url"
    problem(client.post("/upscale", json={"image_url": ""}), 422, "image-url-refused")


def test_an_image_as_large_as_a_file_may_be_is_taken_and_no_larger(
    client: httpx.Client, settings: Settings
) -> None:
    limit = settings.max_upload_bytes
    # What follows a PNG's end is not looked at.
    for extra, status in ((0, 202), (1, 413), (2, 413)):
        data = PNG + bytes(limit + extra - len(PNG))
        answer = client.post("/upscale", json={"image": base64.b64encode(data).decode()})
        assert answer.status_code == status


@pytest.mark.parametrize("streamed", [False, True])
def test_a_larger_body_is_refused_as_it_comes(
    client: httpx.Client, settings: Settings, leftovers: Leftovers, streamed: bool
) -> None:
    content = b" " * (json_limit(settings.max_upload_bytes) + 1)
    pieces = iter([content[:1_000_000], content[1_000_000:]])
    headers = {"Content-Type": "application/json"}
    answer = client.post("/upscale", content=pieces if streamed else content, headers=headers)
    body = problem(answer, 413, "upload-too-large")
    assert body["max_upload_bytes"] == len(content) - 1
    assert leftovers.found() == []


def test_the_limit_leaves_room_for_every_field() -> None:
    assert json_limit(3) == 4 + FIELDS_BYTES
    # Letters outside of ASCII may come as twelve bytes each.
    assert FIELDS_BYTES > 2 * 12 * 1000 + 2000
