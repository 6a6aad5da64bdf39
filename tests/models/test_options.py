"""What a caller may choose, and what the choices of start and seed do."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from models.checkpoints.folder import random_networks
from models.errors import InvalidOption
from models.options import Options, Start
from models.pipeline import StableSR
from models.sampling import CanvasStep
from models.schedulers import add_noise
from tests.models import narrow


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"eta": 0.5}, "eta is 0.5 with the sampler ddpm, but only ddim takes an eta"),
        ({"eta": 0.5, "sampler": "unipc"}, "with the sampler unipc"),
        ({"eta": 1.5, "sampler": "ddim"}, "eta is 1.5, but must be between 0 and 1"),
        ({"start": "middle"}, "start is 'middle', but must be lr or noise"),
        ({"prompt": "a", "guidance_scale": 0.5}, "guidance_scale is 0.5.*between 1 and 20"),
        ({"prompt": "a", "guidance_scale": 20.5}, "guidance_scale is 20.5.*between 1 and 20"),
        ({"negative_prompt": "a"}, "negative_prompt has no effect at guidance_scale 1"),
        ({"guidance_scale": 2.0}, "without prompt and negative_prompt it has no effect"),
    ],
)
def test_an_option_out_of_range_or_without_effect_is_refused(
    values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidOption, match=sentence):
        Options(**values)


def test_sampling_starts_at_the_noised_input_or_at_the_noise_alone() -> None:
    cpu, dtype = torch.device("cpu"), torch.float32
    sr = StableSR(random_networks(narrow.CONFIG, cpu, dtype), narrow.PRESET, cpu, dtype)
    image = torch.rand(1, 3, 32, 32)
    canvases = {}
    for start in get_args(Start):
        options = Options(start=start, seed=3)
        prepared = sr.prepare(image, options)
        step = next(sr.sample(prepared, options))
        assert isinstance(step, CanvasStep)
        canvases[start] = step.canvas
    noise = torch.randn(canvases["lr"].shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(canvases["noise"], noise)
    assert torch.equal(canvases["lr"], add_noise(prepared.latent, noise, 999))
