"""From a job's parameters to the pipeline's options: the one place where the two names meet."""

from __future__ import annotations

from jobs.schema import Parameters
from models.options import Options

__all__ = ["options_of"]


def options_of(parameters: Parameters) -> Options:
    """The pipeline's options for these parameters; preset and output format are not among them."""
    return Options(
        fidelity_weight=parameters.fidelity_weight,
        scale=parameters.scale,
        steps=parameters.steps,
        sampler=parameters.sampler,
        eta=parameters.eta,
        start=parameters.start,
        prompt=parameters.prompt,
        negative_prompt=parameters.negative_prompt,
        guidance_scale=parameters.guidance_scale,
        color_fix=parameters.color_fix,
        seed=parameters.seed,
        tile_overlap=parameters.tile_overlap,
    )
