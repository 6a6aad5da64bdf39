"""Writing a large result: which library packs it, how fast, and how small.

    python -m benchmarks.encoders [--side 4096]

The test photographs beside and below each other make a picture of that side. PNG is written by
this project's writer (row by row, average filter) with zlib and with ISA-L at several levels, and
by libvips and Pillow, which need the picture whole; TIFF by this project's. Seconds are of the
processor, the least of the repeats, as ratios to the writer as it is; every file is read again and
compared.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pyvips
import torch
from isal import isal_zlib
from PIL import Image
from pyvips.enums import ForeignPngFilter

from benchmarks.machine import describe
from benchmarks.pictures import Pixels, decoded
from worker.images import writing
from worker.images.image import STRIP

PHOTOGRAPHS = Path(__file__).parents[1] / "tests" / "photographs"

LIBRARIES: dict[str, tuple[ModuleType, tuple[int, ...]]] = {
    "ISA-L": (isal_zlib, (0, 1, 2, 3)),
    "zlib": (zlib, (1, 3, 6)),
}


@dataclass(frozen=True)
class Written:
    """One way of writing."""

    format: str
    way: str
    level: int
    seconds: float
    size: int
    chosen: bool


def mosaic(side: int) -> Pixels:
    """(side, side, 3) of all the photographs in turn."""
    tiles = [decoded(path.read_bytes()) for path in sorted(PHOTOGRAPHS.glob("*.webp"))]
    height, width = tiles[0].shape[:2]
    rows, columns = -(-side // height), -(-side // width)
    lines = [
        np.concatenate([tiles[(r * columns + c) % len(tiles)] for c in range(columns)], axis=1)
        for r in range(rows)
    ]
    return np.ascontiguousarray(np.concatenate(lines)[:side, :side])


def streamed(format: str, picture: Pixels, library: ModuleType, level: int) -> bytes:
    """By this project's writer with another library in the place of its own."""
    file = io.BytesIO()
    height, width, channels = picture.shape
    strips = (picture[top : top + STRIP] for top in range(0, height, STRIP))
    write = writing.write_png if format == "png" else writing.write_tiff
    with patch.object(writing, "isal_zlib", library), patch.object(writing, "LEVEL", level):
        write(file, strips, (height, width, channels))
    return file.getvalue()


def by_libvips(picture: Pixels, level: int) -> bytes:
    height, width, channels = picture.shape
    image = pyvips.Image.new_from_memory(picture.tobytes(), width, height, channels, "uchar")
    file: bytes = image.pngsave_buffer(compression=level, filter=ForeignPngFilter.AVG)
    return file


def by_pillow(picture: Pixels, level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=level)
    return file.getvalue()


def ways(picture: Pixels) -> list[tuple[str, str, int, Callable[[], bytes], bool]]:
    """Format, name and level of each, and whether the worker does it so."""
    found: list[tuple[str, str, int, Callable[[], bytes], bool]] = []
    for format in ("png", "tiff"):
        for name, (library, levels) in LIBRARIES.items():
            for level in levels:
                run = partial(streamed, format, picture, library, level)
                own = library is isal_zlib and level == writing.LEVEL
                found.append((format, name, level, run, own))
    for level in (1, 3, 6):
        found.append(("png", "libvips", level, partial(by_libvips, picture, level), False))
    for level in (1, 3):
        found.append(("png", "Pillow", level, partial(by_pillow, picture, level), False))
    return found


def measure(picture: Pixels, repeats: int) -> list[Written]:
    """Each way in turn.

    Raises:
        SystemExit: a file does not hold the picture.
    """
    results = []
    for format, name, level, run, own in ways(picture):
        taken = []
        for _ in range(repeats):
            began = time.process_time()
            file = run()
            taken.append(time.process_time() - began)
        if not np.array_equal(decoded(file), picture):
            raise SystemExit(f"the {format} by {name} at level {level} is another picture")
        results.append(Written(format, name, level, min(taken), len(file), own))
    return results


def table(results: list[Written]) -> str:
    own = {r.format: r for r in results if r.chosen}
    lines = [f"{'':6}{'':10}{'level':>6}{'cpu s':>8}{'ratio':>7}{'MB':>8}{'ratio':>7}"]
    for r in results:
        time_ratio = r.seconds / own[r.format].seconds
        size_ratio = r.size / own[r.format].size
        lines.append(
            f"{r.format:6}{r.way:10}{r.level:6}{r.seconds:8.2f}{time_ratio:7.2f}"
            f"{r.size / 1e6:8.2f}{size_ratio:7.3f}{'  the worker' if r.chosen else ''}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--side", type=int, default=4096, help="px")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    a = parser.parse_args()
    results = measure(mosaic(a.side), a.repeats)
    print(describe(torch.device("cpu")))
    print(f"{a.side} x {a.side} pixels, 8 bits, RGB")
    print(table(results))
    if a.json:
        a.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
