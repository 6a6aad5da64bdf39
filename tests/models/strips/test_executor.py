"""Strips shrink when memory runs out, jobs can be stopped, and costs are counted beforehand."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.config import AutoencoderConfig, CompactConfig
from models.errors import ScratchFull
from models.networks.autoencoder import Autoencoder
from models.networks.bundle import AnyAutoencoder, make_autoencoder
from models.networks.compact import CompactAutoencoder
from models.strips import Callbacks, MapStore, StripConfig, coding_cost, decode, encode
from tests.models.strips.images import (
    COMPACT,
    SMALL,
    latent_of,
    make_image,
    open_files,
)

HEIGHT, WIDTH = 128, 32


class Cancel(Exception):
    """Raised by a job's check."""


def faulty(error: Callable[[], Exception], limit: int) -> Callable[..., Tensor]:
    """A convolution that fails for more than `limit` rows."""
    conv2d: Callable[..., Tensor] = F.conv2d

    def instead(rows: Tensor, *args: object, **more: object) -> Tensor:
        if rows.shape[2] > limit:
            raise error()
        return conv2d(rows, *args, **more)

    return instead


def code(
    autoencoder: AnyAutoencoder, strips: StripConfig, callbacks: Callbacks | None = None
) -> Tensor:
    with encode(autoencoder, make_image(HEIGHT, WIDTH), strips, callbacks=callbacks) as output:
        latent = latent_of(autoencoder, output.moments)
        return decode(autoencoder, latent, output.features, 1.0, strips, callbacks=callbacks)


def shrink_to(heights: list[int]) -> Callbacks:
    return Callbacks(on_shrink=lambda before, after: heights.append(after))


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
    reference = code(small, StripConfig(64))
    # A strip of 16 rows that a dense block enlarges by 10.
    monkeypatch.setattr(F, "conv2d", faulty(error, 16 + 10))
    heights: list[int] = []
    result = code(small, StripConfig(64), shrink_to(heights))
    assert heights == [32, 16, 32, 16]  # encoding, then decoding
    assert float((result - reference).abs().max()) < 1e-5


