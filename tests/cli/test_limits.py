"""`stablesr upscale IN_DIR OUT_DIR`: images over a limit, and what `--fit` makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.fake_service import FakeService
from tests.cli.folders import StubModel, names, upscale

LIMITS = {"max_upload_bytes": 3000, "max_input_pixels": 300_000, "max_output_pixels": 1_000_000}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images that meet each limit, and one that meets none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (200, 100)).save(folder / "small.png")
    Image.new("RGB", (500, 400)).save(folder / "large.png")
    Image.new("RGB", (600, 501)).save(folder / "larger.png")
    Image.effect_noise((60, 60), 50).convert("RGB").save(folder / "heavy.png")
    return folder


def begun(out: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (out / ".stablesr.jsonl").read_text().splitlines()]
    return {line["input"]: line for line in lines if line["state"] == "begun"}


def test_what_is_over_a_limit_of_the_server_is_told_and_not_uploaded(
    mixed: Path, out: Path, service: FakeService
) -> None:
    service.limits = LIMITS
    size = (mixed / "heavy.png").stat().st_size
    assert size > 3000
    result = upscale(mixed, out, "--server", service.url)
    assert result.exit_code == 9
    assert service.uploads == ["small.png"]
    for words in (
        f"heavy.png failed: It has {size} bytes; at most 3000 are taken.",
        "large.png failed: At scale 4 the result would have 2000 x 1600 = 3200000 pixels; at most "
        "1000000 are made.",
        "larger.png failed: The image has 600 x 501 = 300600 pixels; at most 300000 are taken.",
    ):
        assert words in result.stderr
    assert result.stderr.index("larger.png failed") < result.stderr.index("small.png ->")
    assert result.stderr.endswith("--fit makes them as large as is allowed.\n")


def test_an_image_that_fits_smaller_is_made_so_and_is_done_then(
    mixed: Path, out: Path, service: FakeService
) -> None:
    service.limits = LIMITS
    options = ("--server", service.url, "--fit")
    result = upscale(mixed, out, *options)
    assert result.exit_code == 9
    assert names(out) == ["large.png", "small.png"]
    scales = {job.name: job.fields.get("scale") for job in service.jobs.values()}
    assert scales == {"large.png": "2.23", "small.png": None}
    assert "large.png is made at scale 2.23 instead of 4" in result.stderr
    assert "--fit makes" not in result.stderr
    assert {name: line.get("scale") for name, line in begun(out).items()} == {
        "large.png": 2.23,
        "small.png": None,
    }
    assert "2 images to do, 2 done before" in upscale(mixed, out, *options).stderr
    # As large as was asked for it is not there.
    again = upscale(mixed, out, "--server", service.url)
    assert "3 images to do, 1 done before" in again.stderr
    assert "large.png failed: At scale 4" in again.stderr
    assert len(service.uploads) == 2


def test_nothing_is_made_smaller_than_it_is(mixed: Path, out: Path, service: FakeService) -> None:
    service.limits = {"max_output_pixels": 150_000}
    result = upscale(mixed, out, "--server", service.url, "--fit")
    assert result.exit_code == 9
    assert "large.png failed: At scale 1 the result would have 500 x 400 = 200000" in result.stderr
    assert names(out) == ["heavy.png", "small.png"]


@pytest.mark.parametrize("option", [("--width", "2000"), ("--megapixels", "3.2")])
def test_a_size_that_was_asked_for_is_lowered_too(
    mixed: Path, out: Path, service: FakeService, option: tuple[str, str]
) -> None:
    service.limits = {"max_output_pixels": 1_000_000}
    for name in ("small.png", "heavy.png", "larger.png"):
        (mixed / name).unlink()
    assert upscale(mixed, out, "--server", service.url, "--fit", *option).exit_code == 0
    [job] = service.jobs.values()
    assert (job.fields["scale"], option[0][2:] in job.fields) == ("2.23", False)


def test_a_size_that_cannot_be_is_told_of_its_image_alone(
    mixed: Path, out: Path, service: FakeService
) -> None:
    result = upscale(mixed, out, "--server", service.url, "--width", "550", "--overwrite")
    assert result.exit_code == 9
    assert "larger.png failed: width asks for 0.917 times the image" in result.stderr
    assert names(out) == ["heavy.png", "large.png", "small.png"]


def test_photographs_of_a_phone_are_judged_here_before_a_model_is_loaded(
    tmp_path: Path, out: Path, model: type[StubModel]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("IMG_1.jpg", "IMG_2.JPG"):
        Image.new("RGB", (4032, 3024), "teal").save(photos / name, exif=turned)
    result = upscale(photos, out)
    assert result.exit_code == 9
    assert model.count == 0
    assert result.stderr.count("the result would have 12096 x 16128 = 195084288 pixels") == 2
    assert "2 images failed.\n--fit makes them as large as is allowed." in result.stderr
    assert upscale(photos, out, "--fit").exit_code == 0
    # The largest canvas has 2^27 pixels.
    assert {parameters.scale for _, parameters in model.requests} == {3.31}


def test_the_longest_side_of_a_format_is_a_limit(
    tmp_path: Path, out: Path, model: type[StubModel]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (5000, 200)).save(photos / "a.png")
    result = upscale(photos, out, "--format", "webp")
    assert "A webp file has at most 16383 pixels a side" in result.stderr
    assert upscale(photos, out, "--format", "webp", "--fit").exit_code == 0
    assert [parameters.scale for _, parameters in model.requests] == [3.27]


def test_a_file_that_cannot_be_read_is_left_to_the_server(
    mixed: Path, out: Path, service: FakeService
) -> None:
    service.limits = LIMITS
    (mixed / "small.png").write_bytes(b"a format of next year")
    upscale(mixed, out, "--server", service.url)
    assert service.uploads == ["small.png"]


def test_of_a_scan_the_page_that_is_asked_for_is_judged(
    tmp_path: Path, out: Path, service: FakeService
) -> None:
    service.limits = LIMITS | {"max_upload_bytes": 10_000_000}
    folder = tmp_path / "scans"
    folder.mkdir()
    pages = [Image.new("RGB", (20, 10)), Image.new("RGB", (500, 400))]
    pages[0].save(folder / "scan.tif", save_all=True, append_images=pages[1:])
    result = upscale(folder, out, "--server", service.url, "--page", "2")
    assert "At scale 4 the result would have 2000 x 1600" in result.stderr
    assert service.uploads == []
