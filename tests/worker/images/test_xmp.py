"""XMP is rebuilt: known properties, texts from elsewhere, and how the result was made."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from models.parameters import UpscaleParameters
from worker.images.blocks import Blocks
from worker.images.xmp import packet

KEEP = UpscaleParameters(metadata="keep", seed=1)


def description(blocks: Blocks, parameters: UpscaleParameters = KEEP) -> ElementTree.Element:
    return ElementTree.fromstring(packet(blocks, parameters))[0][0]


def texts_in(blocks: Blocks) -> dict[str, str]:
    """The texts of the properties and the attributes, by their names."""
    element = description(blocks)
    found = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    return found | {child.tag.rpartition("}")[2]: "".join(child.itertext()) for child in element}


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("20010203", "2001-02-03"),
        ("2001:02:03 04:05:06", "2001-02-03T04:05:06"),
        ("2001-02-03T04:05:06+01:00", "2001-02-03T04:05:06+01:00"),
        ("Sat, 03 Feb 2001 04:05:06 GMT", "2001-02-03T04:05:06+00:00"),
        ("00000000", None),
        ("once upon a time", None),
    ],
)
def test_dates_of_any_kind_become_those_of_xmp(text: str, date: str | None) -> None:
    blocks = Blocks(texts={"created": [text]})
    assert texts_in(blocks).get("CreateDate") == date
    assert blocks.faults == ([] if date else ["texts"])


def test_a_text_from_elsewhere_does_not_replace_a_property() -> None:
    own = (
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:title="own"/></rdf:RDF>'
    )
    blocks = Blocks(xmp=own.encode(), texts={"title": ["other"], "author": ["a\0b"]})
    found = texts_in(blocks)
    assert (found["title"], found["creator"]) == ("own", "ab")


def test_a_prompt_is_part_of_how_a_result_was_made() -> None:
    parameters = KEEP.model_copy(update={"prompt": 'a "cat" & <dog>\n', "eta": None})
    attributes = description(Blocks(), parameters).attrib
    found = {name.rpartition("}")[2]: value for name, value in attributes.items()}
    assert found["prompt"] == parameters.prompt
    assert not found.keys() & {"eta", "negative_prompt", "metadata", "output_format", "quality"}


def test_the_longest_packet_fits_into_a_segment_of_a_jpeg() -> None:
    long = KEEP.model_copy(update={"prompt": '"' * 1000, "negative_prompt": "\U0001f600" * 1000})
    item = "<dc:a>" + "x" * 30_000 + "</dc:a>"
    own = (
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/">{item}</rdf:Description></rdf:RDF>'
    )
    names = ("title", "author", "copyright", "description", "keywords")
    blocks = Blocks(xmp=own.encode(), texts={name: ["&" * 2000] for name in names})
    data = packet(blocks, long)
    assert b"xxxx" in data
    assert len(data) < 65_500
