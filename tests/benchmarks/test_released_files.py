"""Files in the layout of the released ones."""

from __future__ import annotations

from pathlib import Path

from benchmarks.io import measure_conversion
from benchmarks.released_files import write_released
from tests.models.released import SMALL, released


def test_files_of_random_numbers_are_converted(tmp_path: Path) -> None:
    diffusion, autoencoder = (
        {name: list(tensor.shape) for name, tensor in tensors.items()}
        for tensors in released(SMALL)
    )
    files = write_released(tmp_path, diffusion, autoencoder)
    values = {m.quantity: m.value for m in measure_conversion(files, tmp_path / "out")}
    assert values["peak memory"] > 10**8
    # Half precision, the first stage's encoder once, and no optimizer state.
    assert 0 < values["written"] < values["read"] / 2
