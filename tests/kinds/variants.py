"""The kinds: how each is made, and what an independent decoder sees in it."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyvips
from PIL import Image

from tests.kinds.tools import Floats, convert, made, magick, of_levels, package, run, written
from tests.service.pictures import png_chunk
from tests.worker.image_files import file_of, png_of, tiff_of

WIDTH, HEIGHT = 48, 32


@dataclass(frozen=True)
class Variant:
    """A file, who made it, and either what it shows or what its refusal must name."""

    kind: str
    maker: str
    data: bytes
    reference: str = ""
    expected: Callable[[], Floats] = lambda: np.empty((0, 0, 4))
    tolerance: float = 0.51
    """Of 255 levels."""
    depth: int = 8
    page: int = 0
    refusal: str = ""


def _ramps(channels: int, top: int) -> np.ndarray[Any, Any]:
    """Smooth, and different in every corner and channel; opacity never 0."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    u, v = x / (WIDTH - 1), y / (HEIGHT - 1)
    planes = [u, v, 0.2 + 0.6 * u * v, 0.3 + 0.7 * (1 - v)][:channels]
    if channels == 2:
        planes = [u, 0.3 + 0.7 * (1 - v)]
    levels: np.ndarray[Any, Any] = np.rint(np.stack(planes, -1) * top)
    return levels.astype(np.uint8 if top < 256 else np.uint16)


RGB, RGBA, GREY = _ramps(3, 255), _ramps(4, 255), _ramps(1, 255)
RGB16, RGBA16, GREY16 = _ramps(3, 65535), _ramps(4, 65535), _ramps(1, 65535)
PNG, PNG16 = file_of(Image.fromarray(RGB)), png_of(RGB16, bits=16)


def _profile(name: str) -> bytes:
    """An ICC profile that libvips brings along."""
    black = pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb")
    profile = black.icc_transform(name, input_profile="srgb").get("icc-profile-data")
    assert isinstance(profile, bytes)
    return profile


P3, SRGB_ICC = _profile("p3"), _profile("srgb")


def _p3_as_srgb(levels: np.ndarray[Any, Any]) -> Floats:
    """Levels of Display P3 by arithmetic: its matrix to sRGB's primaries, the same curve (SMPTE EG
    432-1, IEC 61966-2-1)."""
    values = of_levels(levels)
    rgb = values[..., :3]
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09827]]
    light = np.clip(light @ np.array(matrix).T, 0, 1)
    srgb = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.concatenate([srgb, values[..., 3:]], axis=2)


def _more(values: dict[str, Any]) -> dict[str, Any]:
    return values


