"""Uploads that mean no good, by name: files, forms and whole requests."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from tests.service.pictures import animated, bomb, picture, png_chunk

PNG, JPEG = picture("PNG", 64, 48), picture("JPEG", 64, 48)
WEBP, TIFF = picture("WEBP", 64, 48), picture("TIFF", 64, 48)
GIF, BMP, JPEG2000 = (picture(kind, 64, 48) for kind in ("GIF", "BMP", "JPEG2000"))
HEIC = (Path(__file__).parents[1] / "worker/images/files/rgb.heic").read_bytes()
SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = png_chunk(b"IEND", b"")


def _header(width: int, height: int, depth: int = 8, color: int = 2) -> bytes:
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))


def _png(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks)


def _pixels(size: int) -> bytes:
    return png_chunk(b"IDAT", zlib.compress(bytes(size)))


def _frame(width: int, height: int) -> bytes:
    """A JPEG whose frame header says these sides."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../etc/cron.d/x", bytes(1_000_000))
    return buffer.getvalue()


def _other(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def _fuzzed(data: bytes, seed: int) -> bytes:
    """The file with its structure shot through: every eighth byte is another."""
    noise = random.Random(seed)
    start = 8
    changed = bytearray(data)
    for position in range(start, len(changed), 8):
        changed[position] ^= noise.randrange(1, 256)
    return bytes(changed)


def _tiff_loop() -> bytes:
    """A directory whose next one is itself."""
    entry = struct.pack("<HHII", 256, 4, 1, 1)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8)


def _codestream(width: int, height: int) -> bytes:
    """A JPEG 2000 whose codestream says these sides (ITU-T T.800, A.5.1)."""
    at = JPEG2000.index(b"\xff\x51") + 6
    sides = struct.pack(">II", width, height)
    # The header box around says them too.
    return (JPEG2000[:at] + sides + JPEG2000[at + 8 :]).replace(
        b"ihdr" + struct.pack(">II", 48, 64), b"ihdr" + sides
    )


def _heic(box: bytes, offset: int, value: bytes) -> bytes:
    """A HEIC with other bytes so far behind the name of a box."""
    at = HEIC.index(box) + 4 + offset
    return HEIC[:at] + value + HEIC[at + len(value) :]


def _avif(transfer: int) -> bytes:
    """An AVIF whose colours follow this curve (ITU-T H.273)."""
    data = picture("AVIF", 64, 48)
    at = data.index(b"nclx") + 6
    return data[:at] + struct.pack(">H", transfer) + data[at + 2 :]


