"""Maps are kept row by row and freed as they are done with."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from models.errors import ScratchFull
from models.strips import Keep, MapStore, StripConfig
from tests.models.strips.images import CPU, open_files


def make_store(keep: Keep, rows: int = 4) -> MapStore:
    return MapStore(StripConfig(rows, keep), CPU, torch.bfloat16)


@pytest.mark.parametrize("keep", ["device", "host", "disk"])
def test_what_is_written_in_strips_is_read_across_them(keep: Keep) -> None:
    x = torch.randn(1, 3, 70, 5).to(torch.bfloat16)
    with make_store(keep) as store:
        feature_map = store.new(3, 70, 5, with_statistics=True)
        for top in range(0, 70, 9):
            feature_map.write(top, x[:, :, top : top + 9])
        assert store.nbytes == x.nbytes == feature_map.nbytes
        for top, bottom in ((0, 70), (0, 1), (3, 5), (8, 70), (69, 70)):
            assert torch.equal(feature_map.read(top, bottom), x[:, :, top:bottom])
            assert feature_map.read(top, bottom).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(feature_map.statistics.mean, x.double().mean((0, 2, 3)))


@pytest.mark.parametrize("keep", ["device", "disk"])
def test_rows_that_are_done_with_are_freed_on_the_way(keep: Keep, tmp_path: Path) -> None:
    x = torch.zeros(1, 2, 10, 8, dtype=torch.bfloat16)
    with make_store(keep) as store:
        feature_map = store.new(2, 10, 8, with_statistics=False)
        feature_map.write(0, x)
        row = x.nbytes // 10
        # Blocks of 4, 4 and 2 rows.
        for before, held in ((-1, 10), (3, 10), (4, 6), (7, 6), (9, 2), (10, 0)):
            feature_map.release(before)
            assert store.nbytes == held * row
        assert open_files(tmp_path) == []


def test_a_store_on_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with make_store("disk") as store:
        store.new(2, 10, 8, with_statistics=True).write(0, torch.ones(1, 2, 10, 8).bfloat16())
        assert open_files(tmp_path)
        # Without a name: a process that is killed leaves nothing either.
        assert list(tmp_path.iterdir()) == []
    assert open_files(tmp_path) == []
    assert store.nbytes == 0


def test_a_large_map_is_many_blocks_but_not_one_a_strip(tmp_path: Path) -> None:
    with make_store("disk", rows=1) as store:
        feature_map = store.new(1, 1000, 1, with_statistics=False)
        feature_map.write(0, torch.zeros(1, 1, 1000, 1).bfloat16())
        assert len(open_files(tmp_path)) == 32


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwritev", refuse)
    with make_store("disk") as store:
        feature_map = store.new(1, 4, 4, with_statistics=False)
        with pytest.raises(ScratchFull, match=f"no room left in {tmp_path}"):
            feature_map.write(0, torch.zeros(1, 1, 4, 4).bfloat16())
    assert open_files(tmp_path) == []


def test_other_errors_of_the_disk_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwritev", refuse)
    with make_store("disk") as store:
        feature_map = store.new(1, 4, 4, with_statistics=False)
        with pytest.raises(OSError, match="Input/output"):
            feature_map.write(0, torch.zeros(1, 1, 4, 4).bfloat16())


def test_short_reads_and_writes_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, to, at: read(fd, [to[0][:7]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, of, at: write(fd, [of[0][:7]], at))
    x = torch.randn(1, 2, 6, 8).bfloat16()
    with make_store("disk") as store:
        feature_map = store.new(2, 6, 8, with_statistics=False)
        feature_map.write(0, x)
        assert torch.equal(feature_map.read(0, 6), x)
