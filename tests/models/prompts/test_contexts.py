"""What the cross-attention reads, on small networks with a text tower of random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.checkpoints.folder import load_folder, preset_folder, random_networks
from models.config import TextConfig
from models.errors import MissingTextTower
from models.networks.bundle import Networks
from models.parameters import UpscaleParameters
from models.pipeline import StableSR
from models.presets import get_preset
from models.prompts.contexts import contexts
from models.prompts.tokenizer import tokenize
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
        wanted, unwanted = contexts(networks, narrow.parameters(), "tiny", CPU)
        assert torch.equal(wanted, networks.context)
        assert unwanted is None


def test_a_prompt_is_what_the_text_tower_makes_of_its_tokens(reading: Networks) -> None:
    wanted, unwanted = contexts(reading, narrow.parameters(prompt="a red bird"), "mine", CPU)
    assert reading.text is not None
    assert torch.equal(wanted, reading.text(torch.tensor([tokenize("a red bird")])))
    assert not torch.equal(
        wanted, contexts(reading, narrow.parameters(prompt="a bird"), "mine", CPU)[0]
    )
    assert wanted.shape == (1, 77, reading.config.unet.context_width)
    assert unwanted is None


def test_guidance_leads_away_from_the_negative_prompt_or_from_the_constant(
    reading: Networks,
) -> None:
    options = narrow.parameters(prompt="sharp", guidance_scale=3)
    wanted, unwanted = contexts(reading, options, "mine", CPU)
    assert unwanted is not None
    assert torch.equal(unwanted, reading.context)

    options = narrow.parameters(negative_prompt="blurred", guidance_scale=3)
    wanted, unwanted = contexts(reading, options, "mine", CPU)
    assert unwanted is not None
    assert torch.equal(wanted, reading.context)
    assert torch.equal(
        unwanted, contexts(reading, narrow.parameters(prompt="blurred"), "mine", CPU)[0]
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
    wanted, _ = contexts(halved, narrow.parameters(prompt="a bird"), "mine", CPU)
    assert wanted.dtype == torch.float32
    assert wanted.isfinite().all()


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
    wanted, unwanted = contexts(reading, options, "tiny", CPU)
    assert unwanted is not None
    request = step.part(0, len(step))
    assert request.context is not None
    assert torch.equal(request.context[:1], wanted)
    assert torch.equal(request.context[tiles:][:1], unwanted)
    assert torch.equal(request.noisy[:tiles], request.noisy[tiles:])
