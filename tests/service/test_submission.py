"""An upload becomes a job once, however often it is sent, and only when its image can be read."""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from PIL import Image
from redis import Redis

from jobs.errors import (
    ImageAnimated,
    OutputTooLarge,
    QueueUnavailable,
    StoreUnavailable,
    UnsupportedFormat,
)
from jobs.job_store import AGENDA_KEY, record_key
from jobs.queue import JobQueue
from jobs.schema import ImageInfo
from jobs.settings import Settings
from jobs.store import BlobStore
from models.parameters import OutputFormat, UpscaleParameters
from service.submission import inspect
from tests.service.harness import FakeWorker, Leftovers, problem
from tests.service.pictures import picture
from tests.worker.image_files import file_of, gradient, png_of, ramp16, tiff_of


def inspected(data: bytes, scale: float = 2, output_format: OutputFormat = "png") -> ImageInfo:
    parameters = UpscaleParameters(scale=scale, output_format=output_format)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return inspect(file, "in.png", parameters, Settings(max_output_pixels=2**40))[0]


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


RGB = Image.fromarray(gradient(12, 8))


RGBA = Image.fromarray(gradient(12, 8, 4))


CASES: dict[str, tuple[bytes, tuple[int, int], str, int]] = {
    "16-bit png": (png_of(ramp16(4), bits=16), (21, 13), "RGBA", 16),
    "16-bit grey png": (png_of(ramp16(2), bits=16, interlaced=True), (21, 13), "LA", 16),
    "1-bit png": (file_of(RGB.convert("1")), (12, 8), "L", 1),
    "palette png": (file_of(RGB.quantize(9), transparency=2), (12, 8), "RGBA", 8),
    "cmyk jpeg": (file_of(RGB.convert("CMYK"), "JPEG"), (12, 8), "CMYK", 8),
    "turned jpeg": (file_of(RGB, "JPEG", exif=exif(6)), (8, 12), "RGB", 8),
    "turned tiff": (file_of(RGB, "TIFF", exif=exif(5)), (8, 12), "RGB", 8),
    "turned avif": (file_of(RGB, "AVIF", exif=exif(8)), (8, 12), "RGB", 8),
    "turned webp": (file_of(RGBA, "WEBP", exif=exif(7)), (8, 12), "RGBA", 8),
    "jpeg in a tiff": (file_of(RGB, "TIFF", compression="jpeg"), (12, 8), "RGB", 8),
    "fax": (file_of(RGB.convert("1"), "TIFF", compression="group4"), (12, 8), "L", 1),
    # Kinds that Pillow's own plugin does not open.
    "16-bit grey tiff with opacity": (
        tiff_of(bytes(16), 2, 2, photometric=1, bits=(16, 16), tags={338: (2,)}),
        (2, 2),
        "LA",
        16,
    ),
    "16-bit tiff in planes": (
        tiff_of(bytes(24), 2, 2, photometric=2, bits=(16,) * 3, planes=3),
        (2, 2),
        "RGB",
        16,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_image_is_taken_and_described(case: str) -> None:
    data, size, mode, depth = CASES[case]
    found = inspected(data)
    assert (found.width, found.height) == size
    assert (found.mode, found.depth, found.bytes) == (mode, depth, len(data))


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.fromarray(np.ones((4, 4), np.float32)), {}),
        (Image.new("LAB", (4, 4)), {}),
        (RGB, {"compression": "lzma"}),
    ],
)
def test_what_no_worker_can_read_is_refused_at_once(
    image: Image.Image, options: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedFormat, match="of a kind not read"):
        inspected(file_of(image, "TIFF", **options))


def test_pages_are_refused() -> None:
    with pytest.raises(ImageAnimated):
        inspected(file_of(RGB, "TIFF", save_all=True, append_images=[RGB]))


