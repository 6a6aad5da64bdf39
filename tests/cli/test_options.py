"""The options of `stablesr upscale` are the parameters of an image."""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

from annotated_types import Ge, Le
from typer.models import OptionInfo

from cli.options import UpscaleOptions
from models.parameters import UpscaleParameters
from service.image_source import IMAGE_FIELD, URL_FIELD
from service.openapi import UPLOAD_BODY
from service.schema import FormFields, JobView
from stablesr_client import Parameters


def test_a_parameter_is_declared_once_and_everything_else_follows() -> None:
    names = set(UpscaleParameters.model_fields)
    form = UPLOAD_BODY["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    others = set(FormFields.model_fields) - names
    assert set(form) - {IMAGE_FIELD, URL_FIELD} == names | others
    job = JobView.model_json_schema()
    assert set(job["$defs"]["Parameters"]["properties"]) == names
    # Those that list them: the client, which imports nothing of ours, and the command.
    assert set(get_type_hints(Parameters)) == names | others
    assert names - {field.name for field in fields(UpscaleOptions)} == {"tile_overlap"}
    assert others - {field.name for field in fields(UpscaleOptions)} == {"webhook_url"}


def test_an_option_has_the_bounds_of_its_parameter() -> None:
    hints = get_type_hints(UpscaleOptions, include_extras=True)
    for name, field in UpscaleParameters.model_fields.items():
        bounds = {type(bound): bound for bound in field.metadata}
        if Ge in bounds and name in hints:
            [option] = [mark for mark in hints[name].__metadata__ if isinstance(mark, OptionInfo)]
            assert (option.min, option.max) == (bounds[Ge].ge, bounds[Le].le)
