"""Programs and packages of others that make the files and say what is in them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
"""(H, W, 4): red, green, blue and opacity in [0, 1], sRGB."""

PACKAGES = ("imagecodecs==2026.3.6", "pillow-heif==1.8.1", "tifffile==2026.3.3")
PROGRAMS = {
    "convert-im6.q16": "imagemagick",
    "tiffcp": "libtiff-tools",
    "avifenc": "libavif-bin",
    "avifdec": "libavif-bin",
    "cjpeg": "libjpeg-turbo-progs",
    "djpeg": "libjpeg-turbo-progs",
    "cwebp": "webp",
    "cjxl": "libjxl-tools",
    "opj_compress": "libopenjp2-tools",
}
"""What must be on PATH, and the package of Debian that has it."""


def install(folder: Path) -> None:
    """The packages into a folder of their own, from which this process then imports."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    if not any(folder.glob("imagecodecs")):
        subprocess.run([*command, folder, *PACKAGES], check=True)
    sys.path.append(str(folder))


def package(name: str) -> Any:
    return import_module(name)


def run(*command: str | Path, stdin: bytes | None = None) -> bytes:
    done = subprocess.run(list(map(str, command)), input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.decode(errors='replace')[-500:]}")
    return done.stdout


@contextmanager
def written(data: bytes, suffix: str) -> Iterator[Path]:
    """A file with this content, and beside it room for another."""
    with TemporaryDirectory() as folder:
        path = Path(folder, f"in.{suffix}")
        path.write_bytes(data)
        yield path


def made(program: str, data: bytes, source: str, target: str, *options: str) -> bytes:
    """What a program writes that is called with options, a file and where to write."""
    with written(data, source) as path:
        out = path.with_name(f"out.{target}")
        run(program, *options, path, out)
        return out.read_bytes()


def convert(data: bytes, source: str, target: str, *options: str) -> bytes:
    """What ImageMagick makes of a file, by the options between the two."""
    with written(data, source) as path:
        out = path.with_name("out")
        run("convert-im6.q16", path, *options, f"{target}:{out}")
        return out.read_bytes()


def magick(data: bytes, suffix: str, *options: str) -> Floats:
    """What ImageMagick shows."""
    with written(data, suffix) as path:
        size = run("convert-im6.q16", f"{path}[0]", *options, "-format", "%w %h", "info:").split()
        raw = run(
            "convert-im6.q16", f"{path}[0]", *options, "-depth", "16", "-endian", "LSB", "rgba:-"
        )
    width, height = map(int, size)
    return np.frombuffer(raw, "<u2").reshape(height, width, 4) / 65535


def of_levels(levels: NDArray[Any]) -> Floats:
    """Grey or colours, with opacity or without, of 8 or 16 bits."""
    levels = levels.reshape(*levels.shape[:2], -1)
    values = levels / np.iinfo(levels.dtype).max
    colours = values[..., : 1 if values.shape[2] < 3 else 3]
    alpha = values[..., -1:] if values.shape[2] in (2, 4) else np.ones_like(values[..., :1])
    return np.concatenate([np.broadcast_to(colours, (*values.shape[:2], 3)), alpha], axis=2)