@pytest.mark.parametrize(
    ("output_format", "size"),
    [("webp", (1100, 1)), ("jpeg", (4100, 1)), ("tiff", (4096, 600))],
)
def test_a_result_that_its_format_cannot_hold_is_refused(
    output_format: OutputFormat, size: tuple[int, int]
) -> None:
    data = file_of(Image.new("1", size))
    with pytest.raises(OutputTooLarge, match=f"A {output_format} file has at most"):
        inspected(data, 16, output_format)


def test_a_strip_is_refused_for_the_canvas_that_it_needs() -> None:
    parameters = UpscaleParameters(preset="stablesr-512", scale=1)
    data = file_of(Image.new("1", (10, 2000)))
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        settings = Settings(max_output_pixels=32_000_000)
        with pytest.raises(OutputTooLarge) as caught:
            inspect(file, "in.png", parameters, settings)
        inspect(file, "in.png", parameters, Settings(max_output_pixels=52_428_800))
    assert caught.value.detail == (
        "The image of 10 x 2000 pixels would be computed at 512 x 102400 = 52428800 pixels, "
        "because its shorter side is enlarged to 512 pixels at least; at most 32000000 can be. "
        "Cut it into smaller pieces."
    )


PNG = picture("PNG")


def post(
    client: httpx.Client, key: str = "k-1", data: bytes = PNG, **fields: Any
) -> httpx.Response:
    return client.post(
        "/upscale",
        files={"image": ("photo.png", data)},
        data=fields,
        headers={"Idempotency-Key": key},
    )


def jobs(redis: Redis) -> int:
    return len(redis.keys("stablesr:job:*"))


def test_the_same_request_again_gets_the_same_job(client: httpx.Client, redis: Redis) -> None:
    first, again = post(client, scale=2), post(client, scale=2)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["ETag"] == first.headers["ETag"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert jobs(redis) == 1


def test_a_repeated_request_sees_how_the_job_is_now(
    client: httpx.Client, worker: FakeWorker
) -> None:
    job = post(client).json()["id"]
    worker.start(job)
    worker.succeed(job, PNG)
    again = post(client)
    assert (again.status_code, again.json()["state"]) == (202, "succeeded")


def test_another_key_makes_another_job(client: httpx.Client) -> None:
    assert post(client, "a").json()["id"] != post(client, "b").json()["id"]


@pytest.mark.parametrize(
    "other", [{"data": picture("PNG", 25, 16)}, {"scale": 3}, {"seed": 1, "scale": 2}]
)
def test_another_request_under_the_key_is_refused_with_422(
    client: httpx.Client, redis: Redis, leftovers: Leftovers, other: dict[str, Any]
) -> None:
    post(client, scale=2)
    before = leftovers.found()
    problem(post(client, **other), 422, "idempotency-mismatch")
    assert leftovers.found() == before


def test_fields_left_empty_make_no_difference(client: httpx.Client, redis: Redis) -> None:
    post(client, scale=2)
    assert post(client, scale=2, steps="").status_code == 202
    assert jobs(redis) == 1


def test_requests_at_the_same_moment_make_one_job(
    client: httpx.Client, redis: Redis, settings: Settings
) -> None:
    gate = threading.Barrier(8)

    def send(_: int) -> httpx.Response:
        gate.wait(10)
        return post(client)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(send, range(8)))
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert accepted
    assert len({answer.json()["id"] for answer in accepted}) == 1
    for answer in answers:
        if answer.status_code != 202:
            problem(answer, 409, "idempotency-in-progress")
    assert jobs(redis) == 1
    assert len([path for path in settings.blob_root.rglob("*") if path.is_file()]) == 1


