"""The description at /openapi.json: complete, consistent, and true."""

from __future__ import annotations

import warnings
from typing import Any

import httpx
import pytest

from jobs.settings import Settings
from models.parameters import UpscaleParameters
from service.app import create_app
from service.problems import STATUSES, ProblemDetails, titles
from service.schema import FormFields, JobView, ReadyView
from tests.service.harness import FakeWorker
from tests.service.pictures import picture


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return create_app(Settings()).openapi()


def operations(described: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]


def references(node: object) -> set[str]:
    """Every $ref below a node."""
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(references(value) for value in node))
    return set()


def test_all_paths_are_described(described: dict[str, Any]) -> None:
    assert {(path, method) for path, method, _ in operations(described)} == {
        ("/", "get"),
        ("/jobs/{job_id}", "delete"),
        ("/jobs/{job_id}", "get"),
        ("/jobs/{job_id}/result", "get"),
        ("/jobs/{job_id}/events", "get"),
        ("/jobs", "get"),
        ("/livez", "get"),
        ("/metrics", "get"),
        ("/models", "get"),
        ("/page/{name}", "get"),
        ("/problems/{slug}", "get"),
        ("/readyz", "get"),
        ("/upscale", "post"),
        ("/uploads", "post"),
    }


def test_every_reference_leads_somewhere_and_every_schema_is_used(
    described: dict[str, Any],
) -> None:
    schemas = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert references(described) == schemas


def test_the_frameworks_own_errors_are_not_described(described: dict[str, Any]) -> None:
    assert not {"HTTPValidationError", "ValidationError"} & set(described["components"]["schemas"])


def test_every_error_is_described_as_a_problem(described: dict[str, Any]) -> None:
    for path, method, operation in operations(described):
        for status, answer in operation["responses"].items():
            if status == "default" or int(status) >= 400:
                assert set(answer["content"]) == {"application/problem+json"}, (path, method)


@pytest.mark.parametrize("kind", ["multipart/form-data", "application/json"])
def test_each_body_names_every_parameter(described: dict[str, Any], kind: str) -> None:
    body = described["paths"]["/upscale"]["post"]["requestBody"]
    schema = body["content"][kind]["schema"]
    assert set(schema["properties"]) == {"image", "image_url", *FormFields.model_fields}
    assert set(FormFields.model_fields) > set(UpscaleParameters.model_fields)
    assert [each["required"] for each in schema["oneOf"]] == [["image"], ["image_url"]]


@pytest.mark.parametrize("model", [JobView, ReadyView, ProblemDetails])
def test_the_examples_are_of_their_schema(
    described: dict[str, Any], model: type[JobView] | type[ReadyView] | type[ProblemDetails]
) -> None:
    example = described["components"]["schemas"][model.__name__]["example"]
    parsed = model.model_validate(example)
    assert set(parsed.model_dump(exclude_unset=True)) == set(example)


def test_the_example_of_a_job_has_what_a_real_one_has(
    described: dict[str, Any], client: httpx.Client, worker: FakeWorker
) -> None:
    job = client.post("/upscale", files={"image": picture("PNG")}).json()
    example = described["components"]["schemas"]["JobView"]["example"]
    assert set(job) == set(example)
    assert set(job["parameters"]) == set(example["parameters"])
    assert set(job["input"]) == set(example["input"])


def test_the_served_description_is_the_same(
    described: dict[str, Any], client: httpx.Client
) -> None:
    assert client.get("/openapi.json").json() == described


def test_every_status_belongs_to_a_known_type_of_problem() -> None:
    assert set(STATUSES) <= set(titles())
