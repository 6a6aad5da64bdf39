"""Batches kept in files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from training.pairs import Batch
from training.shards import Shards


def batch(number: int) -> Batch:
    value = (10 * number + torch.arange(4.0)).view(4, 1, 1, 1)
    return {"value": value, "twice": 2 * value}


def test_entries_are_picked_at_random_with_all_their_parts(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "numbers", batch, 3, {}, {"value": 1, "twice": 1})
    crops = shards.crops(("value", "twice"), 30, 1, torch.Generator().manual_seed(0))
    assert crops["value"].shape == (30, 1, 1, 1)
    assert torch.equal(crops["twice"], 2 * crops["value"])
    assert len(set(crops["value"].flatten().tolist())) > 6


def coordinates(number: int) -> Batch:
    """One batch whose pixels of `low` tell their places, and the other images are made of it."""
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    low = torch.stack([y, x, torch.full_like(x, number)]).to(torch.uint8)[None]
    high = low.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return {"high": high, "low": low, "teacher": 255 - high}


def shards_of(folder: Path) -> Shards:
    units = {"high": 4, "low": 1, "teacher": 4}
    return Shards(folder, coordinates, 3, {}, units, step=2, orientations=8)


def test_all_images_of_an_entry_are_cut_at_one_place_and_turned_alike(tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "pairs")
    names = ("high", "low", "teacher")
    crops = shards.crops(names, 200, 8, torch.Generator().manual_seed(0))
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
    shards = shards_of(tmp_path / "pairs")

    def draw(names: tuple[str, ...], seed: int) -> Tensor:
        return shards.crops(names, 6, 8, torch.Generator().manual_seed(seed))["high"]

    assert torch.equal(draw(("high",), 1), draw(("high", "low"), 1))
    assert not torch.equal(draw(("high",), 1), draw(("high",), 2))
