"""Prompts: from a text to the context that the UNet's cross-attention reads.

The released networks were trained with the empty prompt alone, whose embedding is stored with the
weights; so a job without prompts needs no text tower.

Tokens are CLIP's byte-pair encoding (Radford et al., arXiv 2103.00020, section 2.4) with its
published vocabulary. Texts are cleaned and tokens padded as OpenCLIP does it; the tests hold ids
that OpenCLIP's own tokenizer gave.
"""

from __future__ import annotations

import gzip
import html
import logging
from functools import lru_cache
from itertools import islice
from pathlib import Path

import ftfy
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from torch import Tensor

from models.errors import MissingTextTower
from models.networks.bundle import Networks
from models.parameters import UpscaleParameters

START, END = 49406, 49407
LENGTH = 77
"""Tokens of every prompt, with the two that mark its start and its end."""

_FILE = Path(__file__).parent / "vocabulary" / "bpe_simple_vocab_16e6.txt.gz"
# 256 bytes, each also as the end of a word, the two marks, and the merges that fill up the rest.
_MERGES = END + 1 - 2 * 256 - 2
_WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

log = logging.getLogger(__name__)


def check_prompts(networks: Networks, options: UpscaleParameters, preset: str) -> None:
    """Raises MissingTextTower where there is a prompt, and the weights, whose name is `preset`,
    hold no text tower."""
    if (options.prompt or options.negative_prompt) and networks.text is None:
        raise MissingTextTower(
            f"The weights of {preset} hold no text tower, so prompt and negative_prompt must be "
            "empty and guidance_scale 1; released weights pulled or converted with --text read "
            "prompts."
        )


@torch.inference_mode()
def contexts(
    networks: Networks, options: UpscaleParameters, preset: str, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The context of the prompt, and that of the negative prompt where guidance asks for one: each
    float32 (1, tokens, width) on `device`. The text tower runs where its weights lie. Raises as
    `check_prompts`."""
    check_prompts(networks, options, preset)
    context = _context(networks, options.prompt).to(device, torch.float32)
    if options.guidance_scale == 1:
        return context, None
    return context, _context(networks, options.negative_prompt).to(device, torch.float32)


def _context(networks: Networks, prompt: str) -> Tensor:
    if not prompt:
        return networks.context
    tower = networks.text
    assert tower is not None  # check_prompts
    tokens = torch.tensor([tokenize(prompt)], device=tower.positional_embedding.device)
    embedding: Tensor = tower(tokens)
    return embedding


def tokenize(prompt: str) -> list[int]:
    """The 77 ids of a prompt: start, text, end, and zeros up to the length. A text of more than 75
    tokens is cut there, which is logged."""
    # Mended, without HTML entities, in lower case, with single spaces.
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    tokens = _tokenizer().encode(" ".join(text.split()).lower()).ids
    most = LENGTH - 2
    if len(tokens) > most:
        log.warning("a prompt has %d tokens; the text tower reads the first %d", len(tokens), most)
    ids = [START, *tokens[:most], END]
    return ids + [0] * (LENGTH - len(ids))


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    with gzip.open(_FILE, "rt", encoding="utf-8") as file:
        # The first line is a title.
        pairs = (line.split() for line in islice(file, 1, 1 + _MERGES))
        merges = [(first, second) for first, second in pairs]
    # The character that stands for each byte, in the vocabulary's order: first the bytes that are
    # printable themselves, then the others, which borrow 256 and on.
    letters = sorted(ByteLevel.alphabet())
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
