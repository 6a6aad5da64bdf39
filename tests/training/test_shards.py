"""Batches kept in files: what is picked from them does not hang on what memory holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from training import shards
from training.shards import Shards


def batch(number: int) -> dict[str, Tensor]:
    return {"value": 10 * number + torch.arange(4.0), "twice": 20 * number + 2 * torch.arange(4.0)}


def picked(folder: Path) -> list[tuple[float, float]]:
    kept = Shards(folder, batch, 3, {"of": "numbers"})
    found = []
    for step in range(5):
        entries = kept.pick(6, torch.Generator().manual_seed(step))
        found += [(float(e["value"]), float(e["twice"])) for e in entries]
    return found


# One file has about 200 bytes: none is held, the first alone, all of them.
@pytest.mark.parametrize("held", [0, 300, 10**6])
def test_the_same_entries_are_picked_whatever_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    wanted = picked(tmp_path / "plain")
    monkeypatch.setattr(shards, "_MOST_HELD", held)
    assert picked(tmp_path / "other") == wanted
    assert all(twice == 2 * value for value, twice in wanted)
    assert len(set(wanted)) > 6
