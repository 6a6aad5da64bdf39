"""The training pair pool, and the pairs it mixes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.small_run import CPU, write_photographs
from training import pairs
from training.config import DataSettings
from training.pairs import Pairs
from training.pool import PairPool


def numbered(number: int) -> tuple[Tensor, Tensor]:
    """A batch whose pairs tell their batch and their place."""
    high = torch.arange(4) + 10 * number
    return high, -high


def test_pairs_of_many_batches_are_mixed_and_each_is_used_once() -> None:
    pool = PairPool(numbered, 16, 4, seed=0)
    batches = [pool.at(step) for step in range(40)]
    for high, low in batches:
        assert torch.equal(high, -low)
    assert all(len({int(v) // 10 for v in high}) == 1 for high, _ in batches[:4])
    assert sum(len({int(v) // 10 for v in high}) > 2 for high, _ in batches[4:]) > 25
    later = [int(v) for high, _ in batches[4:] for v in high]
    assert len(later) == len(set(later))


@pytest.mark.parametrize("step", [2, 4, 30])
def test_a_resumed_pool_gives_what_an_uninterrupted_one_gives(step: int) -> None:
    whole = PairPool(numbered, 16, 4, seed=0)
    expected = [whole.at(at)[0].tolist() for at in range(40)]
    resumed = PairPool(numbered, 16, 4, seed=0)
    assert [resumed.at(at)[0].tolist() for at in range(step, 40)] == expected[step:]
    assert [resumed.at(at)[0].tolist() for at in range(0, 40, 3)] == expected[::3]


def test_a_pool_that_no_batch_fits_into_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 10 pairs; it must be a multiple of 4"):
        PairPool(numbered, 10, 4, seed=0)


def pairs_of(tmp_path: Path, **given: object) -> Pairs:
    folder = tmp_path / "photographs"
    if not folder.exists():
        write_photographs(folder)
    settings = DataSettings.model_validate({"photographs": folder, **given})
    return Pairs(settings, crop=64, batch=2, seed=5, device=CPU)


@pytest.mark.parametrize("pool", [0, 4])
def test_pairs_follow_from_seed_and_number_and_are_of_one_size(tmp_path: Path, pool: int) -> None:
    first, second = pairs_of(tmp_path, pool=pool), pairs_of(tmp_path, pool=pool)
    high, low = first.at(3)
    assert high.shape == low.shape == (2, 3, 64, 64)
    assert 0 <= float(low.min()) <= float(low.max()) <= 1
    for ours, theirs in zip((high, low), second.at(3), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(first.at(4)[1], low)


@pytest.mark.parametrize(
    ("given", "draws"), [({}, [1, 1]), ({"alike": 2}, [2]), ({"pool": 4}, [2])]
)
def test_images_share_a_draw_of_the_degradation_where_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, int], draws: list[int]
) -> None:
    seen: list[int] = []

    def noted(image: Tensor, scale: int, **more: object) -> Tensor:
        seen.append(len(image))
        assert more["shared"]
        return image[..., ::scale, ::scale]

    monkeypatch.setattr(pairs, "degrade", noted)
    pairs_of(tmp_path, **given).at(0)
    assert seen == draws


def test_plain_reduction_keeps_more_than_the_papers_degradation(tmp_path: Path) -> None:
    def error(name: str) -> float:
        high, low = pairs_of(tmp_path, mix={name: 1}).at(0)
        return float((high - low).square().mean())

    assert error("bicubic") < error("mild") < error("paper")


def test_sharpened_targets_are_what_is_degraded(tmp_path: Path) -> None:
    plain, sharp = (
        pairs_of(tmp_path, mix={"bicubic": 1}),
        pairs_of(tmp_path, mix={"bicubic": 1}, sharpen=True),
    )
    assert float(sharp.at(0)[0].std()) > float(plain.at(0)[0].std())
    assert not torch.equal(sharp.at(0)[1], plain.at(0)[1])
