"""Reading and writing: image files, and the conversion of released weights.

    python -m benchmarks.io
    python -m benchmarks.io --parts files --side 1024
    python -m benchmarks.io --parts weights --folder /data

files: the test photographs beside and below each other make an image of `--side`, which is written
in every format of results and read again, by Pillow, by libvips and by the worker's code. Pillow
and libvips need the image whole; the worker writes PNG and TIFF row by row. Seconds are of the
processor, the least of the repeats; ratios are to Pillow. Lossless files must hold the same pixels.

weights: `stablesr weights convert` on two files of random numbers (7.4 GB) with the names and
shapes of the released ones, then `verify`. Needs 11 GB in `--folder`, all of it removed again; its
peak is the resident memory of that process.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import pyvips
import torch
from PIL import Image

from benchmarks.images import Pixels, mosaic, pixels_of_file
from benchmarks.machine import resident_peak
from benchmarks.released_files import released_shapes, write_released
from benchmarks.report import command_parser, publish
from benchmarks.results import Measurement, Result, Unit
from models.parameters import OutputFormat
from worker.images import decode, write

T = TypeVar("T")

PARTS = ("files", "weights")
POLL_S = 0.02
PRESET = "stablesr-512"
LOSSLESS = ("png", "tiff")
# As the worker's files are: PNG at a level that suits photographs, JPEG with all of its colour.
PILLOW: dict[str, dict[str, object]] = {
    "png": {"compress_level": 3},
    "tiff": {"compression": "tiff_adobe_deflate"},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"quality": 95, "method": 4},
    "avif": {"quality": 95, "speed": 8, "subsampling": "4:4:4"},
}
LIBVIPS: dict[str, dict[str, object]] = {
    "png": {"compression": 3},
    "tiff": {"compression": "deflate", "predictor": "horizontal"},
    "jpeg": {"Q": 95, "subsample_mode": "off"},
    "webp": {"Q": 95, "effort": 4},
    "avif": {"Q": 95, "effort": 2, "subsample_mode": "off"},
}


def by_pillow(pixels: Pixels, format: OutputFormat) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **PILLOW[format])
    return file.getvalue()


def by_libvips(pixels: Pixels, format: OutputFormat) -> bytes:
    height, width, channels = pixels.shape
    image = pyvips.Image.new_from_memory(pixels.tobytes(), width, height, channels, "uchar")
    file: bytes = image.write_to_buffer(f".{format}", **LIBVIPS[format])
    return file


def by_worker(pixels: Pixels, format: OutputFormat) -> bytes:
    height, width, channels = pixels.shape
    rows = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        sizes = {"width": width, "height": height, "channels": channels}
        write(path, [rows], **sizes, format=format, depth=8)
        return path.read_bytes()


def read_by_libvips(file: bytes) -> Pixels:
    pixels: Pixels = pyvips.Image.new_from_buffer(file, "").numpy()
    return pixels


def read_by_worker(file: bytes) -> Pixels:
    rgb = decode(file, 10**9).rgb[0].permute(1, 2, 0)
    return (rgb * 255).round().byte().numpy()


WRITERS: dict[str, Callable[[Pixels, OutputFormat], bytes]] = {
    "Pillow": by_pillow,
    "libvips": by_libvips,
    "the worker": by_worker,
}
READERS: dict[str, Callable[[bytes], Pixels]] = {
    "Pillow": pixels_of_file,
    "libvips": read_by_libvips,
    "the worker": read_by_worker,
}


def measure_files(side: int, repeats: int) -> list[Measurement]:
    """Every format by every library.

    Raises:
        SystemExit: a lossless file does not hold the image.
    """
    pixels = mosaic(side)
    measurements: list[Measurement] = []
    for format in get_args(OutputFormat):
        file = b""
        for variant, writer in WRITERS.items():
            file, seconds = least_seconds(partial(writer, pixels, format), repeats)
            if format in LOSSLESS and not np.array_equal(pixels_of_file(file), pixels):
                raise SystemExit(f"The {format} file by {variant} holds another image.")
            measurements += [
                Measurement(variant, f"write {format}", "processor", seconds, "s"),
                Measurement(variant, f"write {format}", "file", len(file), "bytes"),
            ]
        for variant, reader in READERS.items():
            read, seconds = least_seconds(partial(reader, file), repeats)
            if format in LOSSLESS and not np.array_equal(read, pixels):
                raise SystemExit(f"{variant} reads another image from the {format} file.")
            measurements.append(Measurement(variant, f"read {format}", "processor", seconds, "s"))
    return measurements


def least_seconds(run: Callable[[], T], repeats: int) -> tuple[T, float]:
    """A result, and the least processor time of some calls."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = run()
        seconds.append(time.process_time() - start)
    return result, min(seconds)


def measure_conversion(files: tuple[Path, Path], folder: Path) -> list[Measurement]:
    """Converts both files into `folder` with the command, and verifies the result.

    Raises:
        subprocess.CalledProcessError: a command failed; it has printed why.
    """
    stablesr = [sys.executable, "-m", "cli", "weights"]
    convert = [*stablesr, "convert", PRESET, *map(str, files), "--out", str(folder)]
    seconds, peak = run_measured(convert)
    subprocess.run([*stablesr, "verify", str(folder)], check=True, stdout=subprocess.DEVNULL)
    size = sum(path.stat().st_size for path in folder.iterdir())
    figures: list[tuple[str, float, Unit]] = [
        ("read", sum(path.stat().st_size for path in files), "bytes"),
        ("written", size, "bytes"),
        ("all", seconds, "s"),
        ("peak memory", peak, "bytes"),
    ]
    return [Measurement("", "convert weights", *figure) for figure in figures]


def run_measured(command: list[str]) -> tuple[float, int]:
    """Seconds of a command, and the most bytes that it had resident."""
    peak = 0
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, resident_peak(process.pid))
            time.sleep(POLL_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - start, peak


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["files"])
    parser.add_argument("--side", type=int, default=4096, help="of the image, px")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where 11 GB are free; a temporary folder")
    a = parser.parse_args()
    measurements: list[Measurement] = []
    if "files" in a.parts:
        measurements += measure_files(a.side, a.repeats)
    if "weights" in a.parts:
        folder = Path(tempfile.mkdtemp(prefix="stablesr-weights-", dir=a.folder))
        try:
            measurements += measure_conversion(
                write_released(folder, *released_shapes()), folder / "out"
            )
        finally:
            shutil.rmtree(folder)
    subject = f"an RGB image of {a.side} x {a.side} px, 8 bits; released weights"
    publish(Result.of("benchmarks.io", subject, "cpu", measurements), a.json)


if __name__ == "__main__":
    main()