@pytest.mark.parametrize("part", range(8))
def test_out_of_memory_while_a_strip_is_kept_counts_it_once(
    small: Autoencoder, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """Whichever block of a map finds no memory, also the second of a pass with two results."""
    reference = code(small, StripConfig(64))
    allocate, count = MapStore.allocate, 0

    def allocate_or_fail(failing: int) -> None:
        def patch(store: MapStore, shape: tuple[int, int, int]) -> object:
            nonlocal count
            count += 1
            if count == failing:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return allocate(store, shape)

        monkeypatch.setattr(MapStore, "allocate", patch)

    allocate_or_fail(0)
    code(small, StripConfig(64))
    blocks = count
    assert blocks > 64
    for failing in range(1 + part, blocks, 8):
        count = 0
        allocate_or_fail(failing)
        result = code(small, StripConfig(64))
        assert float((result - reference).norm() / reference.norm()) < 5e-6, failing


def test_where_one_row_is_too_much_the_error_is_passed_on(
    small: Autoencoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(F, "conv2d", faulty(MemoryError, 2))
    heights: list[int] = []
    with pytest.raises(MemoryError):
        code(small, StripConfig(8, "disk"), shrink_to(heights))
    assert heights == [4, 2, 1]
    assert open_files(tmp_path) == []


def test_other_errors_do_not_shrink_strips(
    small: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "conv2d", faulty(lambda: RuntimeError("an illegal access"), 2))
    heights: list[int] = []
    with pytest.raises(RuntimeError, match="illegal"):
        code(small, StripConfig(16), shrink_to(heights))
    assert heights == []


@pytest.mark.parametrize("after", [0, 1, 37, 150])
def test_a_cancelled_job_frees_its_files(small: Autoencoder, after: int, tmp_path: Path) -> None:
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks > after:
            raise Cancel

    with pytest.raises(Cancel):
        code(small, StripConfig(16, "disk"), Callbacks(check=check))
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
        code(small, StripConfig(16, "disk"))
    assert open_files(tmp_path) == []


def test_progress_rises_to_1(autoencoder: AnyAutoencoder) -> None:
    fractions: list[float] = []
    strips, callbacks = StripConfig(16), Callbacks(fractions.append)
    with encode(autoencoder, make_image(HEIGHT, WIDTH), strips, callbacks=callbacks) as output:
        assert fractions == sorted(fractions)
        assert fractions[-1] == pytest.approx(1.0)
        fractions.clear()
        latent = latent_of(autoencoder, output.moments)
        decode(autoencoder, latent, output.features, 1.0, strips, callbacks=callbacks)
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.2
    assert fractions[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("decoding", "fusion"), [(False, True), (True, False), (True, True)], ids=str
)
@pytest.mark.parametrize(
    "config", [SMALL, COMPACT, CompactConfig()], ids=["small", "compact", "default"]
)
def test_flops_are_those_that_torch_counts(
    config: AutoencoderConfig | CompactConfig, decoding: bool, fusion: bool
) -> None:
    height, width = 192, 64
    with torch.device("meta"):
        autoencoder = make_autoencoder(config)
        image = torch.empty(1, 3, height, width)
        latent = torch.empty(1, config.latent_channels, height // 8, width // 8)
        features = [
            torch.empty(1, channels, height // smaller, width // smaller)
            for channels, smaller in config.feature_widths
        ]
        # The counter does not know the processor's fused attention.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            if decoding:
                autoencoder.decode(latent, features if fusion else None, torch.tensor(1.0))
            else:
                autoencoder.encode(image)
    strips = StripConfig()
    cost = coding_cost(config, height, width, strips, torch.float32, decode=decoding, fusion=fusion)
    # To torch the basis of the image in the compact latent is one more convolution.
    basis = 2 * 12 * 12 * (height // 8) * (width // 8) if isinstance(config, CompactConfig) else 0
    assert cost.flops == int(counter.get_total_flops()) - basis


def test_the_released_sizes_flops_are_the_known_ones() -> None:
    # A 512 x 512 image, in TFLOP.
    for (decoding, fusion), tera in {(False, True): 1.12, (True, True): 4.97}.items():
        sizes = (AutoencoderConfig(), 512, 512, StripConfig(), torch.float32)
        cost = coding_cost(*sizes, decode=decoding, fusion=fusion)
        assert cost.flops / 1e12 == pytest.approx(tera, rel=0.03)


@pytest.mark.parametrize("rows", [4, 32, 4096])
@pytest.mark.parametrize("fusion", [False, True])
def test_maps_take_what_was_counted(
    autoencoder: AnyAutoencoder, monkeypatch: pytest.MonkeyPatch, rows: int, fusion: bool
) -> None:
    strips, height, width = StripConfig(rows), 192, 64
    if isinstance(autoencoder, CompactAutoencoder) and rows > height:
        return  # decoded at once, without maps
    sizes = (autoencoder.config, height, width, strips, torch.float32)
    counts = [coding_cost(*sizes, decode=d, fusion=fusion).maps for d in (False, True)]
    stores: list[MapStore] = []
    peak = 0
    allocate = MapStore.allocate

    def watch(store: MapStore, shape: tuple[int, int, int]) -> object:
        nonlocal peak
        if store not in stores:
            stores.append(store)
        if len(stores) == 1:
            peak = max(peak, store.nbytes + math.prod(shape) * store.dtype.itemsize)
        return allocate(store, shape)

    monkeypatch.setattr(MapStore, "allocate", watch)
    # In decoding, between two strips.
    nbytes: list[int] = []
    callbacks = Callbacks(lambda _: nbytes.append(sum(store.nbytes for store in stores)))
    with encode(autoencoder, make_image(height, width), strips, features=fusion) as output:
        latent = latent_of(autoencoder, output.moments)
        decode(autoencoder, latent, output.features, 1.0, strips, callbacks=callbacks)
    assert 0.75 * counts[0] < peak <= counts[0]
    assert 0.7 * counts[1] < max(nbytes) <= counts[1]
    assert [store.nbytes for store in stores] == [0, 0]


@pytest.mark.parametrize("rows", [8, 16, 64])
def test_strips_take_no_more_than_was_counted(
    compact: CompactAutoencoder, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Of every convolution what it reads and gives, at the widest place of a pass."""
    strips, height, width = StripConfig(rows), 256, 64
    sizes = (COMPACT, height, width, strips, torch.float32)
    limit = coding_cost(*sizes, decode=True, fusion=True).strips
    largest = 0
    conv2d: Callable[..., Tensor] = F.conv2d

    def watch(rows: Tensor, *args: object, **more: object) -> Tensor:
        nonlocal largest
        result = conv2d(rows, *args, **more)
        largest = max(largest, rows.nbytes + result.nbytes)
        return result

    with encode(compact, make_image(height, width), strips) as output:
        monkeypatch.setattr(F, "conv2d", watch)
        decode(compact, output.moments, output.features, 1.0, strips)
    assert 0.3 * limit < largest <= limit


def test_maps_are_two_of_the_widest_level_and_strips_are_as_thin_as_they_are_cut() -> None:
    size, dtype = (2048, 4096), torch.bfloat16
    # As wide as an image row has pixels.
    maps = 2 * 128 * 2 * size[0] * size[1]
    cost, thin = (
        coding_cost(AutoencoderConfig(), *size, StripConfig(rows), dtype, decode=True, fusion=False)
        for rows in (64, 8)
    )
    assert maps <= cost.maps < 1.25 * maps
    assert thin.strips < 0.5 * cost.strips < 0.5 * maps


def _memory(config: AutoencoderConfig | CompactConfig, side: int, rows: int) -> int:
    strips = StripConfig(rows)
    cost = coding_cost(config, side, side, strips, torch.float32, decode=True, fusion=True)
    return cost.maps + cost.strips


def test_strips_hold_less_than_the_whole_at_once() -> None:
    assert _memory(SMALL, 4096, 16) < 0.5 * _memory(SMALL, 4096, 4096)


def test_the_compact_autoencoder_takes_a_fraction_of_the_released_ones_memory() -> None:
    assert _memory(CompactConfig(), 2048, 64) < _memory(AutoencoderConfig(), 2048, 64) / 8