def _shows(levels: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What was written is what is expected."""
    return {"reference": "its source", "expected": lambda: of_levels(levels)}


def _magick(data: bytes, suffix: str, *options: str) -> dict[str, Any]:
    return {"reference": "ImageMagick", "expected": lambda: magick(data, suffix, *options)}


def _with_chunks(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    return png[:33] + b"".join(png_chunk(*chunk) for chunk in chunks) + png[33:]


def variants() -> Iterator[Variant]:
    for family in (_png, _tiff, _refused_tiff, _jpeg, _webp, _avif, _heic, _gif, _bmp, _jpeg2000):
        yield from family()


def _png() -> Iterator[Variant]:
    for bits in (1, 2, 4):
        levels = (np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH, 1) % 2**bits).astype(np.uint8)
        data = png_of(levels, bits=bits)
        yield Variant(f"PNG, grey of {bits} bits", "by hand", data, **_magick(data, "png"))
    palette = Image.fromarray(RGB).quantize(4)
    data = file_of(palette, bits=2, transparency=bytes((10, 200, 255, 99)))
    yield Variant("PNG, palette of 2 bits, tRNS", "Pillow", data, **_magick(data, "png"))
    palette = Image.fromarray(RGB).quantize(200)
    data = file_of(palette, transparency=bytes(range(55, 255)))
    yield Variant("PNG, palette of 8 bits, tRNS", "Pillow", data, **_magick(data, "png"))
    data = convert(file_of(Image.fromarray(RGBA)), "png", "png", "-interlace", "PNG")
    yield Variant("PNG, RGBA interlaced", "ImageMagick", data, **_shows(RGBA))
    data = convert(PNG16, "png", "png48", "-interlace", "PNG")
    yield Variant("PNG, 16 bits interlaced", "ImageMagick", data, depth=16, **_shows(RGB16))
    data = png_of(_ramps(2, 65535), bits=16)
    yield Variant(
        "PNG, grey of 16 bits, opacity", "by hand", data, depth=16, **_magick(data, "png")
    )
    data = _with_chunks(PNG, (b"sBIT", bytes((5, 6, 5))))
    yield Variant("PNG, sBIT 5 6 5", "by hand", data, **_magick(data, "png"))
    data = _with_chunks(png_of(RGB16, bits=16), (b"sBIT", bytes((12, 12, 12))))
    yield Variant("PNG, 16 bits, sBIT 12", "by hand", data, depth=16, **_shows(RGB16))
    for name, numbers in (("sRGB", (1, 13)), ("no statement", (2, 2))):
        data = _with_chunks(PNG16, (b"cICP", bytes((*numbers, 0, 1))))
        yield Variant(f"PNG, 16 bits, cICP {name}", "by hand", data, depth=16, **_shows(RGB16))
    data = _with_chunks(PNG16, (b"cICP", bytes((12, 13, 0, 1))))
    p3 = _more({"reference": "the standards' arithmetic", "tolerance": 0.6})
    expected = _more({"expected": lambda: _p3_as_srgb(RGB16)})
    yield Variant("PNG, 16 bits, cICP P3", "by hand", data, depth=16, **p3, **expected)
    for name, transfer in (("PQ", 16), ("HLG", 18)):
        data = _with_chunks(PNG16, (b"cICP", bytes((9, transfer, 0, 1))))
        yield Variant(f"PNG, cICP {name}", "by hand", data, refusal=f"HDR ({name})")
    data = file_of(Image.fromarray(RGB), icc_profile=P3)
    expected = _more({"expected": lambda: _p3_as_srgb(RGB), "tolerance": 2})
    p3 = _more({"reference": "the standards' arithmetic"})
    yield Variant("PNG, ICC P3", "Pillow", data, **p3, **expected)
    data = _with_chunks(PNG, (b"gAMA", struct.pack(">I", 45455)))
    yield Variant("PNG, gAMA of sRGB", "by hand", data, **_shows(RGB))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(Image.fromarray(RGB), exif=exif)
    yield Variant("PNG, eXIf turned", "Pillow", data, **_shows(np.rot90(RGB, -1)))
    yield Variant("PNG without IEND", "Pillow, cut", PNG[:-12], **_shows(RGB))
    yield Variant("PNG without its last pixels", "Pillow, cut", PNG[:-40], refusal="cut short")
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    data = file_of(frames[0], save_all=True, append_images=frames[1:])
    yield Variant("PNG, animated", "Pillow", data, refusal="page=1 takes the first")
    yield Variant("PNG, animated, page=1", "Pillow", data, page=1, **_shows(RGB))


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
        more = _shows(value)
        yield Variant(f"TIFF, LZW, page={page}", "tiffcp", data, depth=depth, page=page, **more)
    yield Variant("TIFF, LZW, page=4", "tiffcp", data, page=4, refusal="page must be at most 3")
    data = _tiff_of(RGB16, byteorder=">")
    yield Variant("TIFF, 16 bits, big-endian", by, data, depth=16, **_shows(RGB16))
    data = _tiff_of(RGBA16, bigtiff=True, extrasamples=["unassalpha"])
    yield Variant("BigTIFF, 16 bits, opacity", by, data, depth=16, **_shows(RGBA16))
    data = _tiff_of(np.moveaxis(RGB16, -1, 0), planarconfig="separate", photometric="rgb")
    yield Variant("TIFF, 16 bits in planes", by, data, depth=16, **_shows(RGB16))
    data = _tiff_of(RGB, tile=(16, 16))
    yield Variant("TIFF, tiles", by, data, **_shows(RGB))
    data = made(
        "tiffcp", _tiff_of(RGB16), "tif", "tif", "-c", "zip:2", "-t", "-w", "16", "-l", "16"
    )
    yield Variant("TIFF, 16 bits, tiles, predictor", "tiffcp", data, depth=16, **_shows(RGB16))
    data = made("tiffcp", _tiff_of(RGB), "tif", "tif", "-c", "jpeg:95")
    yield Variant("TIFF, JPEG inside", "tiffcp", data, tolerance=6, **_magick(data, "tif"))
    data = made("tiffcp", _tiff_of(RGB), "tif", "tif", "-c", "packbits", "-r", "7")
    yield Variant("TIFF, PackBits, strips of 7", "tiffcp", data, **_shows(RGB))
    two_levels = file_of(Image.fromarray(RGB).convert("1"), "TIFF")
    for name, method in (("G3", "g3"), ("G3 in two dimensions", "g3:2d"), ("G4", "g4")):
        data = made("tiffcp", two_levels, "tif", "tif", "-c", method)
        yield Variant(f"TIFF, CCITT {name}", "tiffcp", data, **_magick(data, "tif"))
    data = made("tiffcp", two_levels, "tif", "tif", "-c", "g4", "-f", "lsb2msb")
    yield Variant("TIFF, G4, bits reversed", "tiffcp", data, **_magick(data, "tif"))
    premultiplied = RGBA16.astype(np.uint64)
    premultiplied[..., :3] = (premultiplied[..., :3] * premultiplied[..., 3:] + 32767) // 65535
    data = _tiff_of(premultiplied.astype(np.uint16), extrasamples=["assocalpha"])
    yield Variant("TIFF, 16 bits premultiplied", by, data, depth=16, **_shows(RGBA16))
    inks = np.dstack([RGB, GREY // 2, GREY // 2 + 100])
    data = _tiff_of(inks, photometric="separated", extrasamples=["unassalpha"])
    shown = (1 - of_levels(RGB)[..., :3]) * (1 - (GREY // 2) / 255)
    opaque = (GREY // 2 + 100) / 255
    cmyk = _more({"reference": "(1 - ink) (1 - black)"})
    more = _more({**cmyk, "expected": lambda: np.dstack([shown, opaque])})
    yield Variant("TIFF, CMYK with opacity", by, data, **more)
    data = _tiff_of(np.moveaxis(inks[..., :4], -1, 0), photometric="separated", planarconfig=2)
    more = _more({**cmyk, "expected": lambda: np.dstack([shown, np.ones_like(opaque)])})
    yield Variant("TIFF, CMYK in planes", by, data, **more)
    data = convert(PNG, "png", "tiff", "-colors", "16", "-type", "Palette", "-depth", "4")
    yield Variant("TIFF, palette", "ImageMagick", data, **_magick(data, "tif"))
    for bits in (2, 4):
        levels_ = (np.arange(WIDTH) % 2**bits).astype(np.uint8)
        packed = np.packbits((levels_[:, None] >> np.arange(bits - 1, -1, -1)) & 1)
        data = tiff_of(packed.tobytes() * 2, WIDTH, 2, photometric=0, bits=(bits,))
        white = np.tile(255 - levels_ * (255 // (2**bits - 1)), (2, 1))
        kind = f"TIFF, grey of {bits} bits, white is 0"
        yield Variant(kind, "by hand", data, **_shows(white.astype(np.uint8)))
    data = _tiff_of(RGB, extratags=[(274, 3, 1, 6, True)])
    yield Variant("TIFF, turned", by, data, **_shows(np.rot90(RGB, -1)))
    data = _tiff_of(RGB16, iccprofile=P3)
    p3 = _more({"reference": "the standards' arithmetic", "expected": lambda: _p3_as_srgb(RGB16)})
    yield Variant("TIFF, 16 bits, ICC P3", by, data, depth=16, tolerance=2, **p3)
    data = convert(PNG, "png", "tiff", "-colorspace", "YCbCr", "-compress", "none")
    yield Variant("TIFF, YCbCr", "ImageMagick", data, tolerance=3, **_shows(RGB))


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
        more = _magick(data, "jpg")
        yield Variant(f"JPEG, {name}", "cjpeg", data, tolerance=6, **more)
    data = _cjpeg(ppm)
    yield Variant("JPEG without EOI", "cjpeg, cut", data[:-2], tolerance=6, **_magick(data, "jpg"))
    yield Variant("JPEG without its last blocks", "cjpeg, cut", data[:-150], refusal="cut short")
    data = _cjpeg(ppm, "-progressive")
    yield Variant("JPEG, progressive, no EOI", "cjpeg, cut", data[:-2], refusal="cut short")
    data = bytes(codecs.ljpeg_encode(RGB[..., 0]))
    yield Variant("JPEG, lossless, grey", "imagecodecs", data, **_shows(RGB[..., :1]))
    data = bytes(codecs.jpeg_encode(RGB16 >> 4, bitspersample=12, level=95))
    yield Variant("JPEG, 12 bits", "imagecodecs", data, refusal="12 bits")
    inks = np.dstack([RGB, GREY // 2])
    data = file_of(Image.fromarray(inks, mode="CMYK"), "JPEG", quality=100, subsampling=0)
    shown = (1 - of_levels(RGB)[..., :3]) * (1 - (GREY // 2) / 255)
    more = _more({"expected": lambda: np.dstack([shown, np.ones_like(GREY)]), "tolerance": 4})
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
    more = _more({"reference": "ImageMagick, lcms2", "expected": lambda: _by_profile(data, "jpg")})
    yield Variant("JPEG, ICC P3", "Pillow", data, tolerance=2, **more)


def _by_profile(data: bytes, suffix: str) -> Floats:
    """What ImageMagick makes of a file by its profile."""
    with written(SRGB_ICC, "icc") as profile:
        return magick(data, suffix, "-intent", "relative", "-profile", str(profile))


def _cjpeg(ppm: bytes, *options: str) -> bytes:
    return run("cjpeg", "-quality", "92", *options, stdin=ppm)


def _webp() -> Iterator[Variant]:
    source = file_of(Image.fromarray(RGBA))
    data = file_of(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True)
    yield Variant("WebP, lossless, opacity", "Pillow", data, **_shows(RGBA))
    data = convert(source, "png", "webp", "-quality", "95")
    yield Variant("WebP, lossy, opacity", "ImageMagick", data, tolerance=8, **_magick(data, "webp"))
    data = file_of(Image.fromarray(RGB).quantize(8).convert("RGB"), "WEBP", lossless=True)
    yield Variant("WebP, lossless, 8 colours", "Pillow", data, **_magick(data, "webp"))
    data = file_of(Image.fromarray(RGB), "WEBP", lossless=True, icc_profile=P3)
    p3 = _more({"reference": "the standards' arithmetic", "expected": lambda: _p3_as_srgb(RGB)})
    yield Variant("WebP, ICC P3", "Pillow", data, tolerance=2, **p3)
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    options = {"save_all": True, "append_images": frames[1:], "lossless": True}
    data = file_of(frames[0], "WEBP", **options)
    yield Variant("WebP, animated", "Pillow", data, refusal="page=1 takes the first")
    yield Variant("WebP, animated, page=1", "Pillow", data, page=1, **_shows(RGB))


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
        yield Variant(f"AVIF, {name}", by, data, **{**_shows(levels), "tolerance": 4})
    data = _avifenc(png_of(RGBA16, bits=16), "-d", "10", "-y", "444", *FINE)
    yield Variant("AVIF, 10 bits, opacity", by, data, depth=16, **_avifdec(data))
    data = _avifenc(file_of(Image.fromarray(RGBA)), "-p", "-y", "444", *FINE)
    more = _more({**_shows(RGBA), "tolerance": 7})
    yield Variant("AVIF, premultiplied", by, data, **more)
    for name, transfer in (("PQ", 16), ("HLG", 18)):
        data = _avifenc(PNG16, "-d", "10", "--cicp", f"9/{transfer}/9")
        yield Variant(f"AVIF, 10 bits, {name}", by, data, refusal=f"HDR ({name})")
    p3 = _more({"reference": "the standards' arithmetic", "expected": lambda: _p3_as_srgb(RGB16)})
    data = _avifenc(PNG16, "-d", "10", "-y", "444", "--cicp", "12/13/6", *FINE)
    yield Variant("AVIF, 10 bits, CICP P3", by, data, depth=16, tolerance=6, **p3)
    data = _avifenc(file_of(Image.fromarray(RGB), icc_profile=P3), "-y", "444", *FINE)
    with_profile = made("avifdec", data, "avif", "png", "--depth", "16")
    more = _more(
        {"reference": "avifdec, lcms2", "expected": lambda: _by_profile(with_profile, "png")}
    )
    yield Variant("AVIF, ICC P3", by, data, tolerance=5, **more)
    large = np.tile(RGB, (4, 4, 1))
    data = _avifenc(file_of(Image.fromarray(large)), "-y", "444", "--grid", "2x2", *FINE)
    yield Variant("AVIF, grid", by, data, **_avifdec(data))
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    options_ = _more({"save_all": True, "append_images": frames[1:], "quality": 100})
    data = file_of(frames[0], "AVIF", subsampling="4:4:4", **options_)
    yield Variant("AVIF sequence", "Pillow", data, refusal="page=1 takes the first")
    yield Variant(
        "AVIF sequence, page=1", "Pillow", data, page=1, **{**_shows(RGB), "tolerance": 5}
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
    yield Variant("HEIC, lossless", by, data, tolerance=1, **_shows(RGB))
    data = encoded(RGB16, "RGB;16")
    yield Variant("HEIC, 10 or 12 bits", by, data, depth=16, tolerance=2, **_shows(RGB16))
    data = encoded(RGBA, "RGBA")
    yield Variant("HEIC, opacity", by, data, tolerance=1, **_shows(RGBA))
    data = encoded(GREY, "L")
    yield Variant("HEIC, grey", by, data, tolerance=1, **_shows(GREY))
    for name, transfer in (("PQ", 16), ("HLG", 18)):
        data = encoded(RGB16, "RGB;16", color_primaries=9, transfer_characteristics=transfer)
        yield Variant(f"HEIC, {name}", by, data, refusal=f"HDR ({name})")
    data = encoded(RGB, "RGB", color_primaries=12, transfer_characteristics=13)
    p3 = _more({"reference": "the standards' arithmetic", "expected": lambda: _p3_as_srgb(RGB)})
    yield Variant("HEIC, CICP P3", by, data, tolerance=2, **p3)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(RGB, "RGB", exif=exif.tobytes())
    yield Variant("HEIC, turned", by, data, tolerance=1, **_shows(np.rot90(RGB, -1)))


def _gif() -> Iterator[Variant]:
    by = "ImageMagick"
    data = convert(PNG, "png", "gif", "-interlace", "GIF")
    yield Variant("GIF, interlaced", by, data, **_magick(data, "gif"))
    data = convert(PNG, "png", "gif87", "-colors", "7")
    yield Variant("GIF87a, 7 colours", by, data, **_magick(data, "gif"))
    plain = convert(PNG, "png", "gif", "-colors", "4")
    # The global palette moves behind the image's head.
    head = 13 + 3 * 4
    at = plain.index(b",", head)
    flags = plain[at + 9] | 0x80 | (plain[10] & 7)
    moved = plain[at : at + 9] + bytes([flags]) + plain[13:head] + plain[at + 10 :]
    data = plain[:10] + bytes([plain[10] & 0x78]) + plain[11:13] + plain[head:at] + moved
    yield Variant("GIF, local palette", "by hand", data, **_magick(plain, "gif"))
    data = convert(PNG, "png", "gif", "-transparent", "#000000", "-fuzz", "20%")
    yield Variant("GIF, transparent colour", by, data, **_magick(data, "gif"))
    small = convert(file_of(Image.fromarray(RGB[8:24, 8:40])), "png", "gif", "-colors", "8")
    at = small.index(b",", 13 + 3 * 8)
    screen = struct.pack("<HH", WIDTH, HEIGHT)
    data = small[:6] + screen + small[10 : at + 1] + struct.pack("<HH", 8, 8) + small[at + 5 :]

    def placed() -> Floats:
        canvas = np.zeros((HEIGHT, WIDTH, 4))
        canvas[8:24, 8:40] = magick(small, "gif")
        return canvas

    more = _more({"reference": "ImageMagick, placed", "expected": placed})
    yield Variant("GIF, image smaller than its screen", "by hand", data, **more)
    data = small[:6] + bytes(4) + small[10:]
    yield Variant("GIF, screen of 0 x 0", "by hand", data, **_magick(small, "gif"))
    frames = [Image.fromarray(RGB).quantize(64), Image.fromarray(RGB[::-1]).quantize(64)]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield Variant("GIF, animated", "Pillow", data, refusal="page=1 takes the first")
    more = _magick(data, "gif")
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
        yield Variant(f"BMP, {name}", by, data, tolerance=4, **_magick(data, "bmp"))
    data = convert(file_of(Image.fromarray(RGBA)), "png", "bmp")
    yield Variant("BMP, 32 bits, opacity", by, data, **_magick(data, "bmp"))
    plain = file_of(Image.fromarray(RGB), "BMP")
    start = struct.unpack_from("<I", plain, 10)[0]
    rows = plain[start:]
    size = len(rows) // HEIGHT
    turned = b"".join(rows[size * y : size * (y + 1)] for y in reversed(range(HEIGHT)))
    data = plain[:22] + struct.pack("<i", -HEIGHT) + plain[26:start] + turned
    yield Variant("BMP, top row first", "by hand", data, **_shows(RGB))


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
        yield Variant(f"JPEG 2000, {name}", by, data, depth=depth, **_shows(levels))
    refusal = "channels of 16 bits"
    data = _opj(PNG16, "png", "jp2")
    yield Variant("JPEG 2000, colours of 16 bits", by, data, refusal=refusal)
    data = _opj(PNG, "png", "j2k")
    yield Variant("JPEG 2000, codestream alone", by, data, **_shows(RGB))
    data = _opj(PNG, "png", "jp2", "-I", "-r", "4")
    yield Variant("JPEG 2000, lossy", by, data, tolerance=8, **_shows(RGB))
    data = file_of(Image.fromarray(RGB).convert("YCbCr"), "JPEG2000")
    yield Variant("JPEG 2000, sYCC", "Pillow", data, tolerance=3, **_shows(RGB))
    with written(PNG, "png") as path:
        out = path.with_name("out.jxl")
        run("cjxl", path, out, "-d", "0")
        data = out.read_bytes()
    yield Variant("JPEG XL", "cjxl", data, refusal="JPEG XL image")
