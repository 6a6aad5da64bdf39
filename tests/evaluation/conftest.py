"""Images with texture, and networks that take milliseconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluation.images import Pixels, read, write
from models.pipeline import StableSR
from tests.models.narrow import CONFIG, PRESET

# Guidance as narrow as the rest, for images large enough for NIQE's patches.
NARROWER = replace(
    CONFIG,
    unet=replace(CONFIG.unet, feature_width=8, modulation_width=8),
    encoder=replace(CONFIG.encoder, feature_width=8),
)
# The UNet takes tiles of half the size too.
NATIVE = replace(PRESET, native=256, min_canvas_side=256, tile=32, overlap=16)
PHOTOGRAPHS = Path(__file__).parents[1] / "photographs"


def crop(name: str, height: int, width: int) -> Pixels:
    """The middle of a photograph."""
    pixels = read(PHOTOGRAPHS / f"{name}.webp")
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


@pytest.fixture(scope="session")
def sr() -> StableSR:
    torch.manual_seed(0)
    return StableSR.load(NARROWER, NATIVE, fuse=False)


def write_originals(folder: Path) -> Path:
    """A folder with two originals of 256 x 256 pixels."""
    for name in ("petra", "kitten"):
        write(folder / f"{name}.png", crop(name, 256, 256))
    return folder


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    return write_originals(tmp_path / "originals")
