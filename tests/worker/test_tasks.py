"""The task itself: what becomes of an upload, and what of it is held in memory and on disk. A store
that is away is waited for; one that fails for a single blob fails the attempt."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from structlog.testing import capture_logs
from torch import Tensor

from jobs.errors import BlobNotFound, StoreUnavailable
from jobs.schema import JobState
from jobs.store import input_key, result_key
from tests.worker.double import ERROR, Counting
from tests.worker.image_files import file_of
from tests.worker.in_process import failure, serving, tiles, try_job
from tests.worker.processes import House, png, wait_for
from worker.attempt import Process


def test_a_result_that_an_earlier_attempt_stored_is_not_computed_again(
    house: House, process: Process
) -> None:
    job_id = house.submit()
    process.records.start(job_id, "lost")
    process.records.requeue(job_id)
    # Nor decoded: what was stored is whole, and nothing that could be decoded is here.
    stored = bytes(range(256)) * 5000
    house.store.put(result_key(job_id), stored)
    try_job(process, job_id)
    job = house.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    assert (job.result.width, job.result.height) == (20, 12)
    assert job.result.bytes == len(stored)
    assert job.result.sha256 == hashlib.sha256(stored).hexdigest()
    assert tiles(process) == 0


def test_an_attempt_after_the_end_changes_nothing(house: House, process: Process) -> None:
    job_id = house.submit()
    try_job(process, job_id)
    before = house.job(job_id)
    before_that = tiles(process)
    assert not try_job(process, job_id)
    assert house.job(job_id) == before
    assert tiles(process) == before_that


def test_two_attempts_give_the_same_bytes(house: House, process: Process) -> None:
    files = []
    for _ in range(2):
        job_id = house.submit(seed=77)
        try_job(process, job_id)
        files.append(house.store.get(result_key(job_id)))
    assert files[0] == files[1]


def test_transparency_comes_out_enlarged(house: House, process: Process) -> None:
    values = np.full((8, 8, 4), 200, dtype=np.uint8)
    values[:, 4:, 3] = 0
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    job_id = house.submit(file.getvalue(), scale=4.0)
    try_job(process, job_id)
    with Image.open(io.BytesIO(house.store.get(result_key(job_id)))) as image:
        assert image.mode == "RGBA"
        assert image.size == (32, 32)
        alpha = np.asarray(image.getchannel("A"))
    assert (alpha[:, :8] > 190).all()
    assert (alpha[:, 24:] < 10).all()


def test_binary_opacity_and_the_page_are_those_that_were_asked_for(
    house: House, process: Process
) -> None:
    values = np.full((8, 6, 4), 255, dtype=np.uint8)
    values[:, 3:, 3] = 0
    pages = [Image.new("RGB", (20, 10)), Image.fromarray(values)]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    job_id = house.submit(file.getvalue(), scale=4.0, page=2, alpha="binary")
    try_job(process, job_id)
    with Image.open(io.BytesIO(house.store.get(result_key(job_id)))) as image:
        assert image.size == (24, 32)
        assert {level for _, level in image.getchannel("A").getcolors() or ()} == {0, 255}


@pytest.mark.parametrize(
    ("format", "media_type"),
    [("png", "image/png"), ("webp", "image/webp"), ("jpeg", "image/jpeg")],
)
def test_the_result_is_of_the_format_that_was_asked_for(
    house: House, process: Process, format: str, media_type: str
) -> None:
    job_id = house.submit(output_format=format)
    try_job(process, job_id)
    result = house.job(job_id).result
    assert result is not None
    assert result.media_type == media_type
    with Image.open(io.BytesIO(house.store.get(result.key))) as image:
        assert image.format == format.upper()


def test_a_job_keeps_metadata_where_that_is_asked_for(house: House, process: Process) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "A Name"
    source = file_of(Image.new("RGB", (10, 6)), "WEBP", exif=exif, xmp=b"no XML")
    artists = {}
    with capture_logs() as logs:
        for choice in ("strip", "keep"):
            job_id = house.submit(source, metadata=choice, seed=5)
            try_job(process, job_id)
            with Image.open(io.BytesIO(house.store.get(result_key(job_id)))) as image:
                artists[choice] = image.getexif().get(ExifTags.Base.Artist)
                assert ('seed="5"' in str(image.info)) == (choice == "keep")
    assert artists == {"strip": None, "keep": "A Name"}
    # Of the two jobs, the one that looked at it.
    assert [log["what"] for log in logs if log["event"] == "metadata dropped"] == ["xmp"]
    broken = process.metrics.registry.get_sample_value("stablesr_broken_metadata_total")
    assert broken == 1


def test_a_result_of_too_many_pixels_is_refused_before_the_network_sees_it(house: House) -> None:
    with serving(house, max_output_pixels=200) as process:
        job_id = house.submit(scale=2.0)
        try_job(process, job_id)
        assert tiles(process) == 0
    assert failure(house, job_id) == "output-too-large"


def test_a_canvas_of_too_many_pixels_is_refused_as_the_service_does(house: House) -> None:
    with serving(house, max_output_pixels=128 * 12_800 - 1) as process:
        job_id = house.submit(png(10, 1000), scale=1.0)
        try_job(process, job_id)
        assert tiles(process) == 0
    assert failure(house, job_id) == "output-too-large"


def test_a_webp_that_no_webp_can_hold_is_refused(house: House, process: Process) -> None:
    job_id = house.submit(png(2000, 1), scale=16.0, output_format="webp")
    try_job(process, job_id)
    assert failure(house, job_id) == "output-too-large"


def test_an_image_larger_than_its_header_said_to_the_service_is_refused(house: House) -> None:
    with serving(house, max_input_pixels=50) as process:
        job_id = house.submit(png(10, 6))
        try_job(process, job_id)
    assert failure(house, job_id) == "image-too-large"


def test_an_upload_that_is_gone_fails_the_job_in_its_last_attempt(
    house: House, process: Process
) -> None:
    job_id = house.submit()
    house.store.delete(input_key(job_id))
    for is_last in (False, True):
        with pytest.raises(BlobNotFound):
            try_job(process, job_id, last=is_last)
    assert failure(house, job_id) == "blob-not-found"


def test_a_result_is_written_from_its_rows_and_what_was_held_is_freed_before(house: House) -> None:
    model = Counting()
    with serving(house, model) as process:
        job_id = house.submit(scale=2.0)
        with capture_logs() as lines:
            try_job(process, job_id)
    assert house.job(job_id).state is JobState.SUCCEEDED
    assert (model.count, model.count_when_written) == (0, 0)
    with Image.open(io.BytesIO(house.store.get(result_key(job_id)))) as image:
        assert image.size == (20, 12)
    [line] = [line for line in lines if line["event"] == "job planned"]
    assert (line["keep"], line["rows"], line["job"]) == ("disk", 2, job_id)


def test_a_job_that_fails_frees_what_it_held(house: House) -> None:
    model = Counting()
    with serving(house, model) as process:
        job_id = house.submit(seed=ERROR)
        try_job(process, job_id)
    assert failure(house, job_id) == "internal-error"
    assert model.count == 0


@pytest.mark.parametrize("format", ["png", "webp"])
def test_results_in_the_making_lie_in_the_temporary_folder_without_a_name(
    format: str, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that nothing is left of one whose worker is killed."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    seen: list[str] = []

    class Looking(Counting):
        def _strips(self, whole: Tensor) -> Iterator[Tensor]:
            links = [
                path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()
            ]
            seen.extend(str(link) for link in links if link.is_relative_to(scratch))
            assert list(scratch.iterdir()) == []
            yield from super()._strips(whole)

    with serving(house, Looking()) as process:
        job_id = house.submit(output_format=format)
        try_job(process, job_id)
    assert house.queue.get(job_id).state == "succeeded"
    assert seen


def test_a_result_is_stored_where_open_files_have_no_path(
    house: House, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.tasks.OPEN_FILES", tmp_path / "missing")
    try_job(process, job_id := house.submit())
    assert house.queue.get(job_id).state == "succeeded"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.tasks.FIRST_PAUSE_S", 0.05)


@contextmanager
def waiting(
    house: House, process: Process, job_id: str, folder: str = "results"
) -> Iterator[Future[bool]]:
    """An attempt that waits because no blob can be read or written in a folder of the store, until
    the block ends."""
    path = house.settings.blob_root / folder
    path.mkdir(exist_ok=True)
    with ThreadPoolExecutor(1) as pool:
        aside = path.rename(path.with_name("aside"))
        path.touch()
        try:
            attempt = pool.submit(try_job, process, job_id)
            wait_for(lambda: len(process.awaiting_store) == 1, "the job waits")
            yield attempt
        finally:
            path.unlink()
            aside.rename(path)


@pytest.mark.parametrize("folder", ["inputs", "results"])
def test_a_job_waits_for_its_store_with_what_it_has_computed(
    house: House, process: Process, folder: str
) -> None:
    try_job(process, house.submit())
    count = tiles(process)
    assert count is not None
    job_id = house.submit()
    with waiting(house, process, job_id, folder):
        assert house.job(job_id).state is JobState.PROCESSING
    job = house.job(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert tiles(process) == 2 * count
    registry = process.metrics.registry
    assert registry.get_sample_value("stablesr_store_outages_total") == 1
    assert not process.awaiting_store


def test_the_time_of_an_outage_counts_for_no_limit(house: House) -> None:
    with serving(house, job_timeout_s=1) as process:
        job_id = house.submit()
        with waiting(house, process, job_id, "inputs"):
            end = time.monotonic() + 1.1
            wait_for(lambda: time.monotonic() > end, "the limit is over")
            assert process.watchdog.stall() is None
        job = house.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.timings is not None
    assert sum(job.timings.model_dump(exclude={"queue", "total"}).values()) < 1


def test_a_job_that_waits_for_its_store_can_be_canceled(house: House, process: Process) -> None:
    job_id = house.submit()
    with waiting(house, process, job_id) as attempt:
        house.queue.cancel(job_id)
        assert attempt.result(10) is False
    assert house.job(job_id).state is JobState.CANCELED


def test_a_job_that_waits_for_its_store_goes_back_when_the_process_leaves(
    house: House, process: Process
) -> None:
    job_id = house.submit()
    with waiting(house, process, job_id) as attempt:
        process.leave()
        assert attempt.result(10) is True
    assert house.job(job_id).state is JobState.QUEUED


def test_a_store_that_fails_for_one_blob_alone_fails_the_attempt_at_its_second_failure(
    house: House, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    put = process.store.put

    def broken(key: str, data: Any, fields: Any = None) -> None:
        if key == result_key(job_id):
            tries.append(key)
            raise StoreUnavailable("/srv/secret is full.")
        put(key, data, fields)

    job_id = house.submit()
    monkeypatch.setattr(process.store, "put", broken)
    with pytest.raises(StoreUnavailable):
        try_job(process, job_id, last=True)
    assert len(tries) == 2
    assert failure(house, job_id) == "store-unavailable"
    error = house.job(job_id).error
    assert error is not None
    assert "secret" not in error.detail
    assert not list((house.settings.blob_root / "results").iterdir())
