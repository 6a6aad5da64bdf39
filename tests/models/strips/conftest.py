"""Autoencoders that the tests of strips share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.networks.autoencoder import Autoencoder
from models.networks.bundle import AnyAutoencoder
from models.networks.compact import CompactAutoencoder
from tests.models.strips.images import make_compact, make_small


@pytest.fixture(scope="session")
def small() -> Autoencoder:
    return make_small()


@pytest.fixture(scope="session")
def compact() -> CompactAutoencoder:
    return make_compact()


@pytest.fixture(params=["small", "compact"])
def autoencoder(request: pytest.FixtureRequest) -> AnyAutoencoder:
    """Both kinds."""
    value: AnyAutoencoder = request.getfixturevalue(request.param)
    return value


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps on disk lie where a test can look for them."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
