"""Strips shrink when memory runs out; between them progress is told and a job can be stopped."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import ScratchFull
from models.networks.autoencoder import Autoencoder
from models.strips import Callbacks, StripConfig
from models.strips.store import MapStore
from tests.models.strips.images import decode_strips, encode_strips, open_files, picture

HEIGHT, WIDTH = 128, 32


class Cancelled(Exception):
    """What a job's check raises."""


def faulty(error: Callable[[], Exception], limit: int) -> Callable[..., Tensor]:
    """A convolution that fails for more than `limit` rows."""
    conv2d: Callable[..., Tensor] = F.conv2d

    def instead(rows: Tensor, *args: object, **more: object) -> Tensor:
        if rows.shape[2] > limit:
            raise error()
        return conv2d(rows, *args, **more)

    return instead


def code(
    autoencoder: Autoencoder, strips: StripConfig, callbacks: Callbacks | None = None
) -> Tensor:
    image = picture(HEIGHT, WIDTH)
    with encode_strips(autoencoder, image, strips, callbacks=callbacks) as found:
        latent = found.moments.chunk(2, dim=1)[0]
        return decode_strips(
            autoencoder,
            latent,
            found.features,
            1.0,
            strips,
            free_features=True,
            callbacks=callbacks,
        )


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory."),
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError,
    ],
    ids=["device", "cpu", "python"],
)
def test_out_of_memory_halves_the_strips_and_changes_nothing(
    small: Autoencoder, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]
) -> None:
    wanted = code(small, StripConfig(rows=64))
    # A strip of 16 rows that a dense block enlarges by 10.
    monkeypatch.setattr(F, "conv2d", faulty(error, 16 + 10))
    told: list[int] = []
    found = code(
        small, StripConfig(rows=64), Callbacks(on_shrink=lambda _, after: told.append(after))
    )
    assert told == [32, 16, 32, 16]  # encoding, then decoding
    assert float((found - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize("part", range(8))
def test_out_of_memory_while_a_strip_is_kept_counts_it_once(
    small: Autoencoder, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """Whichever block of a map finds no memory, also the second of a pass with two results."""
    wanted = code(small, StripConfig(rows=64))
    block, made = MapStore.block, 0

    def count(store: MapStore, shape: tuple[int, int, int]) -> object:
        nonlocal made
        made += 1
        return block(store, shape)

    monkeypatch.setattr(MapStore, "block", count)
    code(small, StripConfig(rows=64))
    blocks, made = made, 0
    assert blocks > 64
    for failing in range(1 + part, blocks, 8):
        made = 0

        def fail_once(
            store: MapStore, shape: tuple[int, int, int], failing: int = failing
        ) -> object:
            nonlocal made
            made += 1
            if made == failing:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return block(store, shape)

        monkeypatch.setattr(MapStore, "block", fail_once)
        found = code(small, StripConfig(rows=64))
        assert float((found - wanted).norm() / wanted.norm()) < 5e-6, failing


def test_where_one_row_is_too_much_the_error_is_passed_on(
    small: Autoencoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(F, "conv2d", faulty(MemoryError, 2))
    told: list[int] = []
    with pytest.raises(MemoryError):
        code(
            small,
            StripConfig(8, "disk", scratch=tmp_path),
            Callbacks(on_shrink=lambda _, after: told.append(after)),
        )
    assert told == [4, 2, 1]
    assert open_files(tmp_path) == []


def test_other_errors_do_not_shrink_strips(
    small: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "conv2d", faulty(lambda: RuntimeError("an illegal access"), 2))
    told: list[int] = []
    with pytest.raises(RuntimeError, match="illegal"):
        code(small, StripConfig(rows=16), Callbacks(on_shrink=lambda _, after: told.append(after)))
    assert told == []


@pytest.mark.parametrize("after", [0, 1, 37, 150])
def test_a_cancelled_job_frees_its_files(small: Autoencoder, after: int, tmp_path: Path) -> None:
    seen = 0

    def check() -> None:
        nonlocal seen
        seen += 1
        if seen > after:
            raise Cancelled

    with pytest.raises(Cancelled):
        code(small, StripConfig(16, "disk", scratch=tmp_path), Callbacks(check=check))
    assert open_files(tmp_path) == []


def test_a_full_disk_frees_the_files(
    small: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.pwritev, 1_000_000

    def until_full(fd: int, buffers: list[memoryview], at: int) -> int:
        nonlocal room
        room -= len(buffers[0])
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, buffers, at)

    monkeypatch.setattr(os, "pwritev", until_full)
    with pytest.raises(ScratchFull):
        code(small, StripConfig(16, "disk", scratch=tmp_path))
    assert open_files(tmp_path) == []


def test_progress_rises_to_1(small: Autoencoder) -> None:
    told: list[float] = []
    with encode_strips(
        small, picture(HEIGHT, WIDTH), StripConfig(rows=16), callbacks=Callbacks(told.append)
    ) as found:
        assert told[-1] == pytest.approx(1.0)
        assert told == sorted(told)
        del told[:]
        latent = found.moments.chunk(2, dim=1)[0]
        decode_strips(
            small, latent, found.features, 1.0, StripConfig(16), callbacks=Callbacks(told.append)
        )
    assert told[-1] == pytest.approx(1.0)
    assert told[0] < 0.05
    assert told == sorted(told)
