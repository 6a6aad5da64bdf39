"""What the stages learn from, and what is kept of it in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from tests.training.ncnn_files import write_model
from tests.training.small_run import ENCODER, Bicubic, quiet, settings_of, write_photographs
from training.config import ModelFileUnreadable, RunExists, RunSettings
from training.run import train
from training.shards import Shards
from training.sources import TEACHER, Sources


def test_kept_latents_of_other_settings_are_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, encoder=ENCODER)
    train("encoder", settings, tmp_path / "out", resume=False, max_steps=1)
    other = settings_of(tmp_path, seed=4, encoder=ENCODER)
    with pytest.raises(RunExists, match="other settings or weights"):
        train("encoder", other, tmp_path / "out", resume=True)


def teacher_of(tmp_path: Path, **changes: object) -> Shards:
    """The teacher's pairs of a run in `tmp_path`."""
    photographs = tmp_path / "photographs"
    if not photographs.exists():
        write_photographs(photographs)
    teacher = {"network": "nowhere", "crop": 64, "batch": 2, "batches": 2, **changes}
    tables = {"seed": 3, "data": {"photographs": photographs}, "teacher": teacher}
    settings = RunSettings.model_validate(tables)
    folder = tmp_path / "out" / "vae"
    return Sources(settings, folder, Accelerator(cpu=True), quiet).teacher()


def test_the_teacher_upscales_the_degraded_photographs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path] = []

    def from_model(path: Path) -> Bicubic:
        paths.append(path)
        return Bicubic()

    monkeypatch.setattr("training.sources.RRDBNet.from_model", from_model)
    shards = teacher_of(tmp_path)
    assert paths == [Path("nowhere")]
    batches = [shards.batch(number) for number in range(2)]
    for batch in batches:
        assert {name: tuple(part.shape) for name, part in batch.items()} == {
            "high": (2, 3, 64, 64),
            "low": (2, 3, 16, 16),
            "teacher": (2, 3, 64, 64),
        }
        expected = F.interpolate(batch["low"] / 255, scale_factor=4, mode="bicubic").clamp(0, 1)
        torch.testing.assert_close(batch["teacher"] / 255, expected, rtol=0, atol=0.6 / 255)
    assert not torch.equal(batches[0]["high"], batches[1]["high"])
    teacher_of(tmp_path)
    assert paths == [Path("nowhere")]
    assert sorted(p.name for p in (tmp_path / "out" / TEACHER).glob("*.safetensors")) == [
        "000000.safetensors",
        "000001.safetensors",
    ]


@pytest.mark.usefixtures("teacher")
def test_pairs_of_another_teacher_are_refused_and_more_batches_are_not(tmp_path: Path) -> None:
    teacher_of(tmp_path, batches=1)
    teacher_of(tmp_path, batches=2)
    with pytest.raises(RunExists, match="other settings or weights"):
        teacher_of(tmp_path, network="elsewhere")


def test_a_teacher_that_is_another_network_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models", "realesrgan-x4plus", [torch.nn.Conv2d(3, 64, 3)])
    with pytest.raises(ModelFileUnreadable, match="Layer 1 of 351"):
        teacher_of(tmp_path, network=folder)