FILES: Mapping[str, bytes] = {
    # Bombs: small files of many pixels.
    "png of 20000 x 20000": bomb(20_000, 20_000),
    "png of 60000 x 60000, one row of pixels": _png(_header(60_000, 60_000), _pixels(100), END),
    "png of 2^31 x 2^31": _png(_header(2**31 - 1, 2**31 - 1), _pixels(100), END),
    "png of 2^32 x 1": _png(_header(2**32 - 1, 1), _pixels(100), END),
    "jpeg of 65500 x 65500": _frame(65_500, 65_500),
    "png that only the result makes too large": bomb(999, 999),
    # Cut short.
    "png that ends with half its end": PNG[:-6],
    "png of its signature alone": SIGNATURE,
    "png of half a header": PNG[:20],
    "half a png": PNG[: len(PNG) // 2],
    "half a jpeg": JPEG[: len(JPEG) // 2],
    "half a webp": WEBP[: len(WEBP) // 2],
    "half a tiff": TIFF[: len(TIFF) // 2],
    "jpeg without its end": JPEG[:-2],
    "two bytes of a jpeg": JPEG[:2],
    "webp of twelve bytes": WEBP[:12],
    "an empty file": b"",
    "one byte": b"\x89",
    # Lies about itself.
    "png with no side": _png(_header(0, 48), _pixels(100), END),
    "png without pixels": _png(_header(8, 8), END),
    "png with two headers": _png(_header(8, 8), _header(9, 9), _pixels(200), END),
    "png with its pixels first": _png(_pixels(200), _header(8, 8), END),
    "png with a wrong checksum": PNG[:29] + bytes([PNG[29] ^ 1]) + PNG[30:],
    "png chunk longer than the file": SIGNATURE + struct.pack(">I4s", 2**31 - 1, b"IHDR"),
    "jpeg with no side": _frame(0, 48),
    "jpeg without a scan": b"\xff\xd8\xff\xd9",
    "jpeg segment of length 0": b"\xff\xd8\xff\xe0\0\0" + bytes(100),
    "webp that is longer than its file": WEBP[:4] + struct.pack("<I", 2**31) + WEBP[8:],
    "webp without an image": b"RIFF" + struct.pack("<I", 4) + b"WEBP",
    "tiff directory behind the end": b"II*\0" + struct.pack("<I", 2**31),
    "tiff whose directory is its own next": _tiff_loop(),
    # More than one frame.
    "animated png": animated("PNG"),
    "animated webp": animated("WEBP"),
    "tiff of two pages": animated("TIFF"),
    # Something else under an image's name, or an image of a kind that is not taken.
    "ico": _other("ICO"),
    "a zip with a path outside": _zip(),
    "zip that is also a png": _zip() + PNG,
    "html": b"<!doctype html><script>alert(1)</script>",
    "html in front of a png": b"<script>alert(1)</script>" + PNG,
    "svg with a script": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "svg of entities": b'<!DOCTYPE x [<!ENTITY a "&b;&b;"><!ENTITY b "x">]><svg>&a;</svg>',
    "pdf": b"%PDF-1.7\n1 0 obj\n<< /OpenAction 2 0 R >>\nendobj\n",
    "elf": b"\x7fELF\x02\x01\x01" + bytes(500),
    "php": b"<?php system($_GET['c']); ?>",
    "a script of ImageMagick": b"push graphic-context\nviewbox 0 0 640 480\nfill 'url(https://x)'",
    "postscript": b"%!PS-Adobe-3.0\n(/etc/passwd) (r) file",
    "mp4": b"\0\0\0\x18ftypmp42" + bytes(500),
    "heic": b"\0\0\0\x18ftypheic" + bytes(500),
    "a photoshop file": b"8BPS\0\1" + bytes(500),
    "an hdf5 file": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "utf-16 text": "\ufeffnot an image".encode("utf-16"),
    "a megabyte of zeros": bytes(1_000_000),
    "a megabyte of noise": random.Random(1).randbytes(1_000_000),
    # The same of formats that came later.
    "gif of 65535 x 65535": GIF[:6] + struct.pack("<HH", 65_535, 65_535) + GIF[10:],
    "animated gif": animated("GIF"),
    "gif without its end": GIF[:-1],
    "half a gif": GIF[: len(GIF) // 2],
    "gif of nothing": b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b";",
    "gif of unknown blocks": GIF[:13] + bytes(500),
    "bmp of 60000 x 60000": BMP[:18] + struct.pack("<ii", 60_000, 60_000) + BMP[26:],
    "bmp of -60000 x 60000": BMP[:18] + struct.pack("<ii", -60_000, 60_000) + BMP[26:],
    "bmp of 2^31 x 1": BMP[:18] + struct.pack("<ii", 2**31 - 1, 1) + BMP[26:],
    "half a bmp": BMP[: len(BMP) // 2],
    "bmp of its head alone": BMP[:14],
    "bmp with a head of 2^31 bytes": BMP[:14] + struct.pack("<I", 2**31 - 1) + BMP[18:],
    "jpeg 2000 of 2^31 x 2^31": _codestream(2**31 - 1, 2**31 - 1),
    "jpeg 2000 with no side": _codestream(0, 0),
    "half a jpeg 2000": JPEG2000[: len(JPEG2000) // 2],
    "jpeg 2000 without a codestream": JPEG2000[:32],
    "jpeg 2000 box of length 2": JPEG2000[:12] + struct.pack(">I4s", 2, b"ftyp") + JPEG2000[12:],
    "heic of 60000 x 60000": _heic(b"ispe", 4, struct.pack(">II", 60_000, 60_000)),
    "heic of 2^32 x 2^32": _heic(b"ispe", 4, b"\xff" * 8),
    "heic with no side": _heic(b"ispe", 4, bytes(8)),
    "heic whose image is an item that is not there": _heic(b"pitm", 4, b"\x7f\xff"),
    "heic with properties that are not there": _heic(b"ipma", 11, b"\x7f\x7f\x7f"),
    "heic whose pixels lie behind its end": _heic(b"iloc", 16, b"\x7f\xff\xff\xff"),
    "heic box of length 2": HEIC[:28] + struct.pack(">I4s", 2, b"meta") + HEIC[36:],
    "heic without pixels": HEIC[: HEIC.index(b"mdat") - 4],
    "half a heic": HEIC[: len(HEIC) // 2],
    "avif in HDR": _avif(16),
    "avif of colours that are not there": _avif(99),
    "tiff of a camera": TIFF[:8] + b"CR\2\0" + TIFF[12:],
    "png with no such colours": PNG[:33] + png_chunk(b"cICP", bytes((99, 13, 0, 1))) + PNG[33:],
    # Damaged at random.
    **{f"fuzzed png {seed}": _fuzzed(PNG, seed) for seed in range(4)},
    **{f"fuzzed webp {seed}": _fuzzed(WEBP, seed) for seed in range(2)},
    **{f"fuzzed tiff {seed}": _fuzzed(TIFF, seed) for seed in range(2)},
    "jpeg of noise behind its first marker": b"\xff\xd8\xff" + random.Random(2).randbytes(5000),
}


# As large as an upload may be by default, less what the form around takes.
LARGEST = 50 * 2**20 - 4096


def _filled(start: bytes, piece: bytes, end: bytes = b"") -> Callable[[], bytes]:
    """`start`, then `piece` as often as there is room, then `end`."""
    return lambda: start + piece * ((LARGEST - len(start) - len(end)) // len(piece)) + end


def _tiff_of_strips() -> bytes:
    """Twelve million offsets and as many byte counts, which are the same bytes."""
    count = 12_000_000
    entries = [(256, 3, 1, 9), (257, 3, 1, 9), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 3, count, 200), (277, 3, 1, 1), (279, 3, count, 200)]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)
    return head.ljust(200, b"\0") + bytes(LARGEST - 200)


def _tiff_of_directories() -> bytes:
    """Directories of as many tags as can be, each followed by the next."""
    size = 2 + 12 * 65_535 + 4
    entries = struct.pack("<HHII", 254, 4, 1, 1) * 65_535
    pages = [
        struct.pack("<H", 65_535) + entries + struct.pack("<I", 8 + size * (number + 1))
        for number in range(LARGEST // size - 1)
    ]
    return (b"II*\0" + struct.pack("<I", 8) + b"".join(pages)).ljust(LARGEST, b"\0")


LARGE: Mapping[str, Callable[[], bytes]] = {
    "jpeg scan of stuffed bytes": _filled(b"\xff\xd8\xff\xda\0\2", b"\xff\0"),
    "jpeg scan of restart markers": _filled(b"\xff\xd8\xff\xda\0\2", b"\xff\xd0"),
    "jpeg of filling": _filled(b"\xff\xd8", b"\xff"),
    "jpeg of empty segments": _filled(b"\xff\xd8", b"\xff\xe0\0\2"),
    "jpeg of markers alone": _filled(b"\xff\xd8", b"\xff\1"),
    "jpeg of EXIF segments": _filled(
        b"\xff\xd8",
        b"\xff\xe1\xff\xffExif\0\0MM\0*" + struct.pack(">IH", 8, 4096) + bytes(65_513),
    ),
    "webp of empty chunks": lambda: (
        b"RIFF"
        + struct.pack("<I", LARGEST // 8 * 8 - 8)
        + b"WEBP"
        + bytes(4)
        + b"junk\0\0\0\0" * (LARGEST // 8 - 2)
    ),
    "png of empty chunks": _filled(_png(_header(8, 8), _pixels(200)), png_chunk(b"teXt", b""), END),
    "avif of empty boxes": _filled(b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", b"\0\0\0\x08free"),
    "heic of empty boxes": _filled(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", b"\0\0\0\x08free"),
    "jpeg 2000 of empty boxes": _filled(JPEG2000[:12], b"\0\0\0\x08free"),
    "gif of empty comments": _filled(GIF[:13], b"!\xfe\0"),
    "gif of short pieces": _filled(GIF[:13] + b"!\xfe", b"\1x"),
    "bmp of zeros": _filled(b"BM" + struct.pack("<IHHI", 2**25, 0, 0, 2**24), b"\0"),
    "tiff of twelve million strips": _tiff_of_strips,
    "tiff of large directories": _tiff_of_directories,
    "zeros": _filled(b"", b"\0"),
}
"""Files whose structure would take long to walk, made when they are asked for."""


def _part(disposition: str, content: bytes = PNG, more: str = "") -> bytes:
    return f"--x\r\nContent-Disposition: {disposition}\r\n{more}\r\n".encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    """A whole multipart body with the boundary x."""
    return b"".join(parts) + b"--x--\r\n"


IMAGE = _part('form-data; name="image"; filename="a.png"')
MULTIPART = "multipart/form-data; boundary=x"

FORMS: Mapping[str, tuple[str, bytes]] = {
    "no boundary": ("multipart/form-data", form(IMAGE)),
    "another boundary": ("multipart/form-data; boundary=y", form(IMAGE)),
    "an empty boundary": ("multipart/form-data; boundary=", form(IMAGE)),
    "a boundary of 500 letters": ("multipart/form-data; boundary=" + "x" * 500, form(IMAGE)),
    "an image without a form": ("image/png", PNG),
    "an url-encoded form": ("application/x-www-form-urlencoded", b"image=AAAA"),
    "multipart of another kind": ("multipart/mixed; boundary=x", form(IMAGE)),
    "a form in a form": (
        MULTIPART,
        form(
            _part(
                'form-data; name="image"',
                b"--y\r\nContent-Disposition: file; filename=a.png\r\n\r\n" + PNG + b"\r\n--y--",
                "Content-Type: multipart/mixed; boundary=y\r\n",
            )
        ),
    ),
    "two images": (MULTIPART, form(IMAGE, IMAGE)),
    "an image twice, once as text": (
        MULTIPART,
        form(_part('form-data; name="image"', b"text"), IMAGE),
    ),
    "the same field twice": (
        MULTIPART,
        form(IMAGE, *(_part('form-data; name="scale"', b"2") for _ in range(2))),
    ),
    "an unknown field": (MULTIPART, form(IMAGE, _part('form-data; name="__class__"', b"x"))),
    "a field that is a file": (
        MULTIPART,
        form(IMAGE, _part('form-data; name="scale"; filename="s"', b"2")),
    ),
    "a part without a name": (MULTIPART, form(_part("form-data"), IMAGE)),
    "a part without a disposition": (MULTIPART, form(b"--x\r\n\r\nvalue\r\n", IMAGE)),
    "a thousand fields": (
        MULTIPART,
        form(*(_part(f'form-data; name="f{n}"', b"1") for n in range(1000)), IMAGE),
    ),
    "a field of a megabyte": (
        MULTIPART,
        form(_part('form-data; name="prompt"', b"x" * 1_000_000), IMAGE),
    ),
    "a part with a header of a megabyte": (
        MULTIPART,
        form(_part('form-data; name="image"; filename="a"', PNG, "X: " + "x" * 1_000_000 + "\r\n")),
    ),
    "a part with ten thousand headers": (
        MULTIPART,
        form(_part('form-data; name="image"; filename="a"', PNG, "X: y\r\n" * 10_000)),
    ),
    "a number with a NUL": (MULTIPART, form(IMAGE, _part('form-data; name="scale"', b"2\0"))),
    "a field name with a NUL": (MULTIPART, form(IMAGE, _part('form-data; name="sc\0ale"', b"2"))),
    "a number that is no text": (
        MULTIPART,
        form(IMAGE, _part('form-data; name="seed"', b"\xff\xfe\xfd")),
    ),
    "a seed of a thousand digits": (
        MULTIPART,
        form(IMAGE, _part('form-data; name="seed"', b"9" * 1000)),
    ),
    "not a number": (MULTIPART, form(IMAGE, _part('form-data; name="scale"', b"nan"))),
    "a path for a preset": (
        MULTIPART,
        form(IMAGE, _part('form-data; name="preset"', b"../../etc/passwd")),
    ),
    "a form that never ends": (MULTIPART, IMAGE),
    "a form of its end alone": (MULTIPART, b"--x--\r\n"),
    "an empty body": (MULTIPART, b""),
    "line feeds for line ends": (MULTIPART, form(IMAGE).replace(b"\r\n", b"\n")),
    # Names that would lead elsewhere, on files that are refused for what they are.
    **{
        f"a file named {name!r}": (
            MULTIPART,
            form(_part(f'form-data; name="image"; filename="{name}"', b"no image")),
        )
        for name in (
            "../../../etc/passwd",
            "/etc/passwd",
            "C:\\\\windows\\\\system32",
            "a\0.png",
            "x" * 5000,
            "; rm -rf ~",
            "{{7*7}}",
            "%00%2e%2e%2f",
        )
    },
}


def _post(*lines: str, body: bytes = b"") -> bytes:
    head = ["POST /upscale HTTP/1.1", "Host: localhost", "Connection: close", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


UPLOAD = form(IMAGE)
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(UPLOAD), UPLOAD)
TYPE = f"Content-Type: {MULTIPART}"
REQUESTS: Mapping[str, bytes] = {
    "a length above the limit": _post("Content-Length: 99999999", TYPE),
    "a length of 400 digits": _post("Content-Length: " + "9" * 400, TYPE),
    "a length below zero": _post("Content-Length: -5", TYPE),
    "two lengths": _post("Content-Length: 5", "Content-Length: 6", TYPE, body=b"--x--"),
    # A good form, were it framed in one way.
    "a length and chunks": _post(
        f"Content-Length: {len(CHUNKS)}", "Transfer-Encoding: chunked", TYPE, body=CHUNKS
    ),
    "chunks in HTTP/1.0": _post("Transfer-Encoding: chunked", TYPE, body=CHUNKS).replace(
        b"HTTP/1.1", b"HTTP/1.0", 1
    ),
    "an unknown transfer encoding": _post("Transfer-Encoding: gzip", TYPE, body=b"xxx"),
    "a chunk of a wrong length": _post("Transfer-Encoding: chunked", TYPE, body=b"zz\r\nxx\r\n"),
    "a chunk of 2^70 bytes": _post("Transfer-Encoding: chunked", TYPE, body=b"f" * 20 + b"\r\n"),
    "a header of 60 KB": _post("X-Large: " + "x" * 60_000, TYPE),
    "500 headers": _post(*(f"X-{n}: y" for n in range(500)), TYPE),
    "a target of 20 KB": _post(TYPE).replace(b"/upscale", b"/upscale?" + b"x" * 20_000),
    "parameters in the target": _post(TYPE).replace(b"/upscale", b"/upscale?scale=2"),
    "a header with a line break": _post("X: a\r\n\tb\x00", TYPE),
    "a request without a host": _post(TYPE).replace(b"Host: localhost\r\n", b""),
    "an idempotency key of spaces": _post("Idempotency-Key: a b", "Content-Length: 0", TYPE),
    "a compressed body": _post(
        "Content-Encoding: gzip", f"Content-Length: {len(form(IMAGE))}", TYPE, body=form(IMAGE)
    ),
    "a path outside": _post(TYPE).replace(b"/upscale", b"/../../etc/passwd"),
    "no http at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + bytes(200) + b"\r\n\r\n",
    # Slow ones: what there is comes, and then nothing.
    "a head that stops": _post(TYPE)[:60],
    "a body that stops": _post("Content-Length: 90000", TYPE, body=IMAGE[:100]),
    "a body that never begins": _post("Content-Length: 90000", TYPE),
    "chunks that stop": _post("Transfer-Encoding: chunked", TYPE, body=b"5\r\n--x\r\n\r\n"),
}
