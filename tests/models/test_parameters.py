"""What may be chosen for an image: defaults, limits, and the way to JSON and back."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.geometry import output_size
from models.parameters import PROMPT_MAX, SEED_MAX, UpscaleParameters, preset_parameters
from models.presets import PRESETS


def test_what_is_left_out_is_the_presets_default() -> None:
    parameters = UpscaleParameters(preset="stablesr-768v")
    assert parameters.steps == 200
    assert parameters.fidelity_weight == 0.0
    assert UpscaleParameters(preset="stablesr-turbo").steps == 4


def test_none_means_left_out() -> None:
    values: dict[str, Any] = dict.fromkeys(UpscaleParameters.model_fields)
    parameters = UpscaleParameters(**values)
    assert parameters.preset == "tiny"
    assert parameters.steps == PRESETS["tiny"].steps
    assert parameters.scale == 4.0


def test_a_seed_is_drawn_once_and_kept_through_json() -> None:
    parameters = UpscaleParameters()
    assert 0 <= parameters.seed <= SEED_MAX
    assert UpscaleParameters.model_validate_json(parameters.model_dump_json()) == parameters
    assert len({UpscaleParameters().seed for _ in range(8)}) > 1


def test_what_was_chosen_survives_a_change_of_defaults() -> None:
    parameters = UpscaleParameters(preset="stablesr-turbo", steps=7, fidelity_weight=0.25)
    again = UpscaleParameters.model_validate_json(parameters.model_dump_json())
    assert (again.steps, again.fidelity_weight) == (7, 0.25)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fidelity_weight", 1.01),
        ("fidelity_weight", float("nan")),
        ("scale", 0.5),
        ("scale", float("inf")),
        ("steps", 0),
        ("steps", 1001),
        ("sampler", "euler"),
        ("color_fix", "yes"),
        ("seed", -1),
        ("seed", SEED_MAX + 1),
        ("tile_overlap", 0),
        ("tile_overlap", 12),
        ("page", 0),
        ("page", 65_536),
        ("alpha", "hard"),
        ("tile_overlap", 64),
        ("output_format", "gif"),
        ("preset", "huge"),
        ("preset", ["tiny"]),
        ("eta", 1.5),
        ("start", "middle"),
        ("prompt", "x" * (PROMPT_MAX + 1)),
        ("negative_prompt", "x" * (PROMPT_MAX + 1)),
        ("guidance_scale", 0.5),
        ("guidance_scale", 21),
        ("promt", "a cat"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    values: dict[str, Any] = {name: value}
    with pytest.raises(ValidationError) as caught:
        UpscaleParameters(**values)
    assert caught.value.errors()[0]["loc"] == (name,)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"eta": 0.5}, "eta must be left out for the sampler ddpm; only ddim takes it"),
        ({"prompt": "a cat"}, "prompt must be left out for tiny, whose weights hold no text tower"),
        (
            {"negative_prompt": "blur", "guidance_scale": 2},
            "negative_prompt must be left out for tiny, whose weights hold no text tower",
        ),
        (
            {"preset": "stablesr-512", "negative_prompt": "blur"},
            "negative_prompt needs a guidance_scale above 1",
        ),
        (
            {"preset": "stablesr-512", "guidance_scale": 7.5, "prompt": " "},
            "guidance_scale must be 1 without prompt and negative_prompt; got 7.5",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        UpscaleParameters(**values)
    assert [error["msg"] for error in caught.value.errors()] == [f"Value error, {sentence}"]


def test_prompts_samplers_and_eta_are_kept_through_json() -> None:
    parameters = UpscaleParameters(
        preset="stablesr-512",
        sampler="ddim",
        eta=0.25,
        start="noise",
        prompt=" a red panda\n",
        negative_prompt="\U0001f4a9",
        guidance_scale=5.5,
    )
    assert parameters.prompt == "a red panda"
    assert UpscaleParameters.model_validate_json(parameters.model_dump_json()) == parameters


def test_a_record_from_before_there_were_prompts_is_still_read() -> None:
    old = {
        "preset": "tiny",
        "fidelity_weight": 0.5,
        "scale": 4.0,
        "steps": 4,
        "sampler": "ddim",
        "color_fix": "adain",
        "seed": 42,
        "tile_overlap": 32,
        "output_format": "png",
    }
    parameters = UpscaleParameters.model_validate(old)
    assert (parameters.eta, parameters.start, parameters.guidance_scale) == (None, "lr", 1.0)
    assert (parameters.prompt, parameters.negative_prompt) == ("", "")


def test_a_measurement_has_the_presets_own_overlap_and_a_fixed_seed() -> None:
    parameters = preset_parameters(PRESETS["stablesr-768v"], steps=None, scale=2)
    assert (parameters.preset, parameters.tile_overlap, parameters.seed) == ("stablesr-768v", 48, 0)
    assert (parameters.steps, parameters.scale) == (200, 2)
    assert preset_parameters(PRESETS["tiny"], tile_overlap=16, seed=5).tile_overlap == 16
    # A job may not have none: tiles would show.
    assert preset_parameters(PRESETS["tiny"], tile_overlap=0).tile_overlap == 0


@pytest.mark.parametrize(
    ("asked", "size", "result"),
    [
        ({"width": 4000}, (1333, 1000), (4000, 3001)),
        ({"height": 1080}, (333, 777), (463, 1080)),
        ({"width": 1000, "height": 1000}, (300, 200), (1000, 667)),
        ({"width": 1000, "height": 500}, (300, 200), (750, 500)),
        ({"megapixels": 2}, (400, 300), (1633, 1225)),
        ({"width": 300}, (300, 200), (300, 200)),
        ({"scale": 2.5}, (300, 200), (750, 500)),
    ],
)
def test_a_size_that_is_asked_for_becomes_the_scale_of_the_image(
    asked: dict[str, float], size: tuple[int, int], result: tuple[int, int]
) -> None:
    parameters = UpscaleParameters.model_validate(asked).for_image(*size)
    assert output_size(*size, parameters.scale) == result
    assert (parameters.width, parameters.height, parameters.megapixels) == (None, None, None)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"width": 299}, "width asks for 0.997 times the image of 300 x 200 pixels; 1 to 16 times"),
        ({"height": 3300}, "height asks for 16.5 times"),
        ({"megapixels": 0.01}, "megapixels asks for 0.408 times"),
    ],
)
def test_a_size_that_cannot_be_made_is_refused(asked: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        UpscaleParameters.model_validate(asked).for_image(300, 200)


@pytest.mark.parametrize(
    "asked", [{"width": 10, "scale": 4}, {"megapixels": 1, "height": 10}, {"width": 0}]
)
def test_a_size_stands_alone(asked: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        UpscaleParameters.model_validate(asked)


def test_a_quality_is_for_formats_that_lose_something() -> None:
    assert UpscaleParameters(output_format="avif", quality=80).quality == 80
    with pytest.raises(ValidationError, match="quality must be left out for png"):
        UpscaleParameters(quality=80)
