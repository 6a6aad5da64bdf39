"""A hub with small files in the released layout, and the preset that they are of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from models.presets import Preset, Release, ReleasedFile, get_preset
from tests.models.hub import Hub
from tests.models.pulling import NAMES
from tests.models.released import released, write_files


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    paths = write_files(tmp_path_factory.mktemp("files"), *released())
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture
def hub(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(dict(contents)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


@pytest.fixture
def preset(contents: dict[str, bytes]) -> Preset:
    """stablesr-512, with the sizes and sums of the small files."""
    diffusion, autoencoder = (
        ReleasedFile(name, len(contents[name]), hashlib.sha256(contents[name]).hexdigest())
        for name in NAMES
    )
    return replace(get_preset("stablesr-512"), release=Release(diffusion, autoencoder))
