"""A hub with small files in the released layout, and the preset that they are of."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from models.presets import Preset
from tests.models.hub import Hub, small_preset
from tests.models.released import released, write_files


@pytest.fixture(scope="session")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    paths = write_files(tmp_path_factory.mktemp("files"), *released())
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it was to wait between requests; it is not waited."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def hub(
    contents: dict[str, bytes], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    with Hub(dict(contents)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def preset(contents: dict[str, bytes]) -> Preset:
    return small_preset(contents)
