"""XMP of a result: the input's properties that still hold, and how the result was made.

The packet is rebuilt from the properties of known namespaces: nothing unknown slips through.
"""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from models.parameters import UpscaleParameters

from .blocks import Blocks

MAX_XMP = 40_000
"""Bytes of all but the provenance: with two long prompts it fits into a segment of a JPEG."""
# What XML 1.0 cannot hold (2.2).
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

XML = "{http://www.w3.org/XML/1998/namespace}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
ABOUT = RDF + "Description"
PROVENANCE = "{urn:stablesr-server:provenance#}"
DC, XMP, PHOTOSHOP = (
    "{http://purl.org/dc/elements/1.1/}",
    "{http://ns.adobe.com/xap/1.0/}",
    "{http://ns.adobe.com/photoshop/1.0/}",
)
PREFIXES = {
    **{"dc": DC, "xmp": XMP, "photoshop": PHOTOSHOP},
    "xmpRights": "{http://ns.adobe.com/xap/1.0/rights/}",
    "Iptc4xmpCore": "{http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/}",
    "Iptc4xmpExt": "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}",
    "exif": "{http://ns.adobe.com/exif/1.0/}",
    "exifEX": "{http://cipa.jp/exif/1.0/}",
    "tiff": "{http://ns.adobe.com/tiff/1.0/}",
    "aux": "{http://ns.adobe.com/exif/1.0/aux/}",
    "plus": "{http://ns.useplus.org/ldf/xmp/1.0/}",
    "cc": "{http://creativecommons.org/ns#}",
    "lr": "{http://ns.adobe.com/lightroom/1.0/}",
}
"""Namespaces that are kept. Others may hold anything: a drone's place, steps that an editor would
apply once more, the length of a video behind the picture."""
for _prefix, _space in {**PREFIXES, "stablesr": PROVENANCE, "rdf": RDF}.items():
    ElementTree.register_namespace(_prefix, _space[1:-1])
_NAMES = {space[:-1]: prefix for prefix, space in PREFIXES.items()}
_OF_PIXELS = {
    "dc": "format",
    "xmp": "CreatorTool Thumbnails",
    "photoshop": "History DocumentAncestors TextLayers ColorMode ICCProfile LegacyIPTCDigest",
    "exif": "PixelXDimension PixelYDimension ColorSpace ComponentsConfiguration SubjectArea "
    "CompressedBitsPerPixel SubjectLocation FocalPlaneXResolution FocalPlaneYResolution CFAPattern "
    "FocalPlaneResolutionUnit SpatialFrequencyResponse NativeDigest MakerNote RelatedSoundFile",
    "Iptc4xmpExt": "ImageRegion",
}
_LOCATION = {
    "dc": "coverage",
    "photoshop": "City State Country",
    "Iptc4xmpCore": "Location CountryCode",
    "Iptc4xmpExt": "LocationShown LocationCreated",
}
# All others there describe pixels.
TIFF_KEPT = frozenset(("Make", "Model", "Artist", "Copyright", "ImageDescription", "DateTime"))
# Names of properties, and what holds their values (XMP specification, part 1, 8.2).
XMP_TEXTS = {
    "title": (DC + "title", "Alt"),
    "author": (DC + "creator", "Seq"),
    "copyright": (DC + "rights", "Alt"),
    "description": (DC + "description", "Alt"),
    "keywords": (DC + "subject", "Bag"),
    "created": (XMP + "CreateDate", ""),
    "dated": (PHOTOSHOP + "DateCreated", ""),
}


def software() -> str:
    """Name and version of what makes the results."""
    return f"stablesr-server {version('stablesr-server')}"


def packet(blocks: Blocks, parameters: UpscaleParameters) -> bytes:
    """What is kept, texts from elsewhere that it lacks, and what makes the same pixels again."""
    description = Element(ABOUT, {RDF + "about": ""})
    if blocks.xmp:
        with blocks.guard("xmp"):
            description = _selection(blocks.xmp, parameters.metadata == "all")
    for name, texts in blocks.texts.items():
        tag, container = XMP_TEXTS[name]
        if description.find(tag) is None and tag not in description.attrib:
            with blocks.guard("texts"):
                _add_text(description, tag, container, texts)
    others = {"metadata", "output_format", "quality", "width", "height", "megapixels"}
    values = parameters.model_dump(exclude=others, exclude_none=True)
    description.set(XMP + "CreatorTool", software())
    for name, value in values.items():
        if value != "":
            description.set(PROVENANCE + name, str(value))
    rdf = Element(RDF + "RDF")
    rdf.append(description)
    text = ElementTree.tostring(rdf, "unicode")
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{text}</x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def _selection(packet: bytes, location: bool) -> Element:
    """The properties that are kept, as one description."""
    text = packet.rstrip(b"\0").decode("utf-8-sig")
    # Entities could grow without bounds, or name files; no XMP has any.
    if "<!DOCTYPE" in text:
        raise ValueError("it has a document type")
    root = ElementTree.fromstring(text)
    selection = Element(ABOUT, {RDF + "about": ""})
    for description in root.iter(RDF + "RDF"):
        for part in description.findall(ABOUT):
            _prune(part, location)
            selection.attrib.update({k: value for k, value in part.attrib.items() if _is_known(k)})
            selection.extend(child for child in part if _is_known(child.tag))
    _check_size(selection)
    return selection


def _check_size(element: Element) -> None:
    size = len(ElementTree.tostring(element, "unicode").encode())
    if size > MAX_XMP:
        raise ValueError(f"the properties have {size} bytes; at most {MAX_XMP} are kept")


def _prune(element: Element, location: bool) -> None:
    """Takes out, at any depth, what does not hold for the result or says where it was taken."""
    for name in [name for name in element.attrib if _is_dropped(name, location)]:
        del element.attrib[name]
    for child in list(element):
        if _is_dropped(child.tag, location):
            element.remove(child)
        else:
            _prune(child, location)


def _is_known(name: str) -> bool:
    return name.partition("}")[0] in _NAMES


def _is_dropped(name: str, location: bool) -> bool:
    space, _, local = name.partition("}")
    prefix = _NAMES.get(space, "")
    if prefix == "tiff":
        return local not in TIFF_KEPT
    says_where = local in _LOCATION.get(prefix, "").split() or (
        prefix == "exif" and local.startswith("GPS")
    )
    return local in _OF_PIXELS.get(prefix, "").split() or (says_where and not location)


def _add_text(description: Element, tag: str, container: str, texts: list[str]) -> None:
    texts = [NO_XML.sub("", text).strip() for text in texts]
    if not container:
        description.set(tag, _date(texts[0]))
        return
    element = Element(tag)
    items = SubElement(element, RDF + container)
    for text in texts:
        item = SubElement(items, RDF + "li")
        item.text = text
        if container == "Alt":
            item.set(XML + "lang", "x-default")
    description.append(element)
    try:
        _check_size(description)
    except ValueError:
        description.remove(element)
        raise


def _date(text: str) -> str:
    """As XMP writes a date, from as IPTC, EXIF, mails or XMP do."""
    text = re.sub(r"^(\d{4}):?(\d\d):?(\d\d)", r"\1-\2-\3", text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = parsedate_to_datetime(text)
    return text if len(text) == 10 else moment.isoformat()
