"""The chart's texts beside the code, without helm: settings, presets, paths, metrics."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import yaml

from jobs.settings import Settings
from models.presets import PRESETS
from tests.charts.tools import CHART, ROOT

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
TEMPLATES = "\n".join(path.read_text() for path in sorted((CHART / "templates").iterdir()))
FIELDS = {f"STABLESR_{name.upper()}" for name in Settings.model_fields}
# The images set it.
IN_IMAGES = {"STABLESR_BLOB_ROOT"}


def test_each_setting_is_set_by_the_chart_or_may_be_set_in_values() -> None:
    own = set(re.findall(r'(?:"|name: )(STABLESR_[A-Z_]+)', TEMPLATES)) - {"STABLESR_API_KEY"}
    free = set(SCHEMA["$defs"]["settings"]["propertyNames"]["enum"])
    assert own | free | IN_IMAGES == FIELDS
    # What the chart has a default for, or adds to.
    assert own & free == {"STABLESR_COMPILE", "STABLESR_ALLOWED_HOSTS"}


def test_the_schema_knows_every_preset() -> None:
    presets = SCHEMA["properties"]["presets"]["items"]["properties"]["preset"]["enum"]
    assert presets == list(PRESETS)
    assert SCHEMA["properties"]["service"]["properties"]["defaultPreset"]["enum"] == ["", *PRESETS]


def strictness(schema: dict[str, Any], values: Any, path: str = "") -> list[str]:
    """Objects of the values that the schema leaves open, and values that it does not know."""
    while "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    # A pod's resources, and what has names of the user's.
    if not isinstance(values, dict) or path.endswith(".resources") or not schema.get("properties"):
        return []
    open_paths = [] if schema.get("additionalProperties") is False else [path]
    for name, value in values.items():
        inner = schema["properties"].get(name)
        below = f"{path}.{name}"
        open_paths += [below] if inner is None else strictness(inner, value, below)
    return open_paths


def test_no_value_with_a_wrong_name_passes() -> None:
    assert strictness(SCHEMA, {**VALUES, "presets": []}) == []
    assert SCHEMA["properties"]["presets"]["items"]["additionalProperties"] is False


def test_what_is_mounted_is_in_the_images() -> None:
    files = [(ROOT / "docker" / f"{name}.Dockerfile").read_text() for name in ("service", "worker")]
    mounts = set(re.findall(r"mountPath: (/var/[a-z/]+)", TEMPLATES))
    assert mounts
    assert all(
        any(f"{mount} " in text or f'{mount}"' in text for text in files) for mount in mounts
    )
    assert all("USER 10001:10001" in text for text in files)


def test_image_tags_and_versions_are_those_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == version
    assert VALUES["images"]["service"] == f"stablesr-service:{version}"
    assert VALUES["images"]["worker"] == f"stablesr-worker:{version}"
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert VALUES["images"]["redis"] == compose["services"]["redis"]["image"]
