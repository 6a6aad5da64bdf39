"""Batches kept in files, and those that the teacher has upscaled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from tests.training.ncnn_files import write_model
from tests.training.small_run import CPU, Bicubic, quiet, write_photographs
from training.config import DataSettings, ModelFileUnreadable, RunExists, TeacherSettings
from training.shards import TEACHER, Shards, teacher_crops, teacher_shards


def batch(number: int) -> dict[str, Tensor]:
    value = (10 * number + torch.arange(4.0)).view(4, 1, 1, 1)
    return {"value": value, "twice": 2 * value}


def test_entries_are_picked_at_random_with_all_their_parts(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "numbers", batch, 3, {"of": "numbers"})
    crops = shards.crops(30, {"value": 1, "twice": 1}, 1, torch.Generator().manual_seed(0))
    assert crops["value"].shape == (30, 1, 1, 1)
    assert torch.equal(crops["twice"], 2 * crops["value"])
    assert len(set(crops["value"].flatten().tolist())) > 6


SETTINGS = TeacherSettings(network=Path("nowhere"), crop=64, batch=2, batches=2)


def coordinates(number: int) -> dict[str, Tensor]:
    """One batch whose pixels of `low` tell their places, and the other images are made of it."""
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    low = torch.stack([y, x, torch.full_like(x, number)]).to(torch.uint8)[None]
    high = low.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return {"high": high, "low": low, "teacher": 255 - high}


def test_all_images_of_an_entry_are_cut_at_one_place_and_turned_alike(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "pairs", coordinates, 3, {})
    names = ("high", "low", "teacher")
    crops = teacher_crops(shards, names, 200, 32, torch.Generator().manual_seed(0))
    high, low, teacher = (crops[name] for name in names)
    assert high.shape == teacher.shape == (200, 3, 32, 32)
    assert low.shape == (200, 3, 8, 8)
    torch.testing.assert_close(F.avg_pool2d(high, 4), low)
    torch.testing.assert_close(teacher, 1 - high)
    # Every entry, every orientation, and every place that begins with a latent pixel.
    places = (255 * low).round().int()
    assert set(places[:, 2].flatten().tolist()) == {0, 1, 2}
    first, right, down = places[:, :2, 0, 0], places[:, :2, 0, 1], places[:, :2, 1, 0]
    turns = torch.cat([right - first, down - first], dim=1)
    assert len({tuple(turn) for turn in turns.tolist()}) == 8
    for axis in (0, 1):
        corners = places[:, axis].flatten(1).amin(1)
        assert set(corners.tolist()) == {0, 2, 4, 6, 8}


def test_what_is_drawn_follows_from_the_generator_alone(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "pairs", coordinates, 3, {})

    def draw(names: tuple[str, ...], seed: int) -> Tensor:
        return teacher_crops(shards, names, 6, 32, torch.Generator().manual_seed(seed))["high"]

    assert torch.equal(draw(("high",), 1), draw(("high", "low"), 1))
    assert not torch.equal(draw(("high",), 1), draw(("high",), 2))


def test_the_teacher_upscales_the_degraded_photographs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path] = []

    def from_model(path: Path) -> Bicubic:
        paths.append(path)
        return Bicubic()

    monkeypatch.setattr("training.shards.RRDBNet.from_model", from_model)
    data = DataSettings(photographs=write_photographs(tmp_path / "photographs"))
    shards = teacher_shards(SETTINGS, data, 3, tmp_path / "out", CPU)
    shards.make(Accelerator(cpu=True), quiet)
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
    again = teacher_shards(SETTINGS, data, 3, tmp_path / "out", CPU)
    again.make(Accelerator(cpu=True), quiet)
    assert paths == [Path("nowhere")]
    assert sorted(p.name for p in (tmp_path / "out" / TEACHER).glob("*.safetensors")) == [
        "000000.safetensors",
        "000001.safetensors",
    ]


def test_pairs_of_another_teacher_are_refused_and_more_batches_are_not(tmp_path: Path) -> None:
    data = DataSettings(photographs=write_photographs(tmp_path / "photographs"))
    teacher_shards(SETTINGS, data, 3, tmp_path / "out", CPU)
    more = SETTINGS.model_copy(update={"batches": 5})
    teacher_shards(more, data, 3, tmp_path / "out", CPU)
    other = SETTINGS.model_copy(update={"network": Path("elsewhere")})
    with pytest.raises(RunExists, match="other settings or weights"):
        teacher_shards(other, data, 3, tmp_path / "out", CPU)


def test_a_teacher_that_is_another_network_is_refused(tmp_path: Path) -> None:
    data = DataSettings(photographs=write_photographs(tmp_path / "photographs"))
    folder = write_model(tmp_path / "models", "realesrgan-x4plus", [torch.nn.Conv2d(3, 64, 3)])
    settings = SETTINGS.model_copy(update={"network": folder})
    shards = teacher_shards(settings, data, 3, tmp_path / "out", CPU)
    with pytest.raises(ModelFileUnreadable, match="Layer 1 of 351"):
        shards.make(Accelerator(cpu=True), quiet)
