"""A job's parameters as the pipeline's options."""

from __future__ import annotations

from typing import get_args

from jobs import schema
from jobs.schema import Parameters
from models.options import MAX_GUIDANCE, SamplerName, Start
from worker.options import options_of


def test_a_job_may_ask_for_what_the_pipeline_can_do() -> None:
    assert get_args(schema.Sampler) == get_args(SamplerName)
    assert get_args(schema.Start) == get_args(Start)
    parameters = Parameters(
        preset="stablesr-512",
        sampler="ddim",
        eta=0.5,
        start="noise",
        prompt="a bird",
        negative_prompt="blurred",
        guidance_scale=MAX_GUIDANCE,
        seed=7,
    )
    options = options_of(parameters)
    shared = Parameters.model_fields.keys() & vars(options).keys()
    assert {name: getattr(options, name) for name in shared} == parameters.model_dump(
        include=shared
    )
    assert shared == vars(options).keys()
