"""What describes a photograph comes through, where it was taken only when asked, broken never."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import ExifTags, Image

from jobs.formats import examine
from models.parameters import MetadataChoice, OutputFormat, UpscaleParameters
from tests.worker.image_files import file_of
from worker.images import decode, metadata_of, write

FILES = Path(__file__).parent / "files"
OUTPUTS: tuple[OutputFormat, ...] = ("png", "jpeg", "webp", "tiff", "avif")
INPUTS = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")
ARTIST, COPYRIGHT, DATE = "Müller", "© Ж", "2001:02:03 04:05:06"
XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
 xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"
 xmlns:drone="http://www.dji.com/drone-dji/1.0/" drone:GpsLatitude="48.137"
 exif:GPSLatitude="48,8.2N" photoshop:City="Monaco" tiff:Orientation="6" exif:PixelXDimension="9">
<dc:title><rdf:Alt><rdf:li xml:lang="x-default">Tïtle</rdf:li></rdf:Alt></dc:title>
<xmp:Thumbnails><rdf:Alt><rdf:li>/9j/preview</rdf:li></rdf:Alt></xmp:Thumbnails>
</rdf:Description></rdf:RDF></x:xmpmeta>"""


def exif_block(order: str = "<", turn: int = 6) -> bytes:
    """Texts in UTF-8, a date, GPS, a preview's directory and a maker note, made by hand."""
    values: list[tuple[int, int, bytes]] = [
        (0x010E, 2, b"descr\0"),
        *([(0x0112, 3, struct.pack(f"{order}H", turn))] if turn else []),
        (0x011A, 5, struct.pack(f"{order}II", 300, 1)),
        (0x011B, 5, struct.pack(f"{order}II", 600, 1)),
        (0x013B, 2, ARTIST.encode() + b"\0"),
        (0x8298, 2, COPYRIGHT.encode() + b"\0"),
        (0x8769, 4, b"EXIF"),
        (0x8825, 4, b"GPS "),
    ]
    further = {
        b"EXIF": [(0x9003, 2, DATE.encode() + b"\0"), (0x927C, 7, b"maker's note")],
        b"GPS ": [(1, 2, b"N\0"), (2, 5, struct.pack(f"{order}6I", 48, 1, 8, 1, 13, 1))],
    }
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)

    def directory(tags: list[tuple[int, int, bytes]], start: int) -> bytes:
        entries, behind = struct.pack(f"{order}H", len(tags)), b""
        for tag, kind, value in tags:
            place = value.ljust(4, b"\0")
            if len(value) > 4:
                place = struct.pack(f"{order}I", start + 6 + 12 * len(tags) + len(behind))
                behind += value
            entries += struct.pack(f"{order}HHI", tag, kind, len(value) // sizes[kind]) + place
        return entries + bytes(4) + behind

    start, body = 8 + len(directory(values, 8)), b""
    for number, (tag, kind, value) in enumerate(values):
        if value in further:
            values[number] = (tag, kind, struct.pack(f"{order}I", start + len(body)))
            body += directory(further[value], start + len(body))
    return head + directory(values, 8) + body


def photograph(format: str, exif: bytes, xmp: bytes = XMP.encode()) -> bytes:
    image = Image.effect_mandelbrot((24, 16), (-2, -1, 1, 1), 50).convert("RGB")
    if format == "TIFF":
        # Pillow makes a TIFF's tags of a block, and loses what is not ASCII.
        file = file_of(image, "TIFF", tiffinfo={700: xmp, 315: ARTIST.encode()}, dpi=(300, 600))
        return file
    options: dict[str, Any] = {"exif": exif, "xmp": xmp}
    if format == "PNG":
        from PIL.PngImagePlugin import PngInfo

        texts = PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options = {"exif": exif, "pnginfo": texts}
    if format == "JPEG":
        options["exif"] = b"Exif\0\0" + exif
    if format == "AVIF":
        # Of a block that says an orientation Pillow writes the texts anew, as ASCII.
        options["exif"] = exif_block(turn=0)
    return file_of(image, format, **options)


def result(
    path: Path, data: bytes, output: OutputFormat, choice: MetadataChoice, channels: int = 3
) -> bytes:
    parameters = UpscaleParameters(metadata=choice, seed=7, scale=2, output_format=output)
    metadata = metadata_of(data, examine(data, 10**9), parameters, 48, 32)
    pixels = torch.linspace(0, 1, channels * 48 * 32).reshape(channels, 32, 48)
    sides = {"width": 48, "height": 32, "channels": channels}
    write(path, [pixels], **sides, format=output, depth=8, metadata=metadata)
    return path.read_bytes()


def looked_at(data: bytes) -> tuple[Image.Exif, dict[str, str], Any]:
    """EXIF, the texts and attributes of XMP by their names, the density."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        exif = image.getexif()
        packet = image.info.get("xmp") or exif.get(700)
        # Of EXIF's two densities Pillow takes one for both.
        is_png = image.format == "PNG"
        density = image.info.get("dpi") if is_png else (exif[282], exif[283])
    assert isinstance(packet, bytes)
    found: dict[str, str] = {}
    for element in ElementTree.fromstring(packet).iter():
        found |= {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        items = [item.text or "" for item in element.iter() if item.tag.endswith("}li")]
        found[element.tag.rpartition("}")[2]] = " ".join(items)
    return exif, found, density


def text(value: Any) -> str:
    """Pillow reads UTF-8 as Latin-1."""
    return str(value).encode("latin-1").decode()


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("format", INPUTS)
def test_what_describes_a_photograph_comes_through(
    tmp_path: Path, format: str, output: OutputFormat
) -> None:
    data = result(tmp_path / "result", photograph(format, exif_block()), output, "keep")
    exif, xmp, density = looked_at(data)
    assert text(exif[ExifTags.Base.Artist]) == ARTIST
    assert xmp["title"] == "Tïtle"
    # Those that are stored upright, and those that EXIF turns.
    wanted = (300, 600) if format in ("TIFF", "AVIF") else (600, 300)
    assert tuple(map(float, density)) == pytest.approx(wanted, abs=0.01)
    if format != "TIFF":
        assert text(exif[ExifTags.Base.Copyright]) == COPYRIGHT
        assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == DATE
    assert exif.get(ExifTags.Base.Orientation, 1) == 1
    sizes = exif.get_ifd(ExifTags.IFD.Exif)
    assert (sizes[ExifTags.Base.ExifImageWidth], sizes[ExifTags.Base.ExifImageHeight]) == (48, 32)
    assert ExifTags.Base.MakerNote not in sizes
    assert decode(data, 10_000).size == (48, 32)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("format", INPUTS)
def test_where_it_was_taken_comes_through_only_with_all(
    tmp_path: Path, format: str, output: OutputFormat
) -> None:
    source = photograph(format, exif_block())
    for choice in ("keep", "all"):
        data = result(tmp_path / "result", source, output, choice)
        exif, xmp, _ = looked_at(data)
        has_all = choice == "all"
        if format != "TIFF":
            assert bool(exif.get_ifd(ExifTags.IFD.GPSInfo)) == has_all
        assert ("City" in xmp, "GPSLatitude" in xmp) == (has_all, has_all)
        # Not in any case: what is of no known kind, previews, sizes.
        assert not xmp.keys() & {"GpsLatitude", "Thumbnails", "Orientation", "PixelXDimension"}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_result_says_how_it_was_made(tmp_path: Path, output: OutputFormat, channels: int) -> None:
    source = file_of(Image.new("RGB", (24, 16)))
    data = result(tmp_path / "result", source, output, "keep", channels)
    exif, xmp, _ = looked_at(data)
    assert xmp["CreatorTool"] == exif[ExifTags.Base.Software]
    assert xmp["CreatorTool"].startswith("stablesr-server ")
    wanted = {"preset": "tiny", "seed": "7", "scale": "2.0", "sampler": "ddpm"}
    assert wanted.items() <= xmp.items()
    assert {"steps", "fidelity_weight"} <= xmp.keys()
    assert decode(data, 10_000).size == (48, 32)


@pytest.mark.parametrize("output", OUTPUTS)
def test_nothing_is_left_of_it_by_default(tmp_path: Path, output: OutputFormat) -> None:
    source, bare = photograph("JPEG", exif_block()), file_of(Image.new("RGB", (24, 16)))
    data = result(tmp_path / "result", source, output, "strip")
    assert data == result(tmp_path / "result", bare, output, "strip")
    assert UpscaleParameters().metadata == "strip"


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_same_request_gives_the_same_bytes(tmp_path: Path, output: OutputFormat) -> None:
    source = photograph("JPEG", exif_block())
    first, second = (result(tmp_path / name, source, output, "all") for name in "ab")
    assert first == second


def test_big_endian_blocks_say_the_same_as_little_endian_ones() -> None:
    parameters = UpscaleParameters(metadata="all", seed=1)
    little, big = (
        metadata_of(data, examine(data, 10**9), parameters, 9, 9)
        for data in (photograph("PNG", exif_block(order)) for order in "<>")
    )
    assert little is not None
    assert little == big


BROKEN = {
    "cut off": exif_block()[:60],
    "values behind the end": exif_block()[:130],
    "a wrong offset": exif_block().replace(struct.pack("<I", 8), struct.pack("<I", 1 << 30), 1),
    "no such order": b"XX" + exif_block()[2:],
    "a directory that is its own": exif_block()[:8] + b"\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0" * 2,
    "a text in numbers": exif_block().replace(b"\x3b\x01\2\0", b"\x3b\x01\x0c\0"),
    "nothing": b"",
}
BROKEN_XMP = {
    "no xml": b"\xff\xfe\0 no XML",
    "a document type": b'<!DOCTYPE a [<!ENTITY b "c">]>' + XMP.replace("Monaco", "&b;").encode(),
    "an entity": XMP.replace("Monaco", "&b;").encode(),
    "without rdf": b"<a/>",
    "deep": b"<a>" * 5000 + b"</a>" * 5000,
    "long": XMP.replace("Monaco", "M" * 10_000_000).encode(),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("block", BROKEN.values(), ids=BROKEN)
def test_broken_exif_costs_no_more_than_itself(
    tmp_path: Path, block: bytes, output: OutputFormat
) -> None:
    data = result(tmp_path / "result", photograph("WEBP", block), output, "all")
    assert looked_at(data)[1]["title"] == "Tïtle"
    assert decode(data, 10_000).size == (48, 32)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("packet", BROKEN_XMP.values(), ids=BROKEN_XMP)
def test_broken_xmp_costs_no_more_than_itself(
    tmp_path: Path, packet: bytes, output: OutputFormat
) -> None:
    source = photograph("WEBP", exif_block(), packet)
    data = result(tmp_path / "result", source, output, "keep")
    exif, xmp, _ = looked_at(data)
    assert text(exif[ExifTags.Base.Artist]) == ARTIST
    assert xmp["seed"] == "7"
    assert "title" not in xmp


def test_a_result_says_what_of_its_metadata_was_dropped() -> None:
    parameters = UpscaleParameters(metadata="keep", seed=1)
    for source, dropped in (
        (photograph("WEBP", exif_block()), ()),
        (photograph("WEBP", BROKEN["cut off"]), ("exif",)),
        (photograph("WEBP", exif_block(), b"<a>"), ("xmp",)),
    ):
        metadata = metadata_of(source, examine(source, 10**9), parameters, 9, 9)
        assert metadata is not None
        assert metadata.faults == dropped


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "a.avif", "rgb.heic"])
def test_exiftool_finds_in_a_result_what_it_wrote_into_the_input(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "rgb.heic":
        shutil.copy(FILES / name, path)
    else:
        Image.new("RGB", (24, 16), (9, 90, 200)).save(path)
    wanted = {
        **{"IFD0:Artist": ARTIST, "IFD0:Copyright": COPYRIGHT, "ExifIFD:DateTimeOriginal": DATE},
        **{"IFD0:ImageDescription": "grüße", "XMP-dc:Title": "Tïtle", "IFD0:XResolution": 300},
        **{"IFD0:YResolution": 300, "ExifIFD:UserComment": "naïve", "ExifIFD:LensModel": "Elmar"},
    }
    wanted["IFD0:ResolutionUnit"] = "inches"
    where = {"GPS:GPSLatitude": "48.1", "XMP-exif:GPSLatitude": "48.1", "XMP-photoshop:City": "Ulm"}
    options = [f"-{tag}={value}" for tag, value in {**wanted, **where}.items()]
    _exiftool("-overwrite_original", "-GPS:GPSLatitudeRef=N", *options, str(path))
    has_iptc = name in ("a.jpg", "a.tif")
    if has_iptc:
        iptc = ["-IPTC:ObjectName=Name", "-IPTC:City=Ulm", "-IPTC:Keywords=one"]
        _exiftool("-overwrite_original", *iptc, "-IPTC:Keywords=two", str(path))
    for output in OUTPUTS:
        for choice in ("keep", "all"):
            target = tmp_path / f"result.{output}"
            result(target, path.read_bytes(), output, choice)
            [found] = json.loads(_exiftool("-json", "-G1", "-a", str(target)))
            assert {tag: found.get(tag) for tag in wanted} == wanted
            assert "ExifTool:Warning" not in found
            assert any("GPS" in tag for tag in found) == (choice == "all")
            assert any("City" in tag for tag in found) == (choice == "all")
            if has_iptc and output in ("jpeg", "tiff"):
                assert found["IPTC:ObjectName"] == "Name"
                assert found["IPTC:Keywords"] == ["one", "two"]
            elif has_iptc:
                assert found["XMP-dc:Subject"] == ["one", "two"]


def _exiftool(*arguments: str) -> str:
    command = ["exiftool", "-charset", "utf8", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
