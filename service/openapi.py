"""The description at /openapi.json: the form of `POST /upscale` and the problems of each route."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from jobs.presets import PRESETS
from jobs.schema import Parameters
from service.problems import PROBLEM_JSON, ProblemDetails
from service.schema import JobView
from service.uploads import IMAGE_FIELD

__all__ = ["UPLOAD_BODY", "describe", "header", "problems"]

TEMPLATE = "#/components/schemas/{model}"


def problems(**described: str) -> dict[int | str, dict[str, Any]]:
    """The problem responses of a route: `problems(_404="There is no such job.")`.

    A `default` is always there, because any request can meet a 500 or a Redis that is away.
    """
    content = {PROBLEM_JSON: {"schema": {"$ref": TEMPLATE.format(model=ProblemDetails.__name__)}}}
    answers: dict[int | str, dict[str, Any]] = {
        int(status.lstrip("_")): {"description": text, "content": content}
        for status, text in described.items()
    }
    answers["default"] = {"description": "Any other problem.", "content": content}
    return answers


def header(description: str, kind: str = "string") -> dict[str, Any]:
    """A response header."""
    return {"description": description, "schema": {"type": kind}}


def _upload_body() -> dict[str, Any]:
    fields: dict[str, Any] = Parameters.model_json_schema()["properties"]
    fields["preset"]["enum"] = list(PRESETS)
    for name in ("steps", "fidelity_weight", "preset"):
        # Their defaults are the preset's and the server's own.
        fields[name].pop("default", None)
    fields["seed"]["description"] = "Drawn when left out; the same seed gives the same image"
    fields["steps"]["description"] = "Denoising steps; the preset's number when left out"
    image = {
        "type": "string",
        "format": "binary",
        "description": "One still image: PNG, JPEG, WebP, TIFF or AVIF",
    }
    schema = {
        "type": "object",
        "required": [IMAGE_FIELD],
        "properties": {IMAGE_FIELD: image, **fields},
        "additionalProperties": False,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


UPLOAD_BODY: dict[str, Any] = {"requestBody": _upload_body()}


def describe(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """What replaces `app.openapi`: FastAPI's description and the schema of problems."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            problem = ProblemDetails.model_json_schema(ref_template=TEMPLATE)
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(problem.pop("$defs", {}))
            schemas[ProblemDetails.__name__] = problem
            # FastAPI drops what is null, in examples too, where it is part of the example.
            schemas[JobView.__name__]["example"] = JobView.model_json_schema()["example"]
            app.openapi_schema = schema
        return app.openapi_schema

    return openapi
