"""`stablesr upscale --seeds N`, here and through a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cli.main import app
from cli.options import UpscaleOptions
from tests.cli.fake_service import FakeService, result_of
from tests.scripted_server import Script

runner = CliRunner()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.radial_gradient("L").resize((12, 9)).convert("RGB").save(path)
    return path


@pytest.fixture
def service(script: Script) -> FakeService:
    return FakeService(script)


def upscale(picture: Path, *options: str) -> Result:
    target = picture.parent / "out.png"
    return runner.invoke(app, ["upscale", str(picture), str(target), *options])


def results(picture: Path) -> list[str]:
    return sorted(path.name for path in picture.parent.iterdir() if path != picture)


def test_seeds_follow_each_other_and_begin_again_after_the_last() -> None:
    options = UpscaleOptions(Path("in.png"), Path("a/out.webp"), seeds=3)
    targets = options.targets(2**32 - 2)
    assert [(seed, str(path)) for seed, path in targets.items()] == [
        (4294967294, "a/out-4294967294.webp"),
        (4294967295, "a/out-4294967295.webp"),
        (0, "a/out-0.webp"),
    ]


def test_each_seed_is_a_job_of_its_own_on_a_server(picture: Path, service: FakeService) -> None:
    ended = upscale(picture, "--server", service.url, "--seeds", "3", "--seed", "8", "--scale", "2")
    assert ended.exit_code == 0, ended.output
    assert results(picture) == ["out-10.png", "out-8.png", "out-9.png"]
    for seed in ("8", "9", "10"):
        asked = {"seed": seed, "scale": "2.0", "output_format": "png"}
        expected = result_of(picture.read_bytes(), asked)
        assert (picture.parent / f"out-{seed}.png").read_bytes() == expected


def test_a_failed_job_ends_it_and_the_others_are_canceled(
    picture: Path, service: FakeService
) -> None:
    service.fail = {"in.png"}
    ended = upscale(picture, "--server", service.url, "--seeds", "3")
    assert ended.exit_code == 6
    assert "The worker broke" in ended.stderr
    assert service.states()["in.png"][1:] == ["canceled", "canceled"]
    assert results(picture) == []


def test_here_each_file_is_what_its_seed_gives_alone(picture: Path) -> None:
    # One step of the embedded weights draws no noise.
    few = ("--steps", "3", "--fidelity-weight", "0")
    ended = upscale(picture, "--seeds", "2", "--seed", "5", *few)
    assert ended.exit_code == 0, ended.output
    assert results(picture) == ["out-5.png", "out-6.png"]
    alone = upscale(picture, "--seed", "6", *few)
    assert alone.exit_code == 0, alone.output
    first, second, single = (
        np.asarray(Image.open(picture.parent / name), np.int16)
        for name in ("out-5.png", "out-6.png", "out.png")
    )
    assert np.abs(second - single).max() <= 1
    assert np.abs(first - second).max() > 1


def test_a_folder_has_no_seeds(picture: Path) -> None:
    arguments = ["upscale", str(picture.parent), str(picture.parent / "out"), "--seeds", "2"]
    ended = runner.invoke(app, arguments)
    assert ended.exit_code == 2
    assert "--seeds is for one image" in ended.stderr
