"""Statistics of whole maps, pooled from rows."""

from __future__ import annotations

import pytest
import torch

from models.statistics import Statistics


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cuts", [[1, 2, 30], [33], [32, 1]], ids=str)
def test_parts_of_any_height_pool_to_the_wholes_statistics(cuts: list[int]) -> None:
    x = rows(1, 6, 33, 7) * torch.arange(1, 7).view(1, 6, 1, 1) + rows(1, 6, 33, 1, seed=1)
    parts = [Statistics.of(part) for part in torch.split(x, cuts, dim=2)]
    pool = parts[0]
    for part in parts[1:]:
        pool = pool.merge(part)
    reference = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
    assert pool.count == 33 * 7
    torch.testing.assert_close(pool.m2 / pool.count, reference[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(pool.mean, reference[1], rtol=1e-5, atol=1e-7)


def test_a_large_offset_costs_no_digits() -> None:
    # Mean of squares minus square of the mean would lose all of them here: 1e8 + 1 in float32.
    x = rows(1, 4, 64, 64) + 1e4
    variance = Statistics.of(x[:, :, :10]).merge(Statistics.of(x[:, :, 10:])).pool(2)[1]
    reference = x.double().view(2, -1).var(dim=1, correction=0).repeat_interleave(2)
    torch.testing.assert_close(variance, reference, rtol=1e-6, atol=0)


def test_many_chunks_pool_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(1, 4, 16, 16)
    whole = Statistics.of(x)
    monkeypatch.setattr("models.statistics.CHUNK", 40)
    parts = Statistics.of(x)
    torch.testing.assert_close(parts.m2, whole.m2, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-5, atol=1e-8)


def test_rows_that_are_measured_are_not_changed() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = rows(1, 4, 3, 5).to(dtype)
        before = x.clone()
        Statistics.of(x)
        assert torch.equal(x, before)
