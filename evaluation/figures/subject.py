"""A picture that is experimented on, and how results of it are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.metrics import BORDER, offline_scores
from evaluation.pictures import Pixels
from evaluation.sheets import Cell, contact_sheet, enlarged, finest

__all__ = ["SCALE", "SHOWN", "Subject"]

SCALE = 4
SHOWN = 256
"""Side in pixels of the details that sheets show."""


@dataclass(frozen=True)
class Subject:
    """An input, a quarter as large as its original in both directions."""

    name: str
    lr: Pixels
    original: Pixels

    def note(self, picture: Pixels) -> str:
        """Its scores, for a caption."""
        scores = offline_scores(picture, self.original, BORDER)
        return f"PSNR {scores['psnr']:.2f}  NIQE {scores['niqe']:.2f}"

    def detail(self, picture: Pixels) -> Pixels:
        """The part of a result where the original has most detail."""
        side = min(SHOWN, *self.original.shape[:2])
        top, left = finest(self.original, side)
        return picture[top : top + side, left : left + side]

    def sheet(self, results: Sequence[tuple[str, Pixels]]) -> Pixels:
        """Details of input, results and original in one row, or two where they are many."""
        cells = [
            Cell(self.detail(enlarged(self.lr, SCALE)), "input"),
            *(Cell(self.detail(p), title, self.note(p)) for title, p in results),
            Cell(self.detail(self.original), "original"),
        ]
        row = len(cells) if len(cells) <= 5 else -(-len(cells) // 2)
        return contact_sheet([cells[i : i + row] for i in range(0, len(cells), row)])
