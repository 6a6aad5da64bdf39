"""What a lattice looks like, and that the embedded weights have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.lattice import lattice, phase
from evaluation.methods import OursAtWeights
from evaluation.pictures import Pixels, degraded, pixels_of, read, tensor_of
from models.options import Options
from models.pipeline import StableSR

PHOTOGRAPH = Path(__file__).parents[1] / "photographs" / "red_panda.webp"


@pytest.fixture(scope="module")
def photograph() -> Pixels:
    return read(PHOTOGRAPH)


def with_pattern(picture: Pixels, cell: np.ndarray) -> Pixels:
    side = len(cell)
    tiles = (picture.shape[0] // side, picture.shape[1] // side)
    pattern = np.tile(cell, tiles)[..., None]
    made: Pixels = (picture + pattern).round().clip(0, 255).astype(np.uint8)
    return made


def test_a_photograph_has_no_lattice(photograph: Pixels) -> None:
    assert lattice(photograph) < 1.5
    assert phase(photograph) < 0.06


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_pattern_of_two_grey_levels_that_repeats_is_seen(photograph: Pixels, period: int) -> None:
    cell = np.zeros((period, period))
    cell[:, 0] = 4.0
    assert lattice(with_pattern(photograph, cell)) > lattice(photograph) + 3


def test_rows_count_as_columns_do(photograph: Pixels) -> None:
    cell = np.zeros((4, 4))
    cell[:, 0] = 6.0
    patterned = with_pattern(photograph, cell)
    turned = np.ascontiguousarray(np.rot90(patterned))
    assert lattice(turned) == pytest.approx(lattice(patterned), abs=0.5)


def test_a_period_that_no_decoder_has_is_no_lattice(photograph: Pixels) -> None:
    cell = np.zeros((512, 512))
    cell[:, ::7] = 4.0
    assert lattice(with_pattern(photograph, cell)) < 3


def test_phases_tell_what_a_decoder_adds_at_one_place_of_every_cell(photograph: Pixels) -> None:
    cell = np.zeros((4, 4))
    cell[1, 2] = 2.0
    assert phase(with_pattern(photograph, cell)) > phase(photograph) + 0.1


def test_a_flat_picture_has_neither() -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    assert lattice(flat) == 0
    assert phase(flat) == 0


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_embedded_weights_leave_no_lattice(weight: float) -> None:
    """Version 3 left lines of 5 dB at w = 0."""
    sr = StableSR.from_preset("tiny")
    found = []
    for path in sorted(PHOTOGRAPH.parent.glob("*.webp"))[:6]:
        low = tensor_of(degraded(read(path), path.stem, 4, "paper", 0))
        [result] = OursAtWeights(sr, [weight], Options()).enlarge(low, 4)
        picture = pixels_of(result.image)
        found.append((lattice(picture), phase(picture)))
    lines, phases = zip(*found, strict=True)
    assert np.mean(lines) < 2.0
    assert np.mean(phases) < 0.08
