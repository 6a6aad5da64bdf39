"""`stablesr upscale IN_DIR OUT_DIR`: which images there are, and where their results may lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from cli.errors import InputError
from tests.cli.fake_service import FakeService
from tests.cli.folders import StubModel, names, upscale


def test_two_images_with_one_result_are_refused_before_any_work(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    Image.new("RGB", (8, 6)).save(photos / "a.jpg")
    result = upscale(photos, out)
    assert result.exit_code == 3
    assert "a.jpg and a.png -> a.png" in result.stderr
    assert not out.exists()
    same = upscale(photos, out, "--format", "same")
    assert same.exit_code == 0
    assert names(out) == ["a.jpg", "a.png", "b.JPG", "sub/c.webp"]
    assert [parameters.output_format for _, parameters in model.requests] == [
        "jpeg",
        "png",
        "jpeg",
        "webp",
    ]


def test_an_own_format_that_results_cannot_have_is_a_failure(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    (photos / "d.heic").write_bytes(b"an image")
    result = upscale(photos, out, "--format", "same")
    assert result.exit_code == 9
    assert "d.heic: results cannot be .heic; --format says" in result.stderr
    assert len(names(out)) == 3


def test_results_within_the_input_are_no_inputs(photos: Path, model: type[StubModel]) -> None:
    out = photos / "upscaled"
    assert upscale(photos, out).exit_code == 0
    assert names(out) == ["a.png", "b.png", "sub/c.png"]
    assert upscale(photos, out).exit_code == 0
    assert len(model.requests) == 3


def test_results_among_the_inputs_are_refused(
    photos: Path, tmp_path: Path, model: type[StubModel]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(photos)
    for out in (photos, link, photos / "sub" / ".."):
        result = upscale(photos, out)
        assert result.exit_code == 3
        assert "would lie among the images" in " ".join(result.stderr.split())
    # Above the input is well, unless a result would come to lie in it.
    (photos / "photos").mkdir()
    Image.new("RGB", (8, 6)).save(photos / "photos" / "x.png")
    assert upscale(photos, tmp_path).exit_code == 3
    (photos / "photos" / "x.png").unlink()
    assert upscale(photos, tmp_path).exit_code == 0
    assert model.count == 1


def test_a_file_that_is_not_ours_is_replaced_only_when_told_so(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    out.mkdir()
    (out / "b.png").write_bytes(b"a painting")
    result = upscale(photos, out)
    assert result.exit_code == 3
    assert "b.png would be replaced" in result.stderr
    assert (out / "b.png").read_bytes() == b"a painting"
    assert model.requests == []
    assert upscale(photos, out, "--overwrite").exit_code == 0
    assert (out / "b.png").read_bytes() != b"a painting"


def test_without_its_sub_folders(photos: Path, out: Path, model: type[StubModel]) -> None:
    assert upscale(photos, out, "--no-recursive").exit_code == 0
    assert names(out) == ["a.png", "b.png"]


def test_an_empty_folder_is_no_error_and_makes_nothing(tmp_path: Path, out: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("x")
    result = upscale(tmp_path / "photos", out)
    assert result.exit_code == 0
    assert "There is no image in" in result.stderr
    assert not out.exists()


def test_a_file_cannot_be_the_result_of_a_folder(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(b"")
    result = upscale(photos, tmp_path / "out.png")
    assert result.exit_code == 3
    assert "must be one too" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "option",
    [["--format", "png"], ["--no-recursive"], ["--overwrite"], ["--fit"], ["--parallel", "2"]],
)
def test_what_is_for_folders_is_refused_with_a_file(
    photos: Path, tmp_path: Path, option: list[str]
) -> None:
    result = upscale(photos / "a.png", tmp_path / "out.png", *option)
    assert result.exit_code == 2
    assert "for folders" in result.stderr


def test_several_at_once_are_for_a_server(photos: Path, out: Path) -> None:
    result = upscale(photos, out, "--parallel", "2")
    assert result.exit_code == 2
    assert "--parallel is for a server" in result.stderr


def test_a_wrong_parameter_is_told_before_anything_is_made(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    assert upscale(photos, out, "--preset", "none").exit_code == 2
    assert not out.exists()


def test_what_is_left_alone_is_listed_by_its_kind(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    Image.new("RGB", (8, 6)).save(photos / "scan", "JPEG")
    Image.new("RGB", (8, 6)).save(photos / "raw.nef", "TIFF")
    (photos / "IMG_1.CR3").write_bytes(b"\0\0\0\x18ftypcrx \0\0\0\1")
    for number in range(7):
        (photos / "sub" / f"clip[{number}].mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\1")
    os.mkfifo(photos / "pipe")
    result = upscale(photos, out)
    assert result.exit_code == 0, result.output
    assert "12 other files left alone; 1 hidden." in result.stderr
    clips = ", ".join(f"sub/clip[{number}].mp4" for number in range(5))
    for line in (
        "IMG_1.CR3: a camera's raw file; develop it to TIFF or JPEG first",
        "notes.txt: no image",
        "pipe: no file",
        "raw.nef: a camera's raw file, or a TIFF file; develop it, or end its name in .tif",
        "scan: JPEG by its content; end its name as such images do",
        f"{clips} and 2 more: a video; send one of its frames",
    ):
        assert f"\n  {line}\n" in result.stderr


def test_of_many_files_that_are_left_alone_the_rest_is_a_number(
    photos: Path, out: Path, model: type[StubModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.folder.LOOKED_AT", 2)
    for number in range(4):
        (photos / f"{number}.txt").write_text("no image")
    assert "Left alone:\n  0.txt, 1.txt: no image\n  3 more\n" in upscale(photos, out).stderr


@pytest.mark.parametrize("length", [244, 255])
@pytest.mark.parametrize("how", ["local", "server"])
def test_names_may_be_as_long_as_names_can_be(
    tmp_path: Path, out: Path, model: type[StubModel], service: FakeService, how: str, length: int
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    name = f"{'x' * (length - 4)}.png"
    Image.new("RGB", (8, 6)).save(photos / name)
    result = upscale(photos, out, *(["--server", service.url] if how == "server" else []))
    assert result.exit_code == 0, result.output
    assert names(out) == [name]


def test_a_result_whose_name_would_be_too_long_is_told_before_any_work(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    (photos / "a.png").rename(photos / f"{'x' * 251}.png")
    result = upscale(photos, out, "--format", "avif")
    assert result.exit_code == 9
    assert "its result cannot have its name and .avif: File name too long" in result.stderr
    assert [name for name, _ in model.requests] == ["b.JPG", "c.webp"]


def test_names_that_are_no_text_are_kept_and_shown_as_well_as_can_be(
    photos: Path, out: Path, model: type[StubModel]
) -> None:
    name = os.fsdecode(b"caf\xe9 [b].png")
    Image.new("RGB", (8, 6)).save(photos / name)
    Image.new("RGB", (8, 6)).save(photos / "line\nbreak.png")
    model.errors = {name: InputError("broken")}
    result = upscale(photos, out)
    assert result.exit_code == 9
    assert "caf\ufffd [b].png: broken" in result.stderr
    assert "line\ufffdbreak.png ->" in result.stderr
    model.errors.clear()
    assert upscale(photos, out).exit_code == 0
    assert (out / name).exists()
    assert upscale(photos, out).exit_code == 0
    assert len(model.requests) == 6
