"""Weights as they are shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.checkpoints.folder import load_folder
from tests.training.small_run import CPU, base_weights
from tools.shipping import main


def test_shipped_weights_are_rounded_to_half_the_bytes(tmp_path: Path) -> None:
    source = base_weights(tmp_path / "a")
    assert main([str(source), str(tmp_path / "b")]) == 0
    sizes = [(tmp_path / f / "model.safetensors").stat().st_size for f in "ab"]
    assert sizes[1] < 0.6 * sizes[0]
    old, new = (load_folder(tmp_path / f, CPU, torch.float32).state_dict() for f in "ab")
    for name, tensor in old.items():
        torch.testing.assert_close(new[name], tensor, atol=1e-3, rtol=1e-3)


def test_a_folder_without_weights_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none"), str(tmp_path / "b")]) == 1
    assert "none" in capsys.readouterr().err
