"""OpenAI's image edits: a form in, base64 out."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from tests.service.compat.conftest import PNG, RESULT


def edit(client: httpx.Client, name: str = "image", **fields: Any) -> httpx.Response:
    data = {"prompt": "", **fields}
    files = {name: ("photo.png", PNG, "image/png")}
    return client.post("/v1/images/edits", data=data, files=files)


@pytest.mark.usefixtures("working")
@pytest.mark.parametrize("name", ["image", "image[]"])
def test_an_image_comes_back_in_base64(client: httpx.Client, name: str) -> None:
    answer = edit(client, name, model="tiny", n=1, seed=3, user="ada")
    assert answer.status_code == 200
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]) == RESULT
    [job] = client.get("/jobs").json()["jobs"]
    assert (job["seed"], job["parameters"]["scale"]) == (3, 4)
    assert job["input"]["filename"] == "photo.png"


@pytest.mark.usefixtures("working")
def test_a_size_is_that_of_the_result(client: httpx.Client) -> None:
    fields: dict[str, Any] = {"size": "48x32", "output_format": "webp", "output_compression": 80}
    assert edit(client, **fields).status_code == 200
    parameters = client.get("/jobs").json()["jobs"][0]["parameters"]
    assert (parameters["scale"], parameters["quality"]) == (2, 80)


@pytest.mark.usefixtures("working")
def test_an_address_is_given_where_it_is_asked_for(client: httpx.Client) -> None:
    answer = edit(client, response_format="url").json()
    assert httpx.get(answer["data"][0]["url"]).content == RESULT


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"size": "1024x1024"}, 422, "size"),
        ({"size": "large"}, 422, "size"),
        ({"n": 2}, 422, "n"),
        ({"model": "gpt-image-1"}, 404, None),
        ({"prompt": "a cat"}, 422, "prompt"),
        ({"output_compression": 80}, 422, "output_compression"),
        ({"background": "transparent"}, 422, "background"),
        ({"quality": "high"}, 422, "quality"),
        ({"input_fidelity": "high"}, 422, "input_fidelity"),
    ],
)
def test_what_cannot_be_done_is_refused_in_the_protocols_form(
    client: httpx.Client, fields: dict[str, Any], status: int, param: str | None
) -> None:
    answer = edit(client, **fields)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_a_mask_and_a_second_image_are_refused_by_name(client: httpx.Client) -> None:
    file = ("photo.png", PNG, "image/png")
    for files in ([("image", file), ("mask", file)], [("image[]", file), ("image[]", file)]):
        answer = client.post("/v1/images/edits", data={"prompt": ""}, files=files)
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == files[1][0].removesuffix("[]")


@pytest.mark.usefixtures("failing")
def test_a_failure_is_an_error_that_is_not_tried_again(client: httpx.Client) -> None:
    answer = edit(client)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "job-failed"
