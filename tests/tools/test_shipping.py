"""Weights as they are shipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from models.checkpoints.folder import load_folder, save_folder
from tests.models.narrow import CONFIG
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


def test_several_runs_are_shipped_as_their_mean(tmp_path: Path) -> None:
    first = base_weights(tmp_path / "first")
    networks = load_folder(first, CPU, torch.float32)
    with torch.no_grad():
        networks.context.add_(0.5)
    save_folder(networks, tmp_path / "second", torch.float32)
    sources = [str(first), str(tmp_path / "second")]
    assert main([*sources, str(tmp_path / "mean")]) == 0
    old, new = (load_folder(f, CPU, torch.float32).state_dict() for f in (first, tmp_path / "mean"))
    torch.testing.assert_close(new.pop("context"), old.pop("context") + 0.25, atol=1e-3, rtol=0)
    for name, tensor in old.items():
        torch.testing.assert_close(new[name], tensor.half().float(), atol=0, rtol=0)


def test_runs_of_different_networks_have_no_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = base_weights(tmp_path / "first"), tmp_path / "second"
    base_weights(second, dataclasses.replace(CONFIG, grain=0.5))
    assert main([str(first), str(second), str(tmp_path / "mean")]) == 1
    assert f"{second} and {first} hold" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_a_folder_without_weights_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none"), str(tmp_path / "b")]) == 1
    assert "none" in capsys.readouterr().err
