"""POST /upscale: which images and parameters become a job, and which are refused. POST /uploads: an
image that a client puts into S3 by a link becomes a job like any other."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest
from PIL import Image, features
from redis import Redis

from jobs.job_store import record_key
from jobs.keys import Keys
from jobs.settings import Settings
from jobs.store import BlobStore, input_key
from models.presets import PRESETS
from tests.s3_server import S3Server, environment
from tests.service.harness import FakeWorker, Leftovers, problem, serving, upload
from tests.service.pictures import animated, bomb, picture

PNG = picture("PNG")
KINDS = ["PNG", "JPEG", "WEBP", "TIFF", *(["AVIF"] if features.check("avif") else [])]


def test_an_image_goes_in_and_its_result_comes_out(
    client: httpx.Client, worker: FakeWorker, settings: Settings
) -> None:
    accepted = upload(client, PNG, scale=4, seed=7, fidelity_weight=0.25)
    assert accepted.status_code == 202
    job = accepted.json()
    assert accepted.headers["Location"] == f"/jobs/{job['id']}"
    assert int(accepted.headers["Retry-After"]) >= 1
    assert job["state"] == "queued"
    assert job["queue_position"] == 1
    assert job["seed"] == 7
    assert job["parameters"]["fidelity_weight"] == 0.25
    assert (job["input"]["width"], job["input"]["height"]) == (24, 16)
    assert BlobStore.open(settings).get(input_key(job["id"])) == PNG

    worker.start(job["id"])
    result = picture("PNG", 96, 64)
    worker.succeed(job["id"], result)

    done = client.get(accepted.headers["Location"])
    assert done.json()["state"] == "succeeded"
    assert "Retry-After" not in done.headers
    fetched = client.get(done.json()["result"]["url"])
    assert fetched.status_code == 200
    assert fetched.content == result


def test_what_is_left_out_is_the_presets_default(client: httpx.Client) -> None:
    parameters = upload(client, PNG).json()["parameters"]
    preset = PRESETS["tiny"]
    assert parameters["preset"] == "tiny"
    assert parameters["steps"] == preset.steps
    assert parameters["fidelity_weight"] == preset.fidelity_weight
    assert parameters["scale"] == 4
    assert isinstance(parameters["seed"], int)


def test_an_empty_field_counts_as_left_out(client: httpx.Client) -> None:
    """An HTML form sends its empty inputs."""
    answer = upload(client, PNG, steps="", seed="", preset=" ")
    assert answer.status_code == 202
    assert answer.json()["parameters"]["steps"] == PRESETS["tiny"].steps


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_of_the_list_is_taken(client: httpx.Client, kind: str) -> None:
    answer = upload(client, picture(kind), name="wrong.xyz")
    assert answer.status_code == 202, answer.text
    assert answer.json()["input"]["format"] == kind
    assert answer.json()["input"]["media_type"] == f"image/{kind.lower()}"


def test_a_result_may_be_asked_for_by_its_size(client: httpx.Client) -> None:
    answer = upload(client, picture("PNG", 40, 30), width=100, scale="").json()
    assert answer["parameters"]["scale"] == 2.5
    body = problem(upload(client, picture("PNG", 40, 30), width=20), 422, "invalid-parameters")
    assert body["errors"][0]["field"] == "width"
    assert "asks for 0.5 times the image of 40 x 30 pixels" in body["errors"][0]["detail"]
    problem(upload(client, PNG, width=100, scale=2), 422, "invalid-parameters")


def test_the_size_is_given_as_a_viewer_sees_it(client: httpx.Client) -> None:
    answer = upload(client, picture("JPEG", 40, 30, orientation=6)).json()
    assert (answer["input"]["width"], answer["input"]["height"]) == (30, 40)


@pytest.mark.parametrize(
    ("data", "slug"),
    [
        (b"", "image-empty"),
        (b"this is a letter, not an image", "image-format-unsupported"),
        (b"8BPS" + bytes(100), "image-format-unsupported"),
        (PNG[:20], "image-truncated"),
        *((picture(kind, 64, 64)[:-40], "image-truncated") for kind in ("PNG", "JPEG", "WEBP")),
        *((picture(kind, 64, 64)[:-400], "image-truncated") for kind in KINDS),
        (b"\xff\xd8\xff\xd9", "image-unreadable"),
        *((animated(kind), "image-animated") for kind in KINDS if kind != "JPEG"),
        (PNG.replace(b"IHDR\0\0\0\x18", b"IHDR\0\0\0\x19"), "image-unreadable"),
    ],
)
def test_a_file_that_is_no_whole_still_image_is_refused_with_422(
    client: httpx.Client, leftovers: Leftovers, data: bytes, slug: str
) -> None:
    problem(upload(client, data), 422, slug)
    assert leftovers.found() == []


def test_of_several_pages_one_is_taken_and_its_size_counts(client: httpx.Client) -> None:
    pages = [Image.new("RGB", (16, 16)), Image.new("RGB", (30, 20))]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    job = upload(client, file.getvalue(), page=2).json()
    assert (job["input"]["width"], job["input"]["height"]) == (30, 20)
    assert job["parameters"]["page"] == 2
    body = problem(upload(client, file.getvalue(), page=3), 422, "invalid-parameters")
    assert body["errors"] == [
        {"field": "page", "detail": "must be at most 2 for this TIFF file; got 3", "maximum": 2}
    ]


def test_a_bomb_of_20000_by_20000_pixels_is_refused_with_422(
    client: httpx.Client, leftovers: Leftovers, settings: Settings
) -> None:
    data = bomb(20_000, 20_000)
    assert len(data) < 100_000
    body = problem(upload(client, data), 422, "image-too-large")
    assert body["pixels"] == 400_000_000
    assert body["max_input_pixels"] == settings.max_input_pixels
    assert leftovers.found() == []


def test_a_result_with_too_many_pixels_is_refused_with_422(
    client: httpx.Client, leftovers: Leftovers
) -> None:
    body = problem(upload(client, bomb(900, 900), scale=4), 422, "output-too-large")
    assert (body["width"], body["height"]) == (3600, 3600)
    assert body["max_output_pixels"] == 4_000_000
    assert leftovers.found() == []


def test_a_result_too_long_for_its_format_is_refused_with_422(client: httpx.Client) -> None:
    strip = bomb(5000, 40)
    body = problem(upload(client, strip, output_format="webp"), 422, "output-too-large")
    assert body["max_side"] == 16_383
    assert upload(client, strip, output_format="png").status_code == 202


def test_a_strip_too_narrow_to_be_computed_is_refused_with_422(
    client: httpx.Client, leftovers: Leftovers
) -> None:
    body = problem(upload(client, bomb(1, 20_000)), 422, "output-too-large")
    assert body["max_canvas_pixels"] == 4_000_000
    assert body["pixels"] == 128 * 128 * 20_000
    assert "would be computed at 128 x 2560000" in body["detail"]
    assert leftovers.found() == []


def test_a_job_says_what_it_costs_from_the_start(client: httpx.Client) -> None:
    body = upload(client, bomb(256, 192), scale=4, steps=3, tile_overlap=32).json()
    assert body["cost"] == {
        **{"canvas_width": 1024, "canvas_height": 768, "tiles": 6, "steps": 3},
        "note": None,
    }
    assert client.get(f"/jobs/{body['id']}").json()["cost"] == body["cost"]


def test_a_small_image_that_is_computed_large_is_told_so(client: httpx.Client) -> None:
    cost = upload(client, bomb(4, 40), scale=1).json()["cost"]
    assert (cost["canvas_width"], cost["canvas_height"]) == (128, 1280)
    assert "1024 times those of its result, because its shorter side" in cost["note"]


def test_a_fidelity_weight_of_7_is_refused_with_its_range(
    client: httpx.Client, leftovers: Leftovers
) -> None:
    body = problem(upload(client, PNG, fidelity_weight=7), 422, "invalid-parameters")
    assert body["detail"] == "fidelity_weight must be between 0 and 1; got 7."
    assert body["errors"] == [
        {
            "field": "fidelity_weight",
            "detail": "must be between 0 and 1; got 7",
            "minimum": 0,
            "maximum": 1,
        }
    ]
    assert leftovers.found() == []


def test_an_unknown_preset_is_refused_with_the_known_ones(client: httpx.Client) -> None:
    body = problem(upload(client, PNG, preset="enormous"), 422, "invalid-parameters")
    assert all(name in str(body["detail"]) for name in PRESETS)
    (error,) = body["errors"]
    assert error["allowed"] == list(PRESETS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fidelity_weight", "nan"),
        ("fidelity_weight", "much"),
        ("scale", "0"),
        ("scale", "inf"),
        ("steps", "0"),
        ("steps", "1.5"),
        ("steps", "9" * 400),
        ("sampler", "euler"),
        ("eta", "2"),
        ("eta", "0.5"),
        ("start", "here"),
        ("prompt", "a cat"),
        ("prompt", "x" * 1001),
        ("negative_prompt", "blur"),
        ("guidance_scale", "0.9"),
        ("guidance_scale", "2"),
        ("color_fix", "sepia"),
        ("seed", "-1"),
        ("tile_overlap", "9"),
        ("tile_overlap", "0"),
        ("page", "0"),
        ("page", "2"),
        ("alpha", "hard"),
        ("output_format", "bmp"),
        ("priority", "high"),
        ("expires_in", "0"),
        ("expires_in", "604801"),
        ("expires_in", "soon"),
        ("webhook_url", "x" * 2001),
        ("fidelity_weigth", "0.5"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(
    client: httpx.Client, leftovers: Leftovers, field: str, value: str
) -> None:
    body = problem(upload(client, PNG, **{field: value}), 422, "invalid-parameters")
    assert [error["field"] for error in body["errors"]] == [field]
    assert leftovers.found() == []


def test_a_prompt_for_a_preset_that_reads_none_is_refused_with_the_reason(
    client: httpx.Client,
) -> None:
    body = problem(upload(client, PNG, prompt="a cat"), 422, "invalid-parameters")
    assert body["detail"] == "prompt must be left out for tiny, whose weights hold no text tower."
    assert body["errors"][0]["field"] == "prompt"


def test_a_prompt_too_long_is_refused_with_its_length_and_not_repeated(
    client: httpx.Client,
) -> None:
    body = problem(upload(client, PNG, prompt="x" * 1001), 422, "invalid-parameters")
    assert body["detail"] == "prompt must be at most 1000 characters long; got 1001."
    assert body["errors"][0]["max_length"] == 1000


def test_samplers_and_prompts_become_the_jobs_parameters(settings: Settings) -> None:
    asked: dict[str, Any] = {
        "sampler": "ddim",
        "eta": 0.5,
        "start": "noise",
        "prompt": "ein Pandabär 🐼",
        "negative_prompt": "blurred",
        "guidance_scale": 4.5,
    }
    with serving(settings.model_copy(update={"preset": "stablesr-512"})) as client:
        answer = upload(client, PNG, **asked)
        assert answer.status_code == 202, answer.text
        parameters = client.get(answer.headers["Location"]).json()["parameters"]
    assert {name: parameters[name] for name in asked} == asked


def test_priority_and_deadline_are_the_jobs_and_no_parameters(
    client: httpx.Client, redis: Redis
) -> None:
    body = upload(client, PNG, priority="low", expires_in="3600").json()
    assert not {"priority", "expires_in"} & body["parameters"].keys()
    priority, deadline, created_at = redis.hmget(
        record_key(body["id"]), "priority", "deadline", "created_at"
    )
    assert priority == b"low"
    assert float(deadline or 0) - float(created_at or 0) == pytest.approx(3600)


def test_a_job_that_waits_until_its_deadline_fails_then(client: httpx.Client) -> None:
    answer = client.post(
        "/upscale", files={"image": PNG}, data={"expires_in": "1"}, headers={"Prefer": "wait=30"}
    )
    job = answer.json()
    assert (answer.status_code, job["state"]) == (200, "failed")
    assert job["error"]["type"] == "/problems/queue-timed-out"
    created_at, ended_at = (
        datetime.fromisoformat(job[name]) for name in ("created_at", "ended_at")
    )
    assert 1 <= (ended_at - created_at).total_seconds() < 10


def test_all_wrong_fields_are_told_at_once(client: httpx.Client) -> None:
    answer = upload(client, PNG, scale=99, steps="x", sampler="y", priority="z")
    body = problem(answer, 422, "invalid-parameters")
    assert {error["field"] for error in body["errors"]} == {"scale", "steps", "sampler", "priority"}


def test_a_field_given_twice_is_refused(client: httpx.Client) -> None:
    answer = client.post("/upscale", files={"image": PNG}, data={"scale": ["2", "3"]})
    body = problem(answer, 422, "invalid-parameters")
    assert body["errors"] == [{"field": "scale", "detail": "must be given once; it comes 2 times"}]


def test_parameters_in_the_url_are_refused(client: httpx.Client) -> None:
    answer = client.post("/upscale?scale=2", files={"image": PNG})
    body = problem(answer, 422, "invalid-parameters")
    assert body["errors"][0]["field"] == "scale"


def test_the_servers_own_preset_is_the_one_that_is_meant(settings: Settings) -> None:
    with serving(settings.model_copy(update={"preset": "stablesr-turbo"})) as client:
        assert upload(client, PNG).json()["parameters"]["preset"] == "stablesr-turbo"
        assert upload(client, PNG).json()["parameters"]["steps"] == PRESETS["stablesr-turbo"].steps


def test_warnings_of_the_image_library_are_no_errors(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow has a limit of its own and warns past it; here the setting decides."""
    # The worker lifts the limit in its process, and tests of it may have run in this one.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)
    many = settings.model_copy(update={"max_input_pixels": 10**9, "max_output_pixels": 10**9})
    data = bomb(12_000, 10_000)
    with pytest.raises(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    with serving(many) as client:
        assert upload(client, data, scale=1).status_code == 202


LIMIT = 2_000_000
IMAGE = picture("PNG")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def remote(settings: Settings, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    for name, value in environment(s3.url).items():
        monkeypatch.setenv(name, value)
    url = s3.bucket("bucket") + "?links=600"
    yield Settings(redis_url=settings.redis_url, blob_url=url, max_upload_bytes=LIMIT)
    s3.clear()


@pytest.fixture
def remote_client(remote: Settings) -> Iterator[httpx.Client]:
    with serving(remote) as remote_client:
        yield remote_client


def put(remote_client: httpx.Client, content: bytes) -> str:
    """The address of an image that was put where the service said."""
    offer = remote_client.post("/uploads").raise_for_status().json()
    httpx.put(offer["put_url"], content=content, headers=offer["headers"]).raise_for_status()
    return str(offer["image_url"])


def upscale(remote_client: httpx.Client, address: str, **fields: object) -> httpx.Response:
    return remote_client.post("/upscale", json={"image_url": address, **fields})


def test_an_image_in_the_store_becomes_jobs_that_have_copies_of_it(
    remote_client: httpx.Client, remote: Settings
) -> None:
    address = put(remote_client, IMAGE)
    first, second = (
        upscale(remote_client, address, scale=n).raise_for_status().json() for n in (2, 4)
    )
    assert first["input"]["bytes"] == len(IMAGE)
    store = BlobStore.open(remote)
    assert [store.get(input_key(job["id"])) for job in (first, second)] == [IMAGE, IMAGE]


def test_what_the_link_overwrites_later_is_not_what_the_worker_reads(
    remote_client: httpx.Client, remote: Settings
) -> None:
    offer = remote_client.post("/uploads").json()
    httpx.put(offer["put_url"], content=IMAGE).raise_for_status()
    job = upscale(remote_client, offer["image_url"]).json()["id"]
    httpx.put(offer["put_url"], content=b"another").raise_for_status()
    assert BlobStore.open(remote).get(input_key(job)) == IMAGE


def test_the_offer_says_how_long_and_how_much(remote_client: httpx.Client) -> None:
    answer = remote_client.post("/uploads")
    assert answer.status_code == 201
    offer = answer.json()
    assert "X-Amz-Expires=600" in offer["put_url"]
    assert (offer["max_upload_bytes"], offer["headers"]) == (LIMIT, {})


def test_a_form_takes_the_address_too(remote_client: httpx.Client) -> None:
    fields = {"image_url": (None, put(remote_client, IMAGE)), "scale": (None, "2")}
    assert remote_client.post("/upscale", files=fields).status_code == 202


@pytest.mark.parametrize(
    ("content", "status", "slug"),
    [
        (b"", 422, "image-empty"),
        (b"no image", 422, "image-format-unsupported"),
        (IMAGE[: len(IMAGE) // 2], 422, "image-truncated"),
        (bytes(LIMIT + 1), 413, "upload-too-large"),
    ],
    ids=lambda value: len(value) if isinstance(value, bytes) else value,
)
def test_what_was_put_is_judged_as_an_upload_is(
    remote_client: httpx.Client, leftovers: Leftovers, content: bytes, status: int, slug: str
) -> None:
    problem(upscale(remote_client, put(remote_client, content)), status, slug)
    assert leftovers.found() == []


def test_an_address_that_leads_to_nothing_is_refused(remote_client: httpx.Client) -> None:
    empty = remote_client.post("/uploads").json()["image_url"]
    for address in (empty, "upload:", "upload:../inputs/a", empty + "a"):
        found = problem(upscale(remote_client, address), 422, "image-url-failed")
        assert (
            "image_url leads to no image; it must be the one that POST /uploads" in found["detail"]
        )


def test_another_key_cannot_use_the_address(remote_client: httpx.Client, redis: Redis) -> None:
    (_, ours), (_, theirs) = (Keys(redis).create(name) for name in ("Ada", "Bob"))
    remote_client.headers["X-API-Key"] = ours
    address = put(remote_client, IMAGE)
    remote_client.headers["X-API-Key"] = theirs
    problem(upscale(remote_client, address), 422, "image-url-failed")
    remote_client.headers["X-API-Key"] = ours
    assert upscale(remote_client, address).status_code == 202


def test_a_store_that_gives_no_links_takes_none(settings: Settings, remote: Settings) -> None:
    assert remote.blob_url is not None
    unlinked = remote.model_copy(update={"blob_url": remote.blob_url.partition("?")[0]})
    for other in (settings, unlinked):
        with serving(other) as remote_client:
            found = problem(remote_client.post("/uploads"), 409, "no-direct-uploads")
            assert "POST /upscale" in found["detail"]
