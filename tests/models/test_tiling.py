"""How a canvas is cut and put together again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidOption
from models.tiling import TileGrid, gaussian_weights


@given(st.integers(8, 200), st.integers(8, 200), st.integers(8, 64), st.data())
def test_tiles_cover_every_cell_and_stay_inside(
    height: int, width: int, tile: int, data: st.DataObject
) -> None:
    grid = TileGrid(height, width, tile, data.draw(st.integers(0, tile - 1)))
    covered = np.zeros((height, width), bool)
    for y, x in grid.origins:
        assert 0 <= y <= height - grid.tile_height
        assert 0 <= x <= width - grid.tile_width
        covered[y : y + grid.tile_height, x : x + grid.tile_width] = True
    assert covered.all()
    assert len(set(grid.origins)) == len(grid.origins)


def test_joining_what_was_cut_gives_the_canvas_back() -> None:
    canvas = torch.randn(1, 4, 76, 100, dtype=torch.float64)
    grid = TileGrid(76, 100, 32, 12)
    torch.testing.assert_close(
        grid.join(grid.cut(canvas, grid.origins)), canvas, rtol=1e-12, atol=1e-12
    )


def test_a_canvas_of_one_tile_is_left_alone() -> None:
    canvas = torch.randn(1, 4, 64, 64)
    grid = TileGrid(64, 64, 64, 32)
    assert grid.origins == [(0, 0)]
    assert torch.equal(grid.join(grid.cut(canvas, grid.origins)), canvas)


@pytest.mark.parametrize(("side", "tiles"), [(64, 1), (128, 9), (256, 49), (512, 225)])
def test_the_number_of_tiles_at_overlap_32_is_the_published_one(side: int, tiles: int) -> None:
    assert len(TileGrid(side, side, 64, 32).origins) == tiles


@pytest.mark.parametrize("overlap", [-1, 64, 70])
def test_an_overlap_that_is_no_overlap_is_refused(overlap: int) -> None:
    with pytest.raises(InvalidOption, match=rf"tile_overlap is {overlap}.*64"):
        TileGrid(128, 128, 64, overlap)


def test_weights_are_heaviest_in_the_middle_of_a_tile() -> None:
    weights = gaussian_weights(64, 64)
    assert divmod(int(weights.argmax()), 64) in [(32, 31), (32, 32)]
    assert weights.min() > 0
