"""Token ids, against those that OpenCLIP's own tokenizer (open_clip_torch 3.3.0) gives, and what
the cross-attention reads, on small networks with a text tower of random weights."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace

import pytest
import torch

from models import prompts
from models.checkpoints.files import preset_folder
from models.checkpoints.folder import load_folder, random_networks
from models.config import TextConfig
from models.errors import MissingTextTower
from models.networks.bundle import Networks
from models.parameters import UpscaleParameters
from models.pipeline import StableSR
from models.presets import get_preset
from models.prompts import END, LENGTH, START, contexts, tokenize
from models.sampling import CanvasStep
from tests.models import narrow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny() -> Networks:
    return load_folder(preset_folder(get_preset("tiny")), CPU, torch.float32)


@pytest.fixture(scope="module")
def reading(tiny: Networks) -> Networks:
    """Networks of tiny's size that have a text tower."""
    text = TextConfig(width=tiny.config.unet.context_width, layers=3, heads=2)
    config = replace(tiny.config, text=text, context_tokens=text.tokens)
    return random_networks(config, CPU, torch.float32)


def test_without_prompts_the_context_is_the_stored_constant_bit_for_bit(
    tiny: Networks, reading: Networks
) -> None:
    for networks in (tiny, reading):
        positive, negative = contexts(networks, narrow.parameters(), "tiny", CPU)
        assert torch.equal(positive, networks.context)
        assert negative is None


def test_a_prompt_is_what_the_text_tower_makes_of_its_tokens(reading: Networks) -> None:
    positive, negative = contexts(reading, narrow.parameters(prompt="a red bird"), "mine", CPU)
    assert reading.text is not None
    assert torch.equal(positive, reading.text(torch.tensor([tokenize("a red bird")])))
    assert not torch.equal(
        positive, contexts(reading, narrow.parameters(prompt="a bird"), "mine", CPU)[0]
    )
    assert positive.shape == (1, 77, reading.config.unet.context_width)
    assert negative is None


def test_guidance_leads_away_from_the_negative_prompt_or_from_the_constant(
    reading: Networks,
) -> None:
    options = narrow.parameters(prompt="sharp", guidance_scale=3)
    positive, negative = contexts(reading, options, "mine", CPU)
    assert negative is not None
    assert torch.equal(negative, reading.context)

    options = narrow.parameters(negative_prompt="blurred", guidance_scale=3)
    positive, negative = contexts(reading, options, "mine", CPU)
    assert negative is not None
    assert torch.equal(positive, reading.context)
    assert torch.equal(
        negative, contexts(reading, narrow.parameters(prompt="blurred"), "mine", CPU)[0]
    )


@pytest.mark.parametrize(
    "options",
    [
        narrow.parameters(prompt="a bird"),
        narrow.parameters(negative_prompt="blurred", guidance_scale=2),
        narrow.parameters(prompt="a bird", guidance_scale=2),
    ],
)
def test_a_prompt_for_weights_without_a_text_tower_is_refused_by_their_name(
    tiny: Networks, options: UpscaleParameters
) -> None:
    sr = StableSR(tiny, get_preset("tiny"), CPU, torch.float32)
    with pytest.raises(MissingTextTower, match=r"weights of tiny hold no text tower"):
        sr.prepare(torch.zeros(1, 3, 8, 8), options)


def test_a_half_precision_tower_gives_a_float32_context(reading: Networks) -> None:
    halved = random_networks(reading.config, CPU, torch.float16)
    positive, _ = contexts(halved, narrow.parameters(prompt="a bird"), "mine", CPU)
    assert positive.dtype == torch.float32
    assert positive.isfinite().all()


def test_guidance_asks_for_every_tile_twice_once_a_context(reading: Networks) -> None:
    sr = StableSR(reading, get_preset("tiny"), CPU, torch.float32)
    options = narrow.parameters(
        prompt="sharp", negative_prompt="blurred", guidance_scale=4, steps=2
    )
    image = torch.rand(1, 3, 30, 40)
    sampler = sr.sample(sr.prepare(image, options), options)
    step = next(sampler)
    assert isinstance(step, CanvasStep)
    tiles = len(step.grid)
    assert len(step) == 2 * tiles
    positive, negative = contexts(reading, options, "tiny", CPU)
    assert negative is not None
    request = step.part(0, len(step))
    assert request.context is not None
    assert torch.equal(request.context[:1], positive)
    assert torch.equal(request.context[tiles:][:1], negative)
    assert torch.equal(request.noisy[:tiles], request.noisy[tiles:])


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
    digest = hashlib.sha256(prompts._FILE.read_bytes()).hexdigest()
    assert digest in (prompts._FILE.parent / "ORIGIN.md").read_text()
