"""PNG, TIFF and JPEG."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.kinds.sources import (
    GREY,
    HEIGHT,
    P3,
    PNG,
    PNG16,
    RGB,
    RGB16,
    RGBA,
    RGBA16,
    WIDTH,
    Variant,
    as_written,
    by_magick,
    by_profile,
    details,
    p3_as_srgb,
    ramps,
    with_chunks,
)
from tests.kinds.tools import convert, made, of_levels, package, run
from tests.worker.image_files import file_of, png_of, tiff_of


def older() -> Iterator[Variant]:
    for family in (_png, _tiff, _refused_tiff, _jpeg):
        yield from family()


def _png() -> Iterator[Variant]:
    for bits in (1, 2, 4):
        levels = (np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH, 1) % 2**bits).astype(np.uint8)
        data = png_of(levels, bits=bits)
        yield Variant(f"PNG, grey of {bits} bits", "by hand", data, **by_magick(data, "png"))
    palette = Image.fromarray(RGB).quantize(4)
    data = file_of(palette, bits=2, transparency=bytes((10, 200, 255, 99)))
    yield Variant("PNG, palette of 2 bits, tRNS", "Pillow", data, **by_magick(data, "png"))
    palette = Image.fromarray(RGB).quantize(200)
    data = file_of(palette, transparency=bytes(range(55, 255)))
    yield Variant("PNG, palette of 8 bits, tRNS", "Pillow", data, **by_magick(data, "png"))
    data = convert(file_of(Image.fromarray(RGBA)), "png", "png", "-interlace", "PNG")
    yield Variant("PNG, RGBA interlaced", "ImageMagick", data, **as_written(RGBA))
    data = convert(PNG16, "png", "png48", "-interlace", "PNG")
    yield Variant("PNG, 16 bits interlaced", "ImageMagick", data, depth=16, **as_written(RGB16))
    data = png_of(ramps(2, 65535), bits=16)
    yield Variant(
        "PNG, grey of 16 bits, opacity", "by hand", data, depth=16, **by_magick(data, "png")
    )
    data = with_chunks(PNG, (b"sBIT", bytes((5, 6, 5))))
    yield Variant("PNG, sBIT 5 6 5", "by hand", data, **by_magick(data, "png"))
    data = with_chunks(png_of(RGB16, bits=16), (b"sBIT", bytes((12, 12, 12))))
    yield Variant("PNG, 16 bits, sBIT 12", "by hand", data, depth=16, **as_written(RGB16))
    for name, numbers in (("sRGB", (1, 13)), ("no statement", (2, 2))):
        data = with_chunks(PNG16, (b"cICP", bytes((*numbers, 0, 1))))
        yield Variant(f"PNG, 16 bits, cICP {name}", "by hand", data, depth=16, **as_written(RGB16))
    data = with_chunks(PNG16, (b"cICP", bytes((12, 13, 0, 1))))
    p3 = details({"reference": "the standards' arithmetic", "tolerance": 0.6})
    expected = details({"expected": lambda: p3_as_srgb(RGB16)})
    yield Variant("PNG, 16 bits, cICP P3", "by hand", data, depth=16, **p3, **expected)
    for name, transfer in (("PQ", 16), ("HLG", 18)):
        data = with_chunks(PNG16, (b"cICP", bytes((9, transfer, 0, 1))))
        yield Variant(f"PNG, cICP {name}", "by hand", data, refusal=f"HDR ({name})")
    data = file_of(Image.fromarray(RGB), icc_profile=P3)
    expected = details({"expected": lambda: p3_as_srgb(RGB), "tolerance": 2})
    p3 = details({"reference": "the standards' arithmetic"})
    yield Variant("PNG, ICC P3", "Pillow", data, **p3, **expected)
    data = with_chunks(PNG, (b"gAMA", struct.pack(">I", 45455)))
    yield Variant("PNG, gAMA of sRGB", "by hand", data, **as_written(RGB))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(Image.fromarray(RGB), exif=exif)
    yield Variant("PNG, eXIf turned", "Pillow", data, **as_written(np.rot90(RGB, -1)))
    yield Variant("PNG without IEND", "Pillow, cut", PNG[:-12], **as_written(RGB))
    yield Variant("PNG without its last pixels", "Pillow, cut", PNG[:-40], refusal="cut short")
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    data = file_of(frames[0], save_all=True, append_images=frames[1:])
    yield Variant("PNG, animated", "Pillow", data, refusal="page=1 takes the first")
    yield Variant("PNG, animated, page=1", "Pillow", data, page=1, **as_written(RGB))


def _tiff_of(levels: np.ndarray[Any, Any], **options: Any) -> bytes:
    """What tifffile writes."""
    buffer = io.BytesIO()
    photometric = options.pop("photometric", "rgb" if levels.ndim == 3 else "minisblack")
    package("tifffile").imwrite(buffer, levels, photometric=photometric, **options)
    return buffer.getvalue()


def _tiff() -> Iterator[Variant]:
    by = "tifffile"
    two = io.BytesIO()
    with package("tifffile").TiffWriter(two) as writer:
        writer.write(RGB, photometric="rgb")
        writer.write(RGB16, photometric="rgb")
        writer.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
        writer.write(GREY[..., 0], photometric="minisblack")
    data = made("tiffcp", two.getvalue(), "tif", "tif", "-c", "lzw")
    yield Variant("TIFF, LZW, three pages", "tiffcp", data, refusal="has 3 pages")
    levels: list[tuple[np.ndarray[Any, Any], int]] = [(RGB, 8), (RGB16, 16), (GREY, 8)]
    for page, (value, depth) in enumerate(levels, 1):
        more = as_written(value)
        yield Variant(f"TIFF, LZW, page={page}", "tiffcp", data, depth=depth, page=page, **more)
    yield Variant("TIFF, LZW, page=4", "tiffcp", data, page=4, refusal="page must be at most 3")
    data = _tiff_of(RGB16, byteorder=">")
    yield Variant("TIFF, 16 bits, big-endian", by, data, depth=16, **as_written(RGB16))
    data = _tiff_of(RGBA16, bigtiff=True, extrasamples=["unassalpha"])
    yield Variant("BigTIFF, 16 bits, opacity", by, data, depth=16, **as_written(RGBA16))
    data = _tiff_of(np.moveaxis(RGB16, -1, 0), planarconfig="separate", photometric="rgb")
    yield Variant("TIFF, 16 bits in planes", by, data, depth=16, **as_written(RGB16))
    data = _tiff_of(RGB, tile=(16, 16))
    yield Variant("TIFF, tiles", by, data, **as_written(RGB))
    data = made(
        "tiffcp", _tiff_of(RGB16), "tif", "tif", "-c", "zip:2", "-t", "-w", "16", "-l", "16"
    )
    yield Variant("TIFF, 16 bits, tiles, predictor", "tiffcp", data, depth=16, **as_written(RGB16))
    data = made("tiffcp", _tiff_of(RGB), "tif", "tif", "-c", "jpeg:95")
    yield Variant("TIFF, JPEG inside", "tiffcp", data, tolerance=6, **by_magick(data, "tif"))
    data = made("tiffcp", _tiff_of(RGB), "tif", "tif", "-c", "packbits", "-r", "7")
    yield Variant("TIFF, PackBits, strips of 7", "tiffcp", data, **as_written(RGB))
    two_levels = file_of(Image.fromarray(RGB).convert("1"), "TIFF")
    for name, method in (("G3", "g3"), ("G3 in two dimensions", "g3:2d"), ("G4", "g4")):
        data = made("tiffcp", two_levels, "tif", "tif", "-c", method)
        yield Variant(f"TIFF, CCITT {name}", "tiffcp", data, **by_magick(data, "tif"))
    data = made("tiffcp", two_levels, "tif", "tif", "-c", "g4", "-f", "lsb2msb")
    yield Variant("TIFF, G4, bits reversed", "tiffcp", data, **by_magick(data, "tif"))
    premultiplied = RGBA16.astype(np.uint64)
    premultiplied[..., :3] = (premultiplied[..., :3] * premultiplied[..., 3:] + 32767) // 65535
    data = _tiff_of(premultiplied.astype(np.uint16), extrasamples=["assocalpha"])
    yield Variant("TIFF, 16 bits premultiplied", by, data, depth=16, **as_written(RGBA16))
    inks = np.dstack([RGB, GREY // 2, GREY // 2 + 100])
    data = _tiff_of(inks, photometric="separated", extrasamples=["unassalpha"])
    shown = (1 - of_levels(RGB)[..., :3]) * (1 - (GREY // 2) / 255)
    opaque = (GREY // 2 + 100) / 255
    cmyk = details({"reference": "(1 - ink) (1 - black)"})
    more = details({**cmyk, "expected": lambda: np.dstack([shown, opaque])})
    yield Variant("TIFF, CMYK with opacity", by, data, **more)
    data = _tiff_of(np.moveaxis(inks[..., :4], -1, 0), photometric="separated", planarconfig=2)
    more = details({**cmyk, "expected": lambda: np.dstack([shown, np.ones_like(opaque)])})
    yield Variant("TIFF, CMYK in planes", by, data, **more)
    data = convert(PNG, "png", "tiff", "-colors", "16", "-type", "Palette", "-depth", "4")
    yield Variant("TIFF, palette", "ImageMagick", data, **by_magick(data, "tif"))
    for bits in (2, 4):
        levels_ = (np.arange(WIDTH) % 2**bits).astype(np.uint8)
        packed = np.packbits((levels_[:, None] >> np.arange(bits - 1, -1, -1)) & 1)
        data = tiff_of(packed.tobytes() * 2, WIDTH, 2, photometric=0, bits=(bits,))
        white = np.tile(255 - levels_ * (255 // (2**bits - 1)), (2, 1))
        kind = f"TIFF, grey of {bits} bits, white is 0"
        yield Variant(kind, "by hand", data, **as_written(white.astype(np.uint8)))
    data = _tiff_of(RGB, extratags=[(274, 3, 1, 6, True)])
    yield Variant("TIFF, turned", by, data, **as_written(np.rot90(RGB, -1)))
    data = _tiff_of(RGB16, iccprofile=P3)
    p3 = details({"reference": "the standards' arithmetic", "expected": lambda: p3_as_srgb(RGB16)})
    yield Variant("TIFF, 16 bits, ICC P3", by, data, depth=16, tolerance=2, **p3)
    data = convert(PNG, "png", "tiff", "-colorspace", "YCbCr", "-compress", "none")
    yield Variant("TIFF, YCbCr", "ImageMagick", data, tolerance=3, **as_written(RGB))


def _refused_tiff() -> Iterator[Variant]:
    by = "tifffile"
    floats = of_levels(RGB)[..., :3]
    for dtype in ("float32", "float16"):
        data = _tiff_of(floats.astype(dtype))
        yield Variant(f"TIFF, {dtype}", by, data, refusal="floating-point numbers")
    data = _tiff_of(RGB.astype(np.int16))
    yield Variant("TIFF, int16", by, data, refusal="signed numbers")
    data = _tiff_of(RGB.astype(np.uint32))
    yield Variant("TIFF, uint32", by, data, refusal="whole numbers of 32 bits")
    for kind, number in (("LogLuv", 32845), ("LogL", 32844), ("CIELab", 8)):
        data = tiff_of(bytes(12), 2, 2, photometric=number, bits=(8, 8, 8))
        yield Variant(f"TIFF, {kind}", "by hand", data, refusal=kind)
    for method, word in (("zstd", "Zstandard"), ("lzma", "LZMA")):
        data = made("tiffcp", _tiff_of(RGB), "tif", "tif", "-c", method)
        yield Variant(f"TIFF, {word}", "tiffcp", data, refusal=word)
    preview = {254: (1,), 330: (8, 9), 271: (20,)}
    data = tiff_of(bytes(12), 2, 2, photometric=2, bits=(8, 8, 8), tags=preview)
    yield Variant("NEF: a preview, pixels in SubIFDs", "by hand", data, refusal="raw file")
    data = tiff_of(bytes(12), 2, 2, photometric=2, bits=(8, 8, 8))
    data = data[:4] + struct.pack("<I", 16) + b"CR\2\0" + bytes(4) + data[8:]
    yield Variant("CR2: its mark behind the head", "by hand", data, refusal="raw file")
    data = tiff_of(bytes(8), 2, 2, photometric=32803, bits=(16,))
    yield Variant("TIFF, a camera's mosaic", "by hand", data, refusal="raw ones of a camera")


def _jpeg() -> Iterator[Variant]:
    codecs = package("imagecodecs")
    ppm = file_of(Image.fromarray(RGB), "PPM")
    for name, options in {
        "progressive": ("-progressive",),
        "arithmetic": ("-arithmetic",),
        "progressive, arithmetic": ("-progressive", "-arithmetic"),
        "restart markers": ("-restart", "1B"),
        "without JFIF, RGB": ("-rgb",),
        "4:1:1": ("-sample", "4x1"),
        "4:4:0": ("-sample", "1x2"),
        "grey": ("-grayscale",),
    }.items():
        data = _cjpeg(ppm, *options)
        more = by_magick(data, "jpg")
        yield Variant(f"JPEG, {name}", "cjpeg", data, tolerance=6, **more)
    data = _cjpeg(ppm)
    yield Variant(
        "JPEG without EOI", "cjpeg, cut", data[:-2], tolerance=6, **by_magick(data, "jpg")
    )
    yield Variant("JPEG without its last blocks", "cjpeg, cut", data[:-150], refusal="cut short")
    data = _cjpeg(ppm, "-progressive")
    yield Variant("JPEG, progressive, no EOI", "cjpeg, cut", data[:-2], refusal="cut short")
    data = bytes(codecs.ljpeg_encode(RGB[..., 0]))
    yield Variant("JPEG, lossless, grey", "imagecodecs", data, **as_written(RGB[..., :1]))
    data = bytes(codecs.jpeg_encode(RGB16 >> 4, bitspersample=12, level=95))
    yield Variant("JPEG, 12 bits", "imagecodecs", data, refusal="12 bits")
    inks = np.dstack([RGB, GREY // 2])
    data = file_of(Image.fromarray(inks, mode="CMYK"), "JPEG", quality=100, subsampling=0)
    shown = (1 - of_levels(RGB)[..., :3]) * (1 - (GREY // 2) / 255)
    more = details({"expected": lambda: np.dstack([shown, np.ones_like(GREY)]), "tolerance": 4})
    yield Variant("JPEG, CMYK", "Pillow", data, reference="(1 - ink) (1 - black)", **more)
    data = convert(
        file_of(Image.fromarray(inks, mode="CMYK"), "TIFF"), "tif", "jpeg", "-quality", "99"
    )
    yield Variant(
        "JPEG, CMYK of IM", "ImageMagick", data, reference="(1 - ink) (1 - black)", **more
    )
    data = bytes(codecs.jpeg8_encode(255 - inks, colorspace="CMYK", outcolorspace="YCCK", level=99))
    more["tolerance"] = 8
    yield Variant("JPEG, YCCK", "imagecodecs", data, reference="(1 - ink) (1 - black)", **more)
    data = file_of(Image.fromarray(RGB), "JPEG", quality=100, subsampling=0, icc_profile=P3)
    more = details({"reference": "ImageMagick, lcms2", "expected": lambda: by_profile(data, "jpg")})
    yield Variant("JPEG, ICC P3", "Pillow", data, tolerance=2, **more)


def _cjpeg(ppm: bytes, *options: str) -> bytes:
    return run("cjpeg", "-quality", "92", *options, stdin=ppm)
