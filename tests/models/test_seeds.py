"""Several seeds of one image at once."""

from __future__ import annotations

import pytest
import torch

from models.checkpoints.folder import random_networks
from models.pipeline import Progress, StableSR
from tests.models import narrow

SEEDS = (11, 5)


@pytest.fixture(scope="module")
def sr() -> StableSR:
    cpu, dtype = torch.device("cpu"), torch.float32
    return StableSR(random_networks(narrow.CONFIG, cpu, dtype), narrow.PRESET, cpu, dtype)


def test_each_result_is_that_of_its_seed_alone(sr: StableSR) -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    # A solver with a memory, which must not be shared.
    options = narrow.parameters(sampler="unipc", steps=2)
    results = list(sr.upscale_seeds(image, options, SEEDS))
    for seed, result in zip(SEEDS, results, strict=True):
        alone = sr.upscale(image, options.model_copy(update={"seed": seed}))
        torch.testing.assert_close(result, alone, rtol=0, atol=1e-4)
    assert float((results[0] - results[1]).abs().mean()) > 1e-3


def test_the_image_is_encoded_once_and_each_seed_decoded_when_asked_for(sr: StableSR) -> None:
    seen: list[Progress] = []
    options = narrow.parameters(steps=2, fidelity_weight=0.0)
    results = sr.upscale_seeds(torch.rand(1, 3, 16, 16), options, SEEDS, seen.append)
    shared = [Progress("encode", 0, 1), Progress("denoise", 0, 2), Progress("denoise", 1, 2)]
    next(results)
    assert seen == [*shared, Progress("decode", 0, 1)]
    next(results)
    assert seen == [*shared, Progress("decode", 0, 1), Progress("decode", 0, 1)]
