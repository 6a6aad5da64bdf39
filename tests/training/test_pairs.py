"""Random crops of photographs, and pairs of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.training.small_run import CPU, write_photographs
from training.config import DataSettings, NoPhotographs
from training.pairs import Pairs, read_photographs, upsample


def coordinates(height: int, width: int) -> Tensor:
    """An image that tells every pixel's place in its channels."""
    y, x = np.mgrid[:height, :width]
    return torch.from_numpy(np.stack([y, x, np.full_like(x, 7)], -1).astype(np.uint8))


def crops_of(
    images: list[Tensor],
    size: int,
    batch: int,
    *,
    number: int = 0,
    seed: int = 0,
    candidates: int = 1,
) -> Tensor:
    settings = DataSettings(photographs=Path("none"), candidates=candidates)
    pairs = Pairs(images, settings, crop=size, batch=batch, seed=seed, device=CPU)
    return pairs.high(number)


def test_crops_are_seeded_and_of_the_asked_shape_and_range() -> None:
    images = [coordinates(80, 100), coordinates(64, 64)]
    batch = crops_of(images, 64, 6, seed=3)
    assert batch.shape == (6, 3, 64, 64)
    assert batch.dtype == torch.float32
    assert 0 <= float(batch.min()) <= float(batch.max()) <= 1
    assert not torch.equal(batch, crops_of(images, 64, 6, number=1, seed=3))
    assert torch.equal(batch, crops_of(images, 64, 6, seed=3))
    assert not torch.equal(batch, crops_of(images, 64, 6, seed=4))


def test_crops_are_contiguous_pieces_in_all_eight_orientations_from_border_to_border() -> None:
    batch = (crops_of([coordinates(12, 10)], 8, 400) * 255).round().int()
    orientations = set()
    rows, columns = set(), set()
    for crop in batch:
        y, x = crop[0], crop[1]
        orientations.add((int(y[1, 0] - y[0, 0]), int(y[0, 1] - y[0, 0]), int(x[1, 1] - x[0, 0])))
        rows |= set(y.flatten().tolist())
        columns |= set(x.flatten().tolist())
        assert int(y.max() - y.min()) == int(x.max() - x.min()) == 7
        assert bool((crop[2] == 7).all())
    assert len(orientations) == 8
    assert rows == set(range(12))
    assert columns == set(range(10))


def test_with_candidates_the_crop_with_more_detail_is_kept() -> None:
    half = torch.zeros(64, 256, 3, dtype=torch.uint8)
    half[:, 128:] = torch.randint(256, (64, 128, 3), generator=torch.Generator().manual_seed(0))
    plain = crops_of([half], 32, 64, seed=1)
    choosy = crops_of([half], 32, 64, seed=1, candidates=4)

    def flat(batch: torch.Tensor) -> int:
        return int((batch.flatten(1).std(1) == 0).sum())

    assert flat(plain) > 15
    assert flat(choosy) < flat(plain) / 3


def test_a_folder_is_read_by_name_and_photographs_too_small_are_left_out(tmp_path: Path) -> None:
    Image.fromarray(coordinates(40, 50).numpy()).save(tmp_path / "b.png")
    Image.fromarray(coordinates(90, 90).numpy()).save(tmp_path / "a.webp", lossless=True)
    (tmp_path / ".c.png").write_bytes(b"half written")
    assert [len(image) for image in read_photographs(tmp_path, 32)] == [90, 40]
    assert [len(image) for image in read_photographs(tmp_path, 64)] == [90]
    with pytest.raises(NoPhotographs, match="no photograph of at least 128 x 128"):
        read_photographs(tmp_path, 128)


def test_a_photograph_is_learned_from_at_every_size_that_a_crop_fits_into(tmp_path: Path) -> None:
    grey = np.full((64, 96, 3), 90, np.uint8)
    grey[:, 48:] = 200
    Image.fromarray(grey).save(tmp_path / "a.png")
    # At two fifths it is 38 x 26 pixels, too small.
    sizes = [tuple(i.shape) for i in read_photographs(tmp_path, 32, (1.0, 0.5, 0.4))]
    assert sizes == [(64, 96, 3), (32, 48, 3)]
    # A crop of 32 out of 48 x 32 always shows both halves of the photograph.
    halves = crops_of(read_photographs(tmp_path, 32, (0.5,)), 32, 20)
    assert bool((halves.flatten(1).std(1) > 0.1).all())
    with pytest.raises(NoPhotographs, match="no photograph of at least 32 x 32"):
        read_photographs(tmp_path, 32, (0.4,))


def pairs_of(tmp_path: Path, **changes: object) -> Pairs:
    folder = tmp_path / "photographs"
    if not folder.exists():
        write_photographs(folder)
    settings = DataSettings.model_validate({"photographs": folder, **changes})
    images = read_photographs(folder, 64)
    return Pairs(images, settings, crop=64, batch=2, seed=5, device=CPU)


def test_pairs_follow_from_seed_and_number_and_the_degraded_are_a_quarter_as_large(
    tmp_path: Path,
) -> None:
    first, second = pairs_of(tmp_path), pairs_of(tmp_path)
    batch = first.at(3)
    assert batch["high"].shape == (2, 3, 64, 64)
    assert batch["low"].shape == (2, 3, 16, 16)
    assert 0 <= float(batch["low"].min()) <= float(batch["low"].max()) <= 1
    for name, tensor in second.at(3).items():
        assert torch.equal(batch[name], tensor)
    assert not torch.equal(first.at(4)["low"], batch["low"])


def test_plain_reduction_keeps_more_than_the_papers_degradation(tmp_path: Path) -> None:
    def error(name: str) -> float:
        batch = pairs_of(tmp_path, mix={name: 1}).at(0)
        return float((batch["high"] - upsample(batch["low"])).square().mean())

    assert error("bicubic") < error("mild") < error("paper")
