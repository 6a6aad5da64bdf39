"""Image files and tensors: decoding what was uploaded, encoding what is handed back.

A decoded picture is upright (EXIF orientation applied), sRGB (ICC profile applied) and free of
metadata. Its colours and its alpha channel are kept apart: only the colours go through the
network. Pillow reads 16 bits a channel for greyscale files only; a 16-bit colour file loses its
low bytes here, which the first step of the pipeline could not use.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from jobs.errors import (
    ImageAnimated,
    ImageTooLarge,
    ImageTruncated,
    OutputTooLarge,
    UnsupportedFormat,
)
from jobs.schema import OutputFormat

__all__ = ["FORMATS", "MEDIA_TYPES", "Picture", "check_side", "decode", "encode"]

log = structlog.get_logger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")
"""What is read, by Pillow's names; every other plugin of Pillow stays out of reach."""

MEDIA_TYPES: dict[OutputFormat, str] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
}

# The largest side a format can state in its header, in pixels. PNG's is 2^31 - 1.
LARGEST_SIDE: dict[OutputFormat, int] = {"webp": 16_383, "jpeg": 65_535, "png": 2**31 - 1}

# Pillow's own limit is a warning at one size and an error at twice that, process-wide. Here every
# file is held against the caller's limit between reading its header and decoding a pixel.
Image.MAX_IMAGE_PIXELS = None

SRGB = ImageCms.createProfile("sRGB")


@dataclass(frozen=True)
class Picture:
    """A picture as the pipeline takes and gives it.

    `rgb` is (1, 3, H, W) float32 in [0, 1], sRGB. `alpha` is (1, 1, H, W) likewise, or None for
    a picture without transparency.
    """

    rgb: Tensor
    alpha: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[-1], self.rgb.shape[-2]

    def alpha_at(self, height: int, width: int) -> Tensor | None:
        """The alpha channel at another size (bicubic, clamped), (1, 1, height, width)."""
        if self.alpha is None:
            return None
        size = (height, width)
        return interpolate(self.alpha, size, mode="bicubic", align_corners=False).clamp(0, 1)


def decode(data: bytes, max_pixels: int) -> Picture:
    """Read an image file of one of `FORMATS`.

    Of the several pictures in a camera's JPEG the first is taken; animations are refused.

    Raises:
        ImageError: not an image, cut off, animated, more than `max_pixels`, or of a kind that has
            no clear meaning as RGB.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, max_pixels)
            image.load()
            return _picture(image)
    except UnidentifiedImageError:
        raise UnsupportedFormat(
            f"The {len(data)} bytes are not a readable PNG, JPEG, WebP, TIFF or AVIF image.",
        ) from None
    # What Pillow's decoders raise on files that are cut off or do not hold what they announce.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise ImageTruncated(f"The file is cut off or broken: {error}.") from error


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"The image has {width} x {height} = {width * height} pixels; "
            f"at most {max_pixels} are allowed.",
            limit=max_pixels,
        )
    # A camera's JPEG may carry previews as further frames (MPO): they are not an animation.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in ("JPEG", "MPO"):
        raise ImageAnimated(f"The image has {frames} frames; only still images are taken.")


def _picture(image: Image.Image) -> Picture:
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Picture(_sixteen_bit(image))
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
        alpha = _unit(image.getchannel("A"))
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("RGB", "L", "CMYK", "YCbCr"):
        raise UnsupportedFormat(
            f"Pixels of the kind {image.mode} are not read; RGB, greyscale, palette and CMYK are."
        )
    return Picture(_unit(_to_srgb(image, profile)), alpha)


def _sixteen_bit(image: Image.Image) -> Tensor:
    """Greyscale of 16 bits: the one case where Pillow keeps more than 8."""
    values = np.asarray(image).astype(np.float32) / 65535.0
    grey = torch.from_numpy(values).clamp(0, 1)
    return grey[None, None].repeat(1, 3, 1, 1)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB. A file without a profile is taken to be sRGB already."""
    if profile and image.mode != "YCbCr":
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB")
        # A damaged profile, or one for another colour model: viewers ignore those, and refusing
        # the picture for its label would help nobody. OSError: not a profile at all.
        except (ImageCms.PyCMSError, OSError) as error:
            log.warning("icc profile ignored", reason=str(error), mode=image.mode)
        else:
            if converted is not None:
                return converted
    return image.convert("RGB")


def _unit(image: Image.Image) -> Tensor:
    """Eight bits a channel to (1, C, H, W) float32 in [0, 1]."""
    values = np.array(image, dtype=np.uint8)
    channels = torch.from_numpy(values).reshape(image.height, image.width, -1)
    return channels.permute(2, 0, 1)[None].float() / 255.0


def check_side(width: int, height: int, format: OutputFormat) -> None:
    """Refuse a result that its file format cannot hold, before it is computed.

    Raises:
        OutputTooLarge: a side of `width` x `height` pixels is longer than `format` can state.
    """
    largest = LARGEST_SIDE[format]
    if max(width, height) > largest:
        raise OutputTooLarge(
            f"A {format} file has at most {largest} pixels a side; the result would be "
            f"{width} x {height}. Ask for png, or for a smaller scale.",
            limit=largest,
        )


def encode(picture: Picture, format: OutputFormat) -> bytes:
    """Write a picture, values rounded to the nearest of 256 (a half goes up) and clamped.

    PNG is lossless; WebP and JPEG are written at quality 95, JPEG with full-resolution colour
    and, having no transparency, over white.
    """
    rgb, alpha = picture.rgb, picture.alpha
    check_side(*picture.size, format)
    if alpha is not None and format == "jpeg":
        rgb, alpha = rgb * alpha + (1 - alpha), None
    channels = rgb if alpha is None else torch.cat([rgb, alpha], dim=1)
    levels = (channels[0].float().clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8)
    image = Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())
    file = io.BytesIO()
    if format == "png":
        # Level 6 takes twice the time of 3 for a few percent on photographs.
        image.save(file, "PNG", compress_level=3)
    elif format == "webp":
        image.save(file, "WEBP", quality=95, alpha_quality=100, method=4)
    else:
        image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()
