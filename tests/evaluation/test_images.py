"""Reading, matching and degrading the images that are compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.images import (
    BadImages,
    Degradation,
    degrade_pixels,
    match_images,
    pixels_of,
    read,
    tensor_of,
    write,
    write_degraded,
)


def square(side: int, seed: int = 0) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def folders(tmp_path: Path, lr: dict[str, int], hr: dict[str, int]) -> tuple[Path, Path]:
    for folder, files in (("lr", lr), ("hr", hr)):
        for name, side in files.items():
            write(tmp_path / folder / name, square(side))
    return tmp_path / "lr", tmp_path / "hr"


def test_inputs_and_originals_are_matched_by_their_names_whatever_their_suffixes(
    tmp_path: Path,
) -> None:
    lr, hr = folders(tmp_path, {"a.png": 8, "b.png": 16}, {"b.png": 64})
    Image.fromarray(square(32)).save(hr / "a.bmp")
    pairs = match_images(lr, hr)
    assert [(p.name, p.lr.name, p.hr.name, p.scale) for p in pairs] == [
        ("a", "a.png", "a.bmp", 4),
        ("b", "b.png", "b.png", 4),
    ]


@pytest.mark.parametrize(
    ("lr", "hr", "sentence"),
    [
        ({"a.png": 8, "b.png": 8}, {"a.png": 32}, "hr has no image called b"),
        ({"a.png": 8}, {"a.png": 32, "c.png": 32}, "lr has no image called c"),
        ({"a.png": 8}, {"a.png": 30}, "8 x 8 pixels and .* 30 x 30"),
        ({"a.png": 8}, {"a.png": 4}, "whole number of times larger"),
        ({"a.png": 8, "b.png": 8}, {"a.png": 32, "b.png": 16}, "a has to be upscaled by 4 and b"),
    ],
)
def test_images_that_do_not_belong_together_are_refused_by_name(
    tmp_path: Path, lr: dict[str, int], hr: dict[str, int], sentence: str
) -> None:
    with pytest.raises(BadImages, match=sentence):
        match_images(*folders(tmp_path, lr, hr))


def test_an_empty_folder_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    lr, hr = folders(tmp_path, {"a.png": 8}, {"a.png": 32})
    with pytest.raises(BadImages, match="There is no folder"):
        match_images(lr, tmp_path / "absent")
    shutil.rmtree(hr)
    hr.mkdir()
    with pytest.raises(BadImages, match="holds no image"):
        match_images(lr, hr)


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "CMYK", "LA"])
def test_an_image_that_is_no_8_bit_rgb_is_refused_with_its_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.tif"
    Image.new(mode, (8, 8)).save(path)
    with pytest.raises(BadImages, match=f"has mode {mode}"):
        read(path)


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"no image")
    with pytest.raises(BadImages, match="is not an image"):
        read(path)


def test_pixels_survive_the_way_through_tensors_and_files(tmp_path: Path) -> None:
    pixels = square(16)
    np.testing.assert_array_equal(pixels_of(tensor_of(pixels)), pixels)
    write(tmp_path / "x.png", pixels)
    np.testing.assert_array_equal(read(tmp_path / "x.png"), pixels)
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("kind", ["paper", "mild", "bicubic"])
def test_an_image_gets_the_same_input_whatever_else_is_degraded(
    originals: Path, tmp_path: Path, kind: Degradation
) -> None:
    together = write_degraded(originals, tmp_path / "both", 4, kind, seed=3)
    (originals / "kitten.png").unlink()
    torch.rand(7)  # the global generator has no say
    [alone] = write_degraded(originals, tmp_path / "one", 4, kind, seed=3)
    same = next(p for p in together if p.name == alone.name)
    np.testing.assert_array_equal(read(same.lr), read(alone.lr))
    assert read(alone.lr).shape == (64, 64, 3)
    if kind != "bicubic":
        other = degrade_pixels(read(alone.hr), alone.name, 4, kind, seed=4)
        assert not np.array_equal(other, read(alone.lr))


def test_sides_that_are_no_multiples_of_the_scale_are_refused() -> None:
    with pytest.raises(BadImages, match="odd has 30 x 30 pixels"):
        degrade_pixels(square(30), "odd", 4, "bicubic", 0)
