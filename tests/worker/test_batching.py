"""The engine with the real networks: company changes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from models.checkpoints.folder import preset_folder
from models.pipeline import StableSR
from models.presets import get_preset
from models.sampling import drive
from tests.models import narrow
from worker.engine import Engine


@pytest.fixture(scope="module")
def pipeline() -> StableSR:
    """The embedded weights on tiles of 16 latent cells instead of 64, which is 16 times faster."""
    tiny = get_preset("tiny")
    return StableSR.from_folder(preset_folder(tiny), replace(tiny, native=128, tile=16, overlap=8))


def test_jobs_of_different_sizes_and_timesteps_give_what_they_give_alone(
    pipeline: StableSR,
) -> None:
    images = [torch.rand(1, 3, 48, 48), torch.rand(1, 3, 32, 48), torch.rand(1, 3, 20, 20)]
    options = [narrow.parameters(steps=steps, seed=seed) for seed, steps in enumerate((3, 2, 4))]
    jobs = [
        (pipeline.prepare(image, chosen), chosen)
        for image, chosen in zip(images, options, strict=True)
    ]
    engine = Engine(pipeline, max_tiles=4)
    engine.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            together = [
                pool.submit(engine.run, pipeline.sample(prepared, chosen))
                for prepared, chosen in jobs
            ]
            latents = [job.result(timeout=120) for job in together]
    finally:
        engine.stop()
    steps_alone = sum(chosen.steps or 0 for chosen in options)
    assert engine.calls < engine.tiles
    assert engine.tiles > steps_alone
    for (prepared, chosen), latent in zip(jobs, latents, strict=True):
        alone = drive(
            pipeline.sample(prepared, chosen),
            lambda step: pipeline.predict([step.part(0, len(step))])[0],
        )
        assert (latent - alone).abs().max() < 1e-5
