"""A prompt as the token ids that OpenCLIP's text tower reads.

CLIP's byte-pair encoding (Radford et al., arXiv 2103.00020, section 2.4) with its published
vocabulary. Texts are cleaned and tokens padded as OpenCLIP does it; the tests hold ids that
OpenCLIP's own tokenizer gave.
"""

from __future__ import annotations

import gzip
import html
import logging
from functools import lru_cache
from itertools import islice
from pathlib import Path

import ftfy
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

__all__ = ["END", "LENGTH", "START", "tokenize"]

START, END = 49406, 49407
LENGTH = 77
"""Tokens of every prompt, with the two that mark its start and its end."""

_FILE = Path(__file__).parent / "vocabulary" / "bpe_simple_vocab_16e6.txt.gz"
# 256 bytes, each also as the end of a word, the two marks, and the merges that fill up the rest.
_MERGES = END + 1 - 2 * 256 - 2
_WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

log = logging.getLogger(__name__)


def tokenize(prompt: str) -> list[int]:
    """The 77 ids of a prompt: start, text, end, and zeros up to the length.

    A text of more than 75 tokens is cut there, which a warning in the log says.
    """
    tokens = _tokenizer().encode(_clean(prompt)).ids
    most = LENGTH - 2
    if len(tokens) > most:
        log.warning("a prompt has %d tokens; the text tower reads the first %d", len(tokens), most)
    ids = [START, *tokens[:most], END]
    return ids + [0] * (LENGTH - len(ids))


def _clean(text: str) -> str:
    """Mended, without HTML entities, in lower case, with single spaces."""
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(mended.split()).lower()


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    with gzip.open(_FILE, "rt", encoding="utf-8") as file:
        # The first line is a title.
        merges = [_pair(line) for line in islice(file, 1, 1 + _MERGES)]
    letters = _letters()
    symbols = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(
        BPE({s: i for i, s in enumerate(symbols)}, merges, end_of_word_suffix="</w>")
    )
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(_WORDS), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _pair(line: str) -> tuple[str, str]:
    first, second = line.split()
    return first, second


def _letters() -> list[str]:
    """The printable character that stands for each byte, in the vocabulary's order.

    First the bytes that are printable themselves, then the others, which borrow 256 and on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (b for b in range(256) if b not in printable)
    return [chr(b) for b in printable] + [chr(256 + i) for i, _ in enumerate(others)]
