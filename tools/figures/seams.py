"""How visible the borders of tiles are.

At a border, neighbouring pixels differ more than elsewhere: their mean difference in Y there is
divided by that at the like lines of the latent cells near it. The seam ratio is this over the same
of a reference without tiles, because the subject may have an edge there too. 1: nothing shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evaluation.images import Pixels
from evaluation.metrics import luma
from models.parameters import UpscaleParameters
from models.pipeline import StableSR
from models.tiling import TileGrid

NEAR = 34
"""Lines on each side that are looked at: four cells, and as many as a seam is wide."""
_WIDE = 2


def borders(grid: TileGrid, cell: int) -> tuple[list[int], list[int]]:
    """Rows and columns in pixels where a tile begins or ends within the canvas; a cell's side."""
    rows = {y + d for y, _ in grid.origins for d in (0, grid.tile_height)}
    columns = {x + d for _, x in grid.origins for d in (0, grid.tile_width)}
    return (
        sorted(cell * y for y in rows if 0 < y < grid.height),
        sorted(cell * x for x in columns if 0 < x < grid.width),
    )


def profile(
    picture: Pixels, rows: Sequence[int], columns: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Mean difference in Y between neighbours at each distance from the borders, -NEAR to NEAR.

    At distance 0 the neighbours lie on the two sides of the border.
    """
    y = luma(picture)
    across = np.abs(np.diff(y, axis=1)).mean(axis=0)
    down = np.abs(np.diff(y, axis=0)).mean(axis=1)
    lines = [(across, x) for x in columns] + [(down, x) for x in rows]
    cut = [change[at - 1 - NEAR : at + NEAR] for change, at in lines]
    whole = [part for part in cut if len(part) == 2 * NEAR + 1]
    if not whole:
        raise ValueError(f"No border lies {NEAR} pixels within the picture.")
    mean: npt.NDArray[np.float64] = np.mean(whole, axis=0)
    return mean


def seam_ratio(
    picture: Pixels, reference: Pixels, rows: Sequence[int], columns: Sequence[int], cell: int = 8
) -> float:
    """How much more than the reference a picture changes at borders, compared with near them.

    Args:
        picture: the result.
        reference: the same without tiles, such as bicubic enlargement.
        rows: where tiles meet, in pixels; at least NEAR from the picture's ends to count.
        columns: likewise.
        cell: side of a latent cell in pixels.

    Raises:
        ValueError: no border lies well within the picture.
    """
    ours, theirs = (_excess(profile(p, rows, columns), cell) for p in (picture, reference))
    return ours / theirs


def _excess(change: npt.NDArray[np.float64], cell: int) -> float:
    """Change at the border over that at the same lines of the cells near it."""
    distance = np.arange(-NEAR, NEAR + 1)
    at = np.abs(distance) <= _WIDE
    # Decoders leave a pattern of the cells' size, so lines are compared with their like.
    like = np.abs((distance + cell // 2) % cell - cell // 2) <= _WIDE
    near = like & ~at & (np.abs(distance) <= NEAR - _WIDE)
    return float(change[at].mean() / max(float(change[near].mean()), 1e-9))


def tiles_alone(sr: StableSR, image: Tensor, options: UpscaleParameters, side: int) -> Tensor:
    """Cuts an input into squares of `side` pixels, upscales each as if it were all, and pastes.

    Args:
        sr: the model.
        image: (1, 3, h, w), sides multiples of `side`.
        options: of every square; each has a seed of its own.
        side: in pixels of the input.
    """
    lines = []
    number = 0
    for line in torch.split(image, side, dim=2):
        squares = []
        for square in torch.split(line, side, dim=3):
            squares.append(
                sr.upscale(square, options.model_copy(update={"seed": options.seed + number}))
            )
            number += 1
        lines.append(torch.cat(squares, dim=3))
    return torch.cat(lines, dim=2)
