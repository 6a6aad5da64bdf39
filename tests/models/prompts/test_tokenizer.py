"""Token ids, against those that OpenCLIP's own tokenizer (open_clip_torch 3.3.0) gives."""

from __future__ import annotations

import hashlib
import logging

import pytest

from models.prompts import tokenizer
from models.prompts.tokenizer import END, LENGTH, START, tokenize


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("", []),
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("  A  Photo,\tOF a\nCAT!! ", [320, 1125, 267, 539, 320, 2368, 748]),
        ("don't can't we'll", [847, 713, 753, 713, 649, 1342]),
        (
            "(masterpiece:2), 4k, 8-bit",
            [263, 12066, 281, 273, 2361, 275, 330, 267, 279, 268, 2010],
        ),
        # Typographic quotes and the ellipsis become plain ones, entities what they stand for.
        (
            "it\u2019s \u201csharp\u201d &amp; clean\u2026",
            [585, 568, 257, 8157, 257, 261, 3772, 959],
        ),
        # A ligature, letters of full width.
        (
            "Größe naïve \ufb01ne \uff46\uff55\uff4c\uff4c",
            [709, 7255, 127, 253, 324, 1097, 35689, 563, 3797, 1476],
        ),
        # UTF-8 that was read as Latin-1.
        ("schÃ¶n", [844, 7255, 333]),
        ("日本語の写真", [39121, 44353, 34002, 252, 21575, 44653, 33440, 509]),
        ("😀 smile", [7334, 3490]),
    ],
)
def test_a_prompt_has_the_ids_of_openclip(prompt: str, ids: list[int]) -> None:
    assert tokenize(prompt) == [START, *ids, END] + [0] * (LENGTH - 2 - len(ids))


def test_a_long_prompt_is_cut_before_its_end_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        ids = tokenize("word " * 200)
    assert ids == [START, *[2653] * 75, END]
    assert "200 tokens; the text tower reads the first 75" in caplog.text


def test_marks_written_out_are_only_text() -> None:
    assert tokenize("<|startoftext|> <|endoftext|>").count(END) == 1


def test_the_vocabulary_is_the_published_file() -> None:
    digest = hashlib.sha256(tokenizer._FILE.read_bytes()).hexdigest()
    assert digest in (tokenizer._FILE.parent / "ORIGIN.md").read_text()
