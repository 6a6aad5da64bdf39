"""`stablesr up` and `stablesr demo` whole: real Redis, worker, service and weights."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tests.cli.up import STABLESR, up

# Whole processes that import torch; on a busy machine with two cores that takes its time.
pytestmark = pytest.mark.timeout(600)

OPTIONS = ("--steps", "2", "--seed", "3", "--scale", "2", "--fidelity-weight", "0")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("picture") / "in.png"
    Image.linear_gradient("L").resize((48, 32)).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with up(tmp_path_factory.mktemp("data")) as url:
        yield url


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*STABLESR, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def test_the_same_seed_gives_the_same_image_with_and_without_a_server(
    server: str, picture: Path, tmp_path: Path
) -> None:
    through = run("upscale", picture, tmp_path / "through.png", "--server", server, *OPTIONS)
    assert through.returncode == 0, through.stderr
    alone = run("upscale", picture, tmp_path / "alone.png", *OPTIONS)
    assert alone.returncode == 0, alone.stderr
    with Image.open(tmp_path / "alone.png") as one, Image.open(tmp_path / "through.png") as other:
        assert one.size == (96, 64)
        # Up to the rounding of sums, whose order may depend on the number of threads.
        assert max(ImageChops.difference(one, other).tobytes()) <= 2


def test_a_refusal_of_the_real_service_reaches_the_person(
    server: str, picture: Path, tmp_path: Path
) -> None:
    refused = run("upscale", picture, tmp_path / "x.png", "--server", server, "--preset", "big")
    assert refused.returncode == 5
    assert "big" in refused.stderr
    assert "tiny" in refused.stderr


def test_a_folder_through_the_real_service_and_what_it_did_counts_without_one(
    server: str, picture: Path, tmp_path: Path
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "sub").mkdir(parents=True)
    (photos / "sub" / "b.png").write_bytes(picture.read_bytes())
    (photos / "cut.png").write_bytes(picture.read_bytes()[:-40])
    through = run("upscale", photos, out, "--server", server, *OPTIONS)
    assert through.returncode == 9, through.stderr
    assert "1 of 2 images done, 1 failed; preset tiny, seed 3" in through.stderr
    assert re.search(r"Error: 1 image failed:\n  cut\.png: ", through.stderr)
    with Image.open(out / "sub" / "b.png") as image:
        assert image.size == (96, 64)
    (photos / "cut.png").unlink()
    alone = run("upscale", photos, out, *OPTIONS)
    assert alone.returncode == 0, alone.stderr
    assert "0 images to do, 1 done before" in alone.stderr


def test_the_demo_writes_both_pictures_and_ends_with_0(picture: Path, tmp_path: Path) -> None:
    shown = run("demo", picture, "--out", tmp_path)
    assert shown.returncode == 0, shown.stderr
    with Image.open(tmp_path / "upscaled.png") as image:
        assert image.size == (192, 128)
    with Image.open(tmp_path / "side-by-side.png") as image:
        assert image.width > 2 * 192
    assert re.search(r"job: denoise\W+\d+\.\d\d", shown.stderr)
