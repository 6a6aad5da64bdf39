"""The description at /openapi.json: the bodies of `POST /upscale`, the problems of each route."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from fastapi import FastAPI

from jobs.formats import FORMATS
from models.parameters import LOSSY
from models.presets import PRESETS
from service.image_source import IMAGE_FIELD, URL_FIELD
from service.problems import PROBLEM_JSON, ProblemDetails
from service.schema import FIELDS, JobView
from service.uploads import FORM, JSON

TEMPLATE = "#/components/schemas/{model}"
# What the same status says at most routes.
COMMON = {
    401: "An API key is needed, or the one given is wrong.",
    403: "The API key is for something else, or a page of another origin asks.",
    404: "There is no such job, or it was forgotten.",
    429: "Too many requests; see Retry-After.",
    503: "Redis is away.",
}


def problems(*common: int, **texts_by_status: str) -> dict[int | str, dict[str, Any]]:
    """The problem responses of a route: `problems(401, _404="There is no such type.")`.

    A `default` is always there, because any request can meet a 500 or a Redis that is away.
    """
    content = {PROBLEM_JSON: {"schema": {"$ref": TEMPLATE.format(model=ProblemDetails.__name__)}}}
    # What asks for a key may get one of another scope.
    common = (*common, 403) if 401 in common else common
    texts: dict[int | str, str] = {status: COMMON[status] for status in common}
    texts |= {int(status.lstrip("_")): text for status, text in texts_by_status.items()}
    texts["default"] = "Any other problem."
    return {
        status: {"description": texts[status], "content": content}
        for status in sorted(texts, key=str)
    }


def header(description: str, kind: str = "string") -> dict[str, Any]:
    """A response header."""
    return {"description": description, "schema": {"type": kind}}


def _field(name: str, **more: Any) -> dict[str, Any]:
    """The field is there, and as its schema here says."""
    return {"required": [name], "properties": {name: more}}


def _rules() -> list[dict[str, Any]]:
    """What the fields say of each other; as in the validators of `UpscaleParameters`."""
    text = {"pattern": "\\S"}
    guidance = _field("guidance_scale", exclusiveMinimum=1)
    prompts = {"anyOf": [_field("prompt", **text), _field("negative_prompt", **text)]}
    reading = [name for name, preset in PRESETS.items() if preset.prompts]
    sizes = [("scale", "width"), ("scale", "height"), ("scale", "megapixels")]
    sizes += [("width", "megapixels"), ("height", "megapixels")]
    return [
        *({"not": {"required": list(pair)}} for pair in sizes),
        {"if": {"required": ["quality"]}, "then": _field("output_format", enum=sorted(LOSSY))},
        {"if": {"required": ["eta"]}, "then": _field("sampler", const="ddim")},
        {"if": _field("negative_prompt", **text), "then": guidance},
        {"if": guidance, "then": prompts},
        {"if": prompts, "then": _field("preset", enum=reading)},
    ]


def _upload_body() -> dict[str, Any]:
    kinds = f"One still image: {', '.join(FORMATS)}"
    address = {
        "type": "string",
        "format": "image-url",
        "description": "In place of `image`: where it is, with https on the public internet, or a "
        "data URI",
    }
    images = {
        FORM: {"type": "string", "format": "binary", "description": kinds},
        JSON: {
            "type": "string",
            "format": "byte",
            "description": f"{kinds}; in base64, plain or as a data URI",
        },
    }
    sources = [_field(name, type="string") for name in (IMAGE_FIELD, URL_FIELD)]
    content: dict[str, Any] = {}
    for kind, image in images.items():
        fields = {IMAGE_FIELD: image, URL_FIELD: address, **FIELDS}
        if kind == JSON:
            # null is as left out.
            null = {"type": "null"}
            fields = {
                name: {"anyOf": [field, null], "description": field.pop("description", "")}
                for name, field in deepcopy(fields).items()
            }
        schema = {
            "type": "object",
            "properties": fields,
            "additionalProperties": False,
            "oneOf": sources,
            "allOf": _rules(),
        }
        content[kind] = {"schema": schema}
    return {"required": True, "content": content}


UPLOAD_BODY: dict[str, Any] = {"requestBody": _upload_body()}
REQUEST_HEADERS: list[dict[str, Any]] = [
    {
        "name": "Prefer",
        "in": "header",
        "description": "`wait=N`: answer when the job has ended, after N seconds at the latest",
        "schema": {"type": "string"},
        "example": "wait=30",
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Any word of your own, such as a UUID; the same request under the same key "
        "makes one job",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
        "example": "8e03978e-40d5-43e8-bc93-6894a57f9324",
    },
]

SECURITY = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, `ssr_...`; needed where the server asks for keys",
    },
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


class DescribedAPI(FastAPI):
    """Describes the problems, and the keys, beside what FastAPI knows of the routes."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is not None:
            return self.openapi_schema
        schema = super().openapi()
        schemas = schema["components"]["schemas"]
        problem = ProblemDetails.model_json_schema(ref_template=TEMPLATE)
        schemas |= {**problem.pop("$defs"), ProblemDetails.__name__: problem}
        # FastAPI drops what is null, in examples too, where it is part of the example.
        schemas[JobView.__name__]["example"] = JobView.model_json_schema()["example"]
        schema["components"]["securitySchemes"] = SECURITY
        for methods in schema["paths"].values():
            for operation in methods.values():
                # A key in either header, or none where the server asks for none.
                if "401" in operation["responses"]:
                    operation["security"] = [{}, *({name: list[str]()} for name in SECURITY)]
        return schema
