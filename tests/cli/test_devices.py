"""`stablesr upscale --devices`: one image over several devices, and names that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def upscale(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cli", "upscale", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    with Image.open(path) as image:
        return np.asarray(image, np.int16)


def test_an_image_of_several_tiles_over_two_devices_is_that_of_one(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 255, (128, 140, 3), np.uint8)
    Image.fromarray(levels).save(tmp_path / "in.png")
    given = "--steps", 1, "--seed", 3, "--fidelity-weight", 0
    alone = upscale(tmp_path / "in.png", tmp_path / "alone.png", *given)
    assert alone.returncode == 0, alone.stderr
    both = upscale(tmp_path / "in.png", tmp_path / "both.png", *given, "--devices", "cpu, cpu")
    assert both.returncode == 0, both.stderr
    assert "s on cpu, cpu." in both.stdout + both.stderr
    difference = np.abs(pixels(tmp_path / "alone.png") - pixels(tmp_path / "both.png"))
    assert int(difference.max()) <= 1


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("cuda:0,cuda:0", "cuda:0 twice; each GPU can be there once"),
        ("cpu,nonsense", "'nonsense', which cannot be used here"),
    ],
)
def test_devices_that_cannot_be_used_are_named(names: str, said: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "in.png")
    ended = upscale(tmp_path / "in.png", tmp_path / "out.png", "--devices", names)
    assert ended.returncode == 2
    assert said in " ".join((ended.stdout + ended.stderr).split())
    assert not (tmp_path / "out.png").exists()