def test_a_repetition_while_the_first_is_being_stored_is_409_with_when_to_ask_again(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    put = BlobStore.put

    def slow(store: BlobStore, key: str, data: Any) -> None:
        entered.set()
        assert go_on.wait(10)
        put(store, key, data)

    monkeypatch.setattr(BlobStore, "put", slow)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(post, client)
        assert entered.wait(10)
        body = problem(post(client), 409, "idempotency-in-progress")
        assert body["retry_after"] == 1
        problem(post(client, scale=2), 422, "idempotency-mismatch")
        go_on.set()
        job = first.result(timeout=10).json()["id"]
    assert post(client).json()["id"] == job


def test_a_request_that_failed_can_be_sent_again(
    client: httpx.Client, leftovers: Leftovers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: BlobStore, *_: object) -> None:
        raise StoreUnavailable("The disk is full.", retry_after=5)

    with monkeypatch.context() as patched:
        patched.setattr(BlobStore, "put", full)
        problem(post(client), 503, "store-unavailable")
    assert leftovers.found() == []
    assert post(client).status_code == 202


def test_a_refused_image_does_not_use_the_key_up(client: httpx.Client) -> None:
    problem(post(client, data=b"no image"), 422, "image-format-unsupported")
    assert post(client).status_code == 202


def test_a_key_whose_process_died_is_free_again_after_a_while(
    client: httpx.Client, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        # The process dies: nothing that it would do afterwards is done.
        patched.setattr("service.submission.Intake._release", lambda *_: None)
        patched.setattr("service.submission.Intake._forget", lambda *_: None)
        patched.setattr(JobQueue, "submit", lambda *_: 1 / 0)
        with structlog.testing.capture_logs():
            assert post(client).status_code == 500
    problem(post(client), 409, "idempotency-in-progress")
    [key] = redis.keys("stablesr:once:*")
    assert 50 < redis.ttl(key) <= 60
    redis.delete(key)
    assert post(client).status_code == 202


def test_an_image_without_a_job_is_due_to_be_removed(
    client: httpx.Client, settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise QueueUnavailable("Redis is away.", retry_after=5)

    monkeypatch.setattr(JobQueue, "submit", away)
    problem(post(client), 503, "queue-unavailable")
    [image] = (settings.blob_root / "inputs").iterdir()
    assert redis.zscore(AGENDA_KEY, image.name)


def test_a_claim_that_ran_out_while_storing_makes_no_second_job(
    client: httpx.Client, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = BlobStore.put

    def slow(store: BlobStore, key: str, data: Any) -> None:
        put(store, key, data)
        # The lease runs out, and another request takes the key.
        monkeypatch.setattr(BlobStore, "put", put)
        redis.delete(*redis.keys("stablesr:once:*"))
        assert post(client).status_code == 202

    monkeypatch.setattr(BlobStore, "put", slow)
    problem(post(client), 503, "queue-unavailable")
    assert jobs(redis) == 1
    assert post(client).headers["Idempotent-Replayed"] == "true"


def test_a_key_lasts_a_day(client: httpx.Client, redis: Redis) -> None:
    post(client)
    [key] = redis.keys("stablesr:once:*")
    assert 86_390 < redis.ttl(key) <= 86_400
    # The client's own word stays out of Redis.
    assert b"k-1" not in key


def test_a_job_that_is_forgotten_is_made_anew(client: httpx.Client, redis: Redis) -> None:
    first = post(client).json()["id"]
    redis.delete(record_key(first))
    again = post(client)
    assert again.status_code == 202
    assert again.json()["id"] != first


def test_a_full_queue_does_not_keep_a_client_from_its_job(
    client: httpx.Client, settings: Settings
) -> None:
    first = post(client, "first").json()["id"]
    for number in range(settings.max_queued - 1):
        assert post(client, str(number)).status_code == 202
    problem(post(client, "one-more"), 503, "queue-full")
    assert post(client, "first").json()["id"] == first
    # The refused one left its key free.
    assert client.delete(f"/jobs/{first}").status_code == 200
    assert post(client, "one-more").status_code == 202


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"a b", "ä".encode(), b"a\tb"])
def test_a_key_that_is_no_word_is_refused_with_400(client: httpx.Client, key: bytes) -> None:
    files = {"image": ("photo.png", PNG)}
    answer = client.post("/upscale", files=files, headers={b"Idempotency-Key": key})
    problem(answer, 400, "malformed-header")
