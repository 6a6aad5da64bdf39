"""The set that results are judged on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.training.judging import main

KEPT = Path(__file__).parents[2] / "photographs"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "held-out"
    folder.mkdir()
    for name in ("petra", "kitten"):
        with Image.open(KEPT / f"{name}.webp") as opened:
            opened.crop((0, 0, 128, 128)).save(folder / f"{name}.png")
    return folder


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(path) as opened:
        return np.array(opened)


def test_photographs_are_kept_and_degraded_alike_every_time(
    photographs: Path, tmp_path: Path
) -> None:
    assert main([str(photographs), str(tmp_path / "a")]) == 0
    (photographs / "kitten.png").unlink()
    assert main([str(photographs), str(tmp_path / "b")]) == 0
    assert main([str(photographs), str(tmp_path / "c"), "--seed", "1"]) == 0
    a, b, c = (pixels(tmp_path / run / "lr" / "petra.png") for run in "abc")
    assert a.shape == (32, 32, 3)
    assert (a == b).all()
    assert (a != c).any()
    assert (pixels(tmp_path / "a" / "hr" / "petra.png") == pixels(photographs / "petra.png")).all()


def test_an_empty_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert f"no photograph in {tmp_path}" in capsys.readouterr().err
