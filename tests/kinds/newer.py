"""WebP, AVIF, HEIC and JPEG 2000; GIF and BMP."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.kinds.sources import (
    GREY,
    GREY16,
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
)
from tests.kinds.tools import Floats, convert, made, magick, package, run, written
from tests.worker.image_files import file_of, png_of


def newer() -> Iterator[Variant]:
    for family in (_webp, _avif, _heic, _gif, _bmp, _jpeg2000):
        yield from family()


def _webp() -> Iterator[Variant]:
    source = file_of(Image.fromarray(RGBA))
    data = file_of(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True)
    yield Variant("WebP, lossless, opacity", "Pillow", data, **as_written(RGBA))
    data = convert(source, "png", "webp", "-quality", "95")
    yield Variant(
        "WebP, lossy, opacity", "ImageMagick", data, tolerance=8, **by_magick(data, "webp")
    )
    data = file_of(Image.fromarray(RGB).quantize(8).convert("RGB"), "WEBP", lossless=True)
    yield Variant("WebP, lossless, 8 colours", "Pillow", data, **by_magick(data, "webp"))
    data = file_of(Image.fromarray(RGB), "WEBP", lossless=True, icc_profile=P3)
    p3 = details({"reference": "the standards' arithmetic", "expected": lambda: p3_as_srgb(RGB)})
    yield Variant("WebP, ICC P3", "Pillow", data, tolerance=2, **p3)
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    options = {"save_all": True, "append_images": frames[1:], "lossless": True}
    data = file_of(frames[0], "WEBP", **options)
    yield Variant("WebP, animated", "Pillow", data, refusal="page=1 takes the first")
    yield Variant("WebP, animated, page=1", "Pillow", data, page=1, **as_written(RGB))


def _avifenc(data: bytes, *options: str) -> bytes:
    return made("avifenc", data, "png", "avif", "-s", "9", *options)


def _avifdec(data: bytes) -> dict[str, Any]:
    def expected() -> Floats:
        return magick(made("avifdec", data, "avif", "png", "--depth", "16"), "png")

    return {"reference": "avifdec", "expected": expected, "tolerance": 6}


LOSSLESS = ("--lossless",)
FINE = ("--min", "0", "--max", "4")


def _avif() -> Iterator[Variant]:
    by = "avifenc"
    for name, depth, options in (
        ("10 bits, 4:4:4", 16, ("-d", "10", "-y", "444", *FINE)),
        ("12 bits, 4:4:4", 16, ("-d", "12", "-y", "444", *FINE)),
        ("12 bits, 4:2:0", 16, ("-d", "12", "-y", "420", *FINE)),
        ("10 bits, grey", 16, ("-d", "10", "-y", "400", *FINE)),
        ("8 bits, limited range", 8, ("-r", "limited", "-y", "444", *FINE)),
        ("10 bits, limited range", 16, ("-d", "10", "-r", "limited", "-y", "444", *FINE)),
        ("8 bits, grey, limited range", 8, ("-r", "limited", "-y", "400", *FINE)),
        ("lossless by identity", 8, LOSSLESS),
        ("BT.709 matrix", 8, ("--cicp", "1/13/1", "-y", "444", *FINE)),
    ):
        data = _avifenc(PNG16 if depth == 16 else PNG, *options)
        yield Variant(f"AVIF, {name}", by, data, depth=depth, **_avifdec(data))
    # avifdec does not turn.
    for name, turn, levels in (
        ("turned by irot", ("--irot", "1"), np.rot90(RGB)),
        ("mirrored by imir", ("--imir", "0"), RGB[::-1]),
    ):
        data = _avifenc(PNG, *turn, "-y", "444", *FINE)
        yield Variant(f"AVIF, {name}", by, data, **{**as_written(levels), "tolerance": 4})
    data = _avifenc(png_of(RGBA16, bits=16), "-d", "10", "-y", "444", *FINE)
    yield Variant("AVIF, 10 bits, opacity", by, data, depth=16, **_avifdec(data))
    data = _avifenc(file_of(Image.fromarray(RGBA)), "-p", "-y", "444", *FINE)
    more = details({**as_written(RGBA), "tolerance": 7})
    yield Variant("AVIF, premultiplied", by, data, **more)
    for name, transfer in (("PQ", 16), ("HLG", 18)):
        data = _avifenc(PNG16, "-d", "10", "--cicp", f"9/{transfer}/9")
        yield Variant(f"AVIF, 10 bits, {name}", by, data, refusal=f"HDR ({name})")
    p3 = details({"reference": "the standards' arithmetic", "expected": lambda: p3_as_srgb(RGB16)})
    data = _avifenc(PNG16, "-d", "10", "-y", "444", "--cicp", "12/13/6", *FINE)
    yield Variant("AVIF, 10 bits, CICP P3", by, data, depth=16, tolerance=6, **p3)
    data = _avifenc(file_of(Image.fromarray(RGB), icc_profile=P3), "-y", "444", *FINE)
    with_profile = made("avifdec", data, "avif", "png", "--depth", "16")
    more = details(
        {"reference": "avifdec, lcms2", "expected": lambda: by_profile(with_profile, "png")}
    )
    yield Variant("AVIF, ICC P3", by, data, tolerance=5, **more)
    large = np.tile(RGB, (4, 4, 1))
    data = _avifenc(file_of(Image.fromarray(large)), "-y", "444", "--grid", "2x2", *FINE)
    yield Variant("AVIF, grid", by, data, **_avifdec(data))
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    options_ = details({"save_all": True, "append_images": frames[1:], "quality": 100})
    data = file_of(frames[0], "AVIF", subsampling="4:4:4", **options_)
    yield Variant("AVIF sequence", "Pillow", data, refusal="page=1 takes the first")
    yield Variant(
        "AVIF sequence, page=1", "Pillow", data, page=1, **{**as_written(RGB), "tolerance": 5}
    )


def _heic() -> Iterator[Variant]:
    heif = package("pillow_heif")

    def encoded(levels: np.ndarray[Any, Any], mode: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        size = levels.shape[1::-1]
        image = heif.from_bytes(mode, size, np.ascontiguousarray(levels).tobytes())
        image.save(buffer, quality=-1, chroma=444, matrix_coefficients=0, **options)
        return buffer.getvalue()

    try:
        data = encoded(RGB, "RGB")
    except RuntimeError as error:
        raise SystemExit(f"pillow-heif writes no HEIC here: {error}") from error
    by = "pillow-heif"
    yield Variant("HEIC, lossless", by, data, tolerance=1, **as_written(RGB))
    data = encoded(RGB16, "RGB;16")
    yield Variant("HEIC, 10 or 12 bits", by, data, depth=16, tolerance=2, **as_written(RGB16))
    data = encoded(RGBA, "RGBA")
    yield Variant("HEIC, opacity", by, data, tolerance=1, **as_written(RGBA))
    data = encoded(GREY, "L")
    yield Variant("HEIC, grey", by, data, tolerance=1, **as_written(GREY))
    for name, transfer in (("PQ", 16), ("HLG", 18)):
        data = encoded(RGB16, "RGB;16", color_primaries=9, transfer_characteristics=transfer)
        yield Variant(f"HEIC, {name}", by, data, refusal=f"HDR ({name})")
    data = encoded(RGB, "RGB", color_primaries=12, transfer_characteristics=13)
    p3 = details({"reference": "the standards' arithmetic", "expected": lambda: p3_as_srgb(RGB)})
    yield Variant("HEIC, CICP P3", by, data, tolerance=2, **p3)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(RGB, "RGB", exif=exif.tobytes())
    yield Variant("HEIC, turned", by, data, tolerance=1, **as_written(np.rot90(RGB, -1)))


def _gif() -> Iterator[Variant]:
    by = "ImageMagick"
    data = convert(PNG, "png", "gif", "-interlace", "GIF")
    yield Variant("GIF, interlaced", by, data, **by_magick(data, "gif"))
    data = convert(PNG, "png", "gif87", "-colors", "7")
    yield Variant("GIF87a, 7 colours", by, data, **by_magick(data, "gif"))
    plain = convert(PNG, "png", "gif", "-colors", "4")
    # The global palette moves behind the image's head.
    head = 13 + 3 * 4
    at = plain.index(b",", head)
    flags = plain[at + 9] | 0x80 | (plain[10] & 7)
    moved = plain[at : at + 9] + bytes([flags]) + plain[13:head] + plain[at + 10 :]
    data = plain[:10] + bytes([plain[10] & 0x78]) + plain[11:13] + plain[head:at] + moved
    yield Variant("GIF, local palette", "by hand", data, **by_magick(plain, "gif"))
    data = convert(PNG, "png", "gif", "-transparent", "#000000", "-fuzz", "20%")
    yield Variant("GIF, transparent colour", by, data, **by_magick(data, "gif"))
    small = convert(file_of(Image.fromarray(RGB[8:24, 8:40])), "png", "gif", "-colors", "8")
    at = small.index(b",", 13 + 3 * 8)
    screen = struct.pack("<HH", WIDTH, HEIGHT)
    data = small[:6] + screen + small[10 : at + 1] + struct.pack("<HH", 8, 8) + small[at + 5 :]

    def placed() -> Floats:
        canvas = np.zeros((HEIGHT, WIDTH, 4))
        canvas[8:24, 8:40] = magick(small, "gif")
        return canvas

    more = details({"reference": "ImageMagick, placed", "expected": placed})
    yield Variant("GIF, image smaller than its screen", "by hand", data, **more)
    data = small[:6] + bytes(4) + small[10:]
    yield Variant("GIF, screen of 0 x 0", "by hand", data, **by_magick(small, "gif"))
    frames = [Image.fromarray(RGB).quantize(64), Image.fromarray(RGB[::-1]).quantize(64)]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield Variant("GIF, animated", "Pillow", data, refusal="page=1 takes the first")
    more = by_magick(data, "gif")
    yield Variant("GIF, animated, page=1", "Pillow", data, page=1, **more)
    yield Variant("GIF, page=2", "Pillow", data, page=2, refusal="page must be at most 1")


def _bmp() -> Iterator[Variant]:
    by = "ImageMagick"
    for name, target, options in (
        ("RLE8", "bmp3", ("-colors", "50", "-type", "Palette", "-compress", "RLE")),
        ("24 bits", "bmp3", ()),
        ("OS/2", "bmp2", ("-type", "TrueColor")),
        ("1 bit", "bmp3", ("-monochrome",)),
        ("4 bits", "bmp3", ("-colors", "12", "-type", "Palette")),
        ("16 bits, 5-6-5", "bmp", ("-define", "bmp:subtype=RGB565")),
        ("16 bits, 5-5-5", "bmp", ("-define", "bmp:subtype=RGB555")),
    ):
        data = convert(PNG, "png", target, *options)
        yield Variant(f"BMP, {name}", by, data, tolerance=4, **by_magick(data, "bmp"))
    data = convert(file_of(Image.fromarray(RGBA)), "png", "bmp")
    yield Variant("BMP, 32 bits, opacity", by, data, **by_magick(data, "bmp"))
    plain = file_of(Image.fromarray(RGB), "BMP")
    start = struct.unpack_from("<I", plain, 10)[0]
    rows = plain[start:]
    size = len(rows) // HEIGHT
    turned = b"".join(rows[size * y : size * (y + 1)] for y in reversed(range(HEIGHT)))
    data = plain[:22] + struct.pack("<i", -HEIGHT) + plain[26:start] + turned
    yield Variant("BMP, top row first", "by hand", data, **as_written(RGB))


def _opj(data: bytes, source: str, target: str, *options: str) -> bytes:
    with written(data, source) as path:
        out = path.with_name(f"out.{target}")
        run("opj_compress", "-i", path, "-o", out, "-n", "3", *options)
        return out.read_bytes()


def _jpeg2000() -> Iterator[Variant]:
    by = "opj_compress"
    for name, source, levels, depth, options in (
        ("8 bits", PNG, RGB, 8, ()),
        ("tiles", PNG, RGB, 8, ("-t", "16,16")),
        ("grey of 16 bits", png_of(GREY16, bits=16), GREY16, 16, ()),
        ("opacity", file_of(Image.fromarray(RGBA)), RGBA, 8, ()),
    ):
        data = _opj(source, "png", "jp2", *options)
        yield Variant(f"JPEG 2000, {name}", by, data, depth=depth, **as_written(levels))
    refusal = "channels of 16 bits"
    data = _opj(PNG16, "png", "jp2")
    yield Variant("JPEG 2000, colours of 16 bits", by, data, refusal=refusal)
    data = _opj(PNG, "png", "j2k")
    yield Variant("JPEG 2000, codestream alone", by, data, **as_written(RGB))
    data = _opj(PNG, "png", "jp2", "-I", "-r", "4")
    yield Variant("JPEG 2000, lossy", by, data, tolerance=8, **as_written(RGB))
    data = file_of(Image.fromarray(RGB).convert("YCbCr"), "JPEG2000")
    yield Variant("JPEG 2000, sYCC", "Pillow", data, tolerance=3, **as_written(RGB))
    with written(PNG, "png") as path:
        out = path.with_name("out.jxl")
        run("cjxl", path, out, "-d", "0")
        data = out.read_bytes()
    yield Variant("JPEG XL", "cjxl", data, refusal="JPEG XL image")
