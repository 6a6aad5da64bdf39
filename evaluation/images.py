"""Images to evaluate on: low-resolution inputs and their originals, matched by name.

An image is 8-bit RGB, (height, width, 3) uint8, upright. Other kinds are refused, not converted:
a silent conversion would be measured as an error of the method.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from models.checkpoints.files import replace_text, write_aside
from models.errors import ModelError
from training.degradation import DEGRADATIONS, degrade

Pixels = npt.NDArray[np.uint8]
"""(height, width, 3), RGB."""

Degradation = Literal["paper", "mild", "bicubic"]

_SUFFIXES = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class EvaluationError(ModelError):
    """Base of every error raised by `evaluation` on purpose."""


class BadImages(EvaluationError):
    """Images are missing, do not match, or have a kind or size that cannot be compared."""


@dataclass(frozen=True)
class Pair:
    """An input and its original, `scale` times as large in both directions."""

    name: str
    """What both files are called, without suffix."""
    lr: Path
    hr: Path
    scale: int


def read(path: Path) -> Pixels:
    """A file's pixels, turned upright. Raises BadImages: it cannot be read, or is not 8-bit RGB
    without transparency."""
    try:
        with Image.open(path) as file:
            mode, transparent = file.mode, file.has_transparency_data
            if transparent or mode not in ("RGB", "L", "P"):
                raise BadImages(
                    f"{path} has mode {mode}{' with transparency' if transparent else ''}, but "
                    "images to compare must be RGB with 8 bits a channel, without transparency."
                )
            return np.asarray(ImageOps.exif_transpose(file).convert("RGB"), np.uint8)
    except UnidentifiedImageError:
        raise BadImages(f"{path} is not an image that can be read.") from None
    except OSError as error:
        raise BadImages(f"{path} cannot be read: {error.strerror or error}.") from error


def write(path: Path, pixels: Pixels) -> None:
    """Writes a PNG, aside first, into a folder that may be missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        Image.fromarray(pixels).save(aside, format="PNG")


def write_file(path: Path, text: str) -> None:
    """As `write`, a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)


def tensor_of(pixels: Pixels) -> Tensor:
    """Pixels -> (1, 3, height, width), float32 in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]


def pixels_of(image: Tensor) -> Pixels:
    """(1, 3, height, width) in [0, 1] -> pixels, rounded to 8 bits as a file would hold them."""
    levels = (image[0].detach().float().clamp(0, 1) * 255).round().byte()
    return levels.permute(1, 2, 0).contiguous().cpu().numpy()


def list_images(folder: Path) -> dict[str, Path]:
    """The images of a folder by their names without suffix, sorted. Raises BadImages: there is no
    such folder or no image in it, or two images share a name."""
    if not folder.is_dir():
        raise BadImages(f"There is no folder {folder}.")
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in paths:
            raise BadImages(
                f"{paths[path.stem].name} and {path.name} in {folder} share a name, but images "
                "are matched by their names without suffix."
            )
        paths[path.stem] = path
    if not paths:
        raise BadImages(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))}).")
    return paths


def match_images(lr: Path, hr: Path) -> list[Pair]:
    """Pairs inputs and originals of two folders by name. Raises BadImages: one has no other, or
    sides differ by no whole factor, or not by one factor."""
    inputs, originals = list_images(lr), list_images(hr)
    for ours, theirs, folder in ((inputs, originals, hr), (originals, inputs, lr)):
        alone = [name for name in ours if name not in theirs]
        if alone:
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            raise BadImages(
                f"{folder} has no image called {', '.join(alone[:3])}{more}, of which the other "
                "folder has one."
            )
    pairs: list[Pair] = []
    for name, path in inputs.items():
        (height, width), (full_height, full_width) = (
            read(p).shape[:2] for p in (path, originals[name])
        )
        scale = full_width // width
        if scale < 1 or (full_height, full_width) != (scale * height, scale * width):
            raise BadImages(
                f"{path} has {width} x {height} pixels and {originals[name]} has {full_width} x "
                f"{full_height}, but both sides of the original must be the same whole number of "
                "times larger."
            )
        if pairs and scale != pairs[0].scale:
            raise BadImages(
                f"{pairs[0].name} has to be upscaled by {pairs[0].scale} and {name} by {scale}, "
                "but all images of one comparison must have the same scale."
            )
        pairs.append(Pair(name, path, originals[name], scale))
    return pairs


def degrade_pixels(original: Pixels, name: str, scale: int, kind: Degradation, seed: int) -> Pixels:
    """An input made from an original; seed and name alone decide what is drawn for it, whatever
    other images are evaluated with it. Raises BadImages: its sides are no multiples of the scale.
    """
    height, width = original.shape[:2]
    if height % scale or width % scale:
        raise BadImages(
            f"{name} has {width} x {height} pixels, but both sides must be multiples of the "
            f"scale {scale} to be degraded."
        )
    generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
    image, settings = tensor_of(original), DEGRADATIONS[kind]
    return pixels_of(degrade(image, scale, generator=generator, settings=settings))


def write_degraded(hr: Path, lr: Path, scale: int, kind: Degradation, seed: int) -> list[Pair]:
    """Makes the inputs of a folder of originals and pairs them; raises as `degrade_pixels` and
    `list_images`."""
    pairs = []
    for name, path in list_images(hr).items():
        write(lr / f"{name}.png", degrade_pixels(read(path), name, scale, kind, seed))
        pairs.append(Pair(name, lr / f"{name}.png", path, scale))
    return pairs
