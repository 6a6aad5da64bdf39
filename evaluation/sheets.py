"""Contact sheets: the same image by every method side by side, as PNG and as a page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.comparison import Comparison, result_path
from evaluation.images import Pair, Pixels, read, write, write_file
from evaluation.metrics import METRICS

PAGES = Path(__file__).with_name("pages")

_GAP = 8
_LINE = 20
_INK, _PALE, _PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)
_MAGNIFICATION = 4  # of the detail, whose sides are as much shorter than the shorter side


@dataclass(frozen=True)
class Cell:
    """An image of a sheet, and what is written below it."""

    image: Pixels
    title: str
    note: str = ""


def magnify(image: Pixels, factor: int) -> Pixels:
    """Every pixel as a square of `factor` pixels a side."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def finest(image: Pixels, side: int) -> tuple[int, int]:
    """Top and left of the square of that side with the most contrast between neighbours."""
    grey = image.astype(np.float64).mean(axis=2)
    detail = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    total = np.pad(detail, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    side = min(side, *detail.shape)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(top), int(left)


def contact_sheet(rows: Sequence[Sequence[Cell]]) -> Pixels:
    """Rows of cells in columns; a cell stands at the upper left of its place."""
    heights = [max(c.image.shape[0] for c in row) + _captions(row) for row in rows]
    columns = range(max(len(row) for row in rows))
    widths = [max(r[i].image.shape[1] for r in rows if i < len(r)) for i in columns]
    size = sum(widths) + _GAP * (len(widths) + 1), sum(heights) + _GAP * (len(rows) + 1)
    sheet = Image.new("RGB", size, _PAPER)
    draw, y = ImageDraw.Draw(sheet), _GAP
    for row, height in zip(rows, heights, strict=True):
        x = _GAP
        for cell, width in zip(row, widths, strict=False):
            sheet.paste(Image.fromarray(cell.image), (x, y))
            below = y + cell.image.shape[0] + 3
            draw.text((x, below), cell.title, _INK, _font(draw, cell.title, width))
            draw.text((x, below + _LINE), cell.note, _PALE, _font(draw, cell.note, width))
            x += width + _GAP
        y += height + _GAP
    return np.asarray(sheet)


def _captions(row: Sequence[Cell]) -> int:
    return _LINE * (1 + any(cell.note for cell in row)) if any(c.title for c in row) else 0


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _font(draw: ImageDraw.ImageDraw, text: str, room: int) -> _Font:
    """The largest size up to 16 at which the text has room."""
    for size in range(16, 7, -1):
        font = ImageFont.load_default(size)
        if draw.textlength(text, font) <= room:
            break
    return font


def write_sheets(comparison: Comparison, pairs: Sequence[Pair], out: Path) -> Path:
    """Writes `sheets/NAME.png` for each image and `index.html` with all of them; returns the page.

    A sheet holds input, every method in order and original, and below each the finest detail.
    """
    for pair in pairs:
        write(out / "sheets" / f"{pair.name}.png", _sheet(comparison, pair, out))
    page = Template((PAGES / "sheets.html").read_text("utf-8")).substitute(
        title=html.escape(f"{len(pairs)} images, {len(comparison.methods)} methods"),
        table=_table(comparison),
        images="\n".join(_figure(comparison, pair, out) for pair in pairs),
    )
    write_file(out / "index.html", page)
    return out / "index.html"


def _sheet(comparison: Comparison, pair: Pair, out: Path) -> Pixels:
    lr, original = read(pair.lr), read(pair.hr)
    cells = [Cell(magnify(lr, pair.scale), "input", f"{lr.shape[1]} x {lr.shape[0]}")]
    for row in comparison.rows:
        if row.image == pair.name:
            metrics = [METRICS[name] for name in ("psnr", "ssim", "niqe")]
            note = "  ".join(f"{m.label} {row.scores[m.name]:.{m.digits}f}" for m in metrics)
            cells.append(Cell(read(result_path(out, row.method, pair.name)), row.method, note))
    cells.append(Cell(original, "original"))
    side = max(min(original.shape[:2]) // _MAGNIFICATION, 1)
    top, left = finest(original, side)
    cut = np.s_[top : top + side, left : left + side]
    details = [Cell(magnify(cell.image[cut], _MAGNIFICATION), "") for cell in cells]
    return contact_sheet([cells, details])


def _table(comparison: Comparison) -> str:
    metrics = [METRICS[name] for name in comparison.metrics]
    head = "".join(f"<th>{m.label} {'↑' if m.higher_is_better else '↓'}</th>" for m in metrics)
    rows = []
    for method in comparison.methods:
        means = comparison.means(method)
        cells = "".join(f"<td>{means[m.name]:.{m.digits}f}</td>" for m in metrics)
        seconds = f"<td>{comparison.seconds(method):.2f}</td>"
        rows.append(f"<tr><th>{html.escape(method)}</th>{cells}{seconds}</tr>")
    missing = "".join(
        f"<li>{METRICS[name].label} is not measured: {html.escape(why)}</li>"
        for name, why in comparison.unavailable.items()
    )
    return (
        f"<table><tr><th></th>{head}<th>s an image</th></tr>{''.join(rows)}</table>"
        f"<ul>{missing}</ul>"
    )


def _figure(comparison: Comparison, pair: Pair, out: Path) -> str:
    def address(method: str) -> str:
        return quote(str(result_path(out, method, pair.name).relative_to(out)))

    buttons = "".join(
        f'<button data-src="{address(method)}">{html.escape(method)}</button>'
        for method in comparison.methods
    )
    name, sheet = html.escape(pair.name), quote(f"sheets/{pair.name}.png")
    return (
        f'<section><h2>{name}</h2><a href="{sheet}">'
        f'<img class="sheet" loading="lazy" src="{sheet}" alt="{name}, all methods"></a>'
        f'<div class="flip"><p>{buttons}</p><img loading="lazy" '
        f'src="{address(comparison.methods[0])}" alt="{name}"></div></section>'
    )
