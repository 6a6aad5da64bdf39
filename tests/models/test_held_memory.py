"""What the pipeline holds of an image, when it lets go, and what it does when memory runs out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import models.autoencoding
from models.checkpoints.folder import preset_folder, random_networks
from models.color import correct_color
from models.errors import NotFinite
from models.memory import Memory
from models.networks.bundle import Networks
from models.parameters import UpscaleParameters
from models.pieces import Pieces
from models.pipeline import StableSR
from models.plan import Resources
from models.prepared import Prepared
from models.presets import get_preset
from models.sampling import drive
from tests.models import narrow

CPU = torch.device("cpu")
OPTIONS = narrow.parameters(scale=1.5, seed=3)
IMAGE = torch.rand(1, 3, 60, 90, generator=torch.Generator().manual_seed(0))


def pipeline(networks: Networks | None = None, **given: Any) -> StableSR:
    made = networks or random_networks(narrow.CONFIG, CPU, torch.float32)
    return StableSR(made, narrow.PRESET, CPU, torch.float32, Resources(**given))


def latent_of(sr: StableSR, prepared: Prepared, options: UpscaleParameters = OPTIONS) -> Tensor:
    return drive(
        sr.sample(prepared, options), lambda step: sr.predict([step.part(0, len(step))])[0]
    )


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StableSR:
    """Keeps its maps in files, because a limit leaves no room for them."""
    sr = pipeline(scratch=tmp_path, decode_tile=8)
    roomy = sr.plan(60, 90, OPTIONS).peaks
    tight = max(peak.host for peak in roomy) - 1
    monkeypatch.setattr(sr.planner, "memory", lambda held: Memory(0, tight, 10**12))
    assert sr.plan(60, 90, OPTIONS).pieces.keep == "disk"
    return sr


def open_scratch(folder: Path) -> list[str]:
    """Files of the folder that this process has open; they have no names in it any more."""
    found = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return [path for path in found if path.startswith(str(folder))]


@pytest.mark.parametrize("fix", ["adain", "wavelet", "none"])
@pytest.mark.parametrize("size", [(60, 90), (20, 31)])
def test_rows_are_what_the_whole_image_would_be(fix: Any, size: tuple[int, int]) -> None:
    """Against the way that holds everything: encode, decode, correct, crop and resize at once."""
    sr = pipeline(decode_tile=16)
    networks, options = sr.networks, narrow.parameters(scale=1.5, seed=3, color_fix=fix)
    image = torch.rand(1, 3, *size)
    with sr.prepare(image, options) as prepared, torch.inference_mode():
        layout = prepared.plan.layout
        encoded = networks.autoencoder.encode(prepared.reference)
        whole = networks.autoencoder.latent(encoded.moments)
        torch.testing.assert_close(prepared.latent, whole, rtol=1e-4, atol=1e-5)
        latent = latent_of(sr, prepared, options)
        unscaled = networks.autoencoder.unscaled(latent)
        decoded = networks.autoencoder.decode(unscaled, encoded.features, torch.tensor(0.5))
        wanted = (correct_color(decoded, prepared.reference, fix) + 1) / 2
        wanted = wanted[:, :, : layout.canvas[0], : layout.canvas[1]]
        if layout.canvas != layout.size:
            wanted = F.interpolate(wanted, size=layout.size, mode="bicubic", antialias=True)
        rows = list(sr.rows(prepared, latent, options))
        assert all(strip.shape[0] == 3 and strip.dtype == torch.float32 for strip in rows)
        found = torch.cat(rows, dim=1)[None]
        torch.testing.assert_close(found, wanted.clamp(0, 1), rtol=0, atol=2e-5)
        assert torch.equal(found, sr.decode(prepared, latent, options))


def test_maps_on_disk_give_the_image_that_maps_in_memory_give(
    on_disk: StableSR, tmp_path: Path
) -> None:
    near = pipeline(on_disk.networks, decode_tile=8)
    assert torch.equal(on_disk.upscale(IMAGE, OPTIONS), near.upscale(IMAGE, OPTIONS))
    assert open_scratch(tmp_path) == []


def test_features_are_held_until_the_image_is_closed(on_disk: StableSR, tmp_path: Path) -> None:
    with on_disk.prepare(IMAGE, OPTIONS) as prepared:
        assert open_scratch(tmp_path)
        assert prepared.held.disk > 0
        assert prepared.held.host == prepared.reference.nbytes
    assert open_scratch(tmp_path) == []
    prepared.close()


class Canceled(Exception):
    pass


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_an_image_canceled_between_two_strips_leaves_nothing(
    on_disk: StableSR, tmp_path: Path, stage: str
) -> None:
    def cancel(done: float) -> None:
        if done > 0.5:
            raise Canceled

    heard: list[float] = []
    if stage == "encode":
        with pytest.raises(Canceled):
            on_disk.prepare(IMAGE, OPTIONS, cancel)
    else:
        with on_disk.prepare(IMAGE, OPTIONS, heard.append) as prepared:
            latent = latent_of(on_disk, prepared)
            with pytest.raises(Canceled):
                on_disk.rows(prepared, latent, OPTIONS, cancel)
        assert heard == sorted(heard)
        assert heard[-1] == pytest.approx(1.0)
        assert len(heard) > 20
    assert open_scratch(tmp_path) == []


def test_an_abandoned_result_lets_go_of_its_image(on_disk: StableSR, tmp_path: Path) -> None:
    results = on_disk.upscale_rows(IMAGE, OPTIONS, [1, 2])
    next(results)
    assert open_scratch(tmp_path)
    assert isinstance(results, Iterator)
    results.close()  # type: ignore[attr-defined]  # a generator is what it is
    assert open_scratch(tmp_path) == []


def failing_unless(keep: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def run(*given: Any, **more: Any) -> Any:
        [pieces] = [value for value in given if isinstance(value, Pieces)]
        if pieces.keep != keep:
            raise torch.OutOfMemoryError(f"no room for maps on the {pieces.keep}")
        return real(*given, **more)

    return run


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_maps_move_on_when_memory_runs_out(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sr = pipeline(scratch=tmp_path)
    wanted = sr.upscale(IMAGE, OPTIONS)
    real = getattr(models.autoencoding, stage)
    monkeypatch.setattr(models.autoencoding, stage, failing_unless("disk", real))
    assert torch.equal(sr.upscale(IMAGE, OPTIONS), wanted)
    assert sr.changes.counts == {"keep": 1}


def test_features_that_moved_on_count_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sr = pipeline(scratch=tmp_path)
    real = getattr(models.autoencoding, "encode")  # noqa: B009  # a name that is not exported
    monkeypatch.setattr(models.autoencoding, "encode", failing_unless("disk", real))
    with sr.prepare(IMAGE, OPTIONS) as prepared:
        assert prepared.plan.pieces.keep == "device"
        assert prepared.summary["keep"] == "disk"
        assert prepared.held.disk > 0
        assert prepared.held.device == prepared.latent.nbytes


def test_what_is_no_number_becomes_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    sr = pipeline()
    with sr.prepare(IMAGE, OPTIONS) as prepared:
        latent = latent_of(sr, prepared)
        with pytest.raises(NotFinite, match="sampled latent, computed in float32"):
            sr.decode(prepared, latent.clone().index_fill(2, torch.tensor(3), torch.nan), OPTIONS)
        real = getattr(models.autoencoding, "decode")  # noqa: B009  # a name that is not exported

        def overflowing(*given: Any, **more: Any) -> Tensor:
            image: Tensor = real(*given, **more)
            image[0, 1, -1, -1] = torch.inf
            return image

        monkeypatch.setattr(models.autoencoding, "decode", overflowing)
        monkeypatch.setattr(sr, "dtype", torch.float16)
        with pytest.raises(NotFinite, match=r"decoded image, computed in float16.*bfloat16"):
            sr.decode(prepared, latent, OPTIONS)


def test_without_a_further_place_the_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    sr = pipeline()
    monkeypatch.setattr(models.autoencoding, "decode", failing_unless("nowhere", lambda: None))
    with pytest.raises(torch.OutOfMemoryError, match="on the disk"):
        sr.upscale(IMAGE, OPTIONS)
    assert sr.changes.counts == {"keep": 1}


def test_strips_that_shrink_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sr = pipeline(decode_tile=32)
    wanted = sr.upscale(IMAGE, OPTIONS)
    real = F.conv2d

    def conv2d(rows: Tensor, *given: Any, **more: Any) -> Tensor:
        if rows.shape[2] > 24:
            raise torch.OutOfMemoryError("no room for a strip")
        return real(rows, *given, **more)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    found = sr.upscale(IMAGE, narrow.parameters(scale=1.5, seed=3, color_fix="adain"))
    assert sr.changes.counts["rows"] >= 2
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_an_image_whose_steps_are_made_is_decoded_with_whatever_memory_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sr = pipeline()
    with sr.prepare(IMAGE, OPTIONS) as prepared:
        latent = latent_of(sr, prepared)
        wanted = sr.decode(prepared, latent, OPTIONS)
        monkeypatch.setattr(sr.planner, "memory", lambda held: Memory(0, 0, 0))
        assert torch.equal(sr.decode(prepared, latent, OPTIONS), wanted)


def test_what_an_image_holds_is_not_counted_twice_when_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sr = pipeline()
    seen: list[Memory] = []
    real = sr.planner.memory

    def watched(held: Memory) -> Memory:
        seen.append(held)
        return real(held)

    monkeypatch.setattr(sr.planner, "memory", watched)
    with sr.prepare(IMAGE, OPTIONS) as prepared:
        sr.decode(prepared, latent_of(sr, prepared), OPTIONS)
        assert seen == [Memory(0, 0, 0), prepared.held]
        assert prepared.held.host >= prepared.reference.nbytes


def test_with_offload_an_image_is_the_same() -> None:
    networks = random_networks(narrow.CONFIG, CPU, torch.float32)
    plain = pipeline(networks).upscale(IMAGE, OPTIONS)
    taking_turns = pipeline(networks, offload=True)
    assert torch.equal(taking_turns.upscale(IMAGE, OPTIONS), plain)
    assert taking_turns.plan(60, 90, OPTIONS).offload


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_full_precision(dtype: torch.dtype) -> None:
    """Of the embedded weights, on a canvas of one small tile."""
    tiny = get_preset("tiny")
    small = replace(tiny, native=128, tile=16, overlap=8)
    image = F.interpolate(torch.rand(1, 3, 6, 6), size=(32, 32), mode="bicubic").clamp(0, 1)
    results = [
        StableSR.from_folder(preset_folder(tiny), small, CPU, kind).upscale(image)
        for kind in (torch.float32, dtype)
    ]
    assert bool(results[1].isfinite().all())
    assert float((results[0] - results[1]).abs().mean()) < 0.02
